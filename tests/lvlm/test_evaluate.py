import json
import shutil
import tracemalloc
import typing
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advflyp.attack.apgd import APGD
from advflyp.attack.pgd import PGD
from advflyp.cli.lvlm import TaskName
from advflyp.cli.main import main
from advflyp.limits import MAX_DOCUMENT_BYTES
from advflyp.lvlm.evaluate import evaluate_lvlm, scorer
from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.protocol import ENCODER, LVLMProtocol, Round
from advflyp.lvlm.results import (
    AnswerCell,
    answers_path,
    interval,
    read_answer_cells,
    read_answers,
    save_answers,
)
from advflyp.lvlm.tasks import TASKS, load_task
from advflyp.report.measure.answers import answers_tables
from helpers import loaded_vit

QUICK = LVLMProtocol(
    name="quick",
    attack=APGD(loss="dlr", steps=2),
    rounds={"cider": (Round(0), Round("best")), "vqa": (Round(0), Round("target", target="maybe"))},
)
EPS = [8 / 255]
WORDS = ("cat", "dog", "circle", "red bar")


@pytest.fixture(scope="module")
def model(llava_folder: Path) -> LVLM:
    return load_lvlm(llava_folder, device="cpu")


@pytest.mark.parametrize("change", [{"prompt": "a <image> cat?"}, {"references": ("a cat", "<image>")}])
def test_a_text_with_the_image_token_is_found_before_anything_is_measured(
    model: LVLM, root: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    task = load_task("coco", root)
    samples = (*task.samples[:-1], replace(task.samples[-1], **change))
    with pytest.raises(ValueError, match=f"coco: .* of sample {samples[-1].key} holds the image token of"):
        evaluate_lvlm(model, [replace(task, samples=samples)], QUICK, EPS, out=tmp_path / "results.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_cells(model: LVLM, root: Path, tmp_path: Path) -> None:
    tasks = [load_task(name, root) for name in ("coco", "vqav2", "pope-random")]
    store = tmp_path / "results.jsonl"
    cells = evaluate_lvlm(model, tasks, QUICK, EPS, out=store, batch_size=3)
    assert [(cell.task, cell.attack) for cell in cells] == [
        ("coco", "clean"), ("coco", "quick"), ("vqav2", "clean"), ("vqav2", "quick"), ("pope-random", "clean"),
    ]  # fmt: skip
    for clean, attacked in ((cells[0], cells[1]), (cells[2], cells[3])):
        assert attacked.clean == clean.score == clean.clean
        assert attacked.score <= clean.score
        assert attacked.ci95[0] <= attacked.score <= attacked.ci95[1]
    assert cells[1].idf_images == 4
    assert set(cells[3].reached) == {"maybe"}
    assert read_answer_cells(store) == cells
    kept = read_answers(store, cells[1])
    assert kept is not None
    assert kept["keys"].tolist() == [sample.key for sample in tasks[0].samples]
    assert kept["before"].shape == kept["after"].shape == (4, 3, 16, 16)
    change = np.abs(kept["before"].astype(int) - kept["after"]).max((1, 2, 3))
    score = scorer(tasks[0])
    worse = [score(i, str(kept["answers"][i])) < score(i, str(kept["clean"][i])) for i in range(4)]
    assert change.max() <= 9 and (change > 0).tolist() == worse
    assert cells[1].score == pytest.approx(np.mean([score(i, str(a)) for i, a in enumerate(kept["answers"])]))


def test_the_same_weights_in_another_configuration_are_another_model(
    llava_folder: Path, root: Path, tmp_path: Path
) -> None:
    """Copied elsewhere, they are the same."""
    store, task = tmp_path / "results.jsonl", load_task("pope-random", root)
    for name, activation in (("copy", "quick_gelu"), ("other", "relu"), ("again", "relu")):
        folder = Path(shutil.copytree(llava_folder, tmp_path / name))
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"]["hidden_act"] = activation
        (folder / "config.json").write_text(json.dumps(config))
        evaluate_lvlm(load_lvlm(folder, device="cpu"), [task], QUICK, [], out=store)
    one, two = read_answer_cells(store)
    assert one.checkpoint_sha256 == two.checkpoint_sha256 and one.config_sha256 != two.config_sha256
    assert len(answers_tables([one, replace(two, model=one.model)])) == 2


def test_nothing_is_measured_twice(
    model: LVLM, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, store = [load_task("coco", root)], tmp_path / "results.jsonl"
    first = evaluate_lvlm(model, tasks, QUICK, EPS, out=store)
    monkeypatch.setattr(LVLM, "answer", lambda *_, **__: pytest.fail("measured again"))
    assert evaluate_lvlm(model, tasks, QUICK, EPS, out=store) == first


def test_an_interrupted_measurement_resumes_at_its_next_sample(
    model: LVLM, root: Path, tmp_path: Path
) -> None:
    tasks, store = [load_task("coco", root)], tmp_path / "results.jsonl"
    whole = evaluate_lvlm(model, tasks, QUICK, EPS, batch_size=1)
    seen: list[tuple[str, int]] = []

    def stop(cell: AnswerCell, done: int, of: int) -> None:
        seen.append((cell.attack, done))
        if (cell.attack, done) == ("quick", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_lvlm(model, tasks, QUICK, EPS, out=store, batch_size=1, watch=stop)
    seen.clear()
    again = evaluate_lvlm(
        model,
        tasks,
        QUICK,
        EPS,
        out=store,
        batch_size=1,
        watch=lambda cell, done, _: seen.append((cell.attack, done)),
    )
    assert seen == [("quick", 3), ("quick", 4)]
    assert [(one.score, one.ci95) for one in again] == [(one.score, one.ci95) for one in whole]
    assert not store.with_suffix(".unfinished").exists()


def test_the_encoder_protocol_goes_on_and_knows_its_text_tower(
    llava_folder: Path, root: Path, tmp_path: Path
) -> None:
    """The cell is another one where the CLIP differs in its text tower alone."""
    quick, store = replace(ENCODER, attack=PGD(steps=2)), tmp_path / "results.jsonl"
    whole = load_task("coco", root)
    said = [replace(one, references=(f"a {word}",)) for one, word in zip(whole.samples, WORDS, strict=True)]
    task = replace(whole, samples=tuple(said))
    clip = loaded_vit(tmp_path, size=16)
    model = load_lvlm(llava_folder, clip, device="cpu")
    expected = evaluate_lvlm(model, [task], quick, EPS)

    def stop(cell: AnswerCell, done: int, of: int) -> None:
        if (cell.attack, done) == ("encoder", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_lvlm(model, [task], quick, EPS, out=store, batch_size=1, watch=stop)
    found = evaluate_lvlm(model, [task], quick, EPS, out=store, batch_size=1)
    assert [(one.attack, one.score) for one in found] == [(one.attack, one.score) for one in expected]
    assert found[1].attack_args["attack"] == "pgd2"

    clip.net.token_embedding.weight.data += 0.1
    other = evaluate_lvlm(load_lvlm(llava_folder, clip, device="cpu"), [task], quick, EPS, out=store)
    assert other[0] == found[0] and other[1].key() != found[1].key()
    assert len(read_answer_cells(store)) == 3


def test_images_that_cannot_be_read(model: LVLM, root: Path) -> None:
    task = load_task("coco", root)
    task.samples[1].image.write_bytes(b"no image")
    with pytest.raises(
        ValueError, match="more than 1% of its images cannot be read: COCO_val2014_000000000001"
    ):
        evaluate_lvlm(model, [task], QUICK, EPS)


def test_intervals() -> None:
    assert interval([100.0, 0.0, 100.0, 100.0], "yes-no") == pytest.approx((30.06, 95.44), abs=0.01)
    low, high = interval([50.0] * 9, "cider")
    assert low == high == 50


@pytest.mark.parametrize("count", [1, 7, 1999])
def test_the_bootstrap_needs_little_memory_and_keeps_its_draws(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the blocks, also if the last one is smaller, the interval is that of all draws at once."""
    scores = np.random.default_rng(1).random(count) * 100
    draws = np.random.default_rng(0).integers(count, size=(2_000, count))
    whole = tuple(np.percentile(scores[draws].mean(1), (2.5, 97.5)))
    for block in (1, 6001, 1 << 30):
        monkeypatch.setattr("advflyp.lvlm.results.BLOCK", block)
        assert interval(scores.tolist(), "cider") == whole
    monkeypatch.undo()
    tracemalloc.start()
    interval([50.0] * 50_000, "vqa")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_numbers_below_one_are_refused(model: LVLM, root: Path, name: str) -> None:
    for number in (0, -3):
        options: dict[str, Any] = {name: number}
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, not {number}$"):
            evaluate_lvlm(model, [load_task("coco", root)], QUICK, [], **options)


def test_results_that_are_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"model": "x", "samples_sha256": "y"}\n')
    with pytest.raises(ValueError, match="line 1 is not a result that can be used here"):
        read_answer_cells(path)


def test_the_command_and_its_report(
    llava_folder: Path,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        ["lvlm", "eval", str(llava_folder), "--root", str(root), "--tasks", "coco,pope-random", "--attack", "apgd2",
         "--eps", "8/255", "--limit", "3", "--out", "lvlm.jsonl", "--device", "cpu"]
    )  # fmt: skip
    assert "4 results are in lvlm.jsonl" in capsys.readouterr().out
    lines = [json.loads(line) for line in Path("lvlm.jsonl").read_text().splitlines()]
    assert [line["subset"] for line in lines] == [{"of": 4, "limit": 3, "seed": 42}] * 4
    main(["report", "lvlm.jsonl", "--out", "page"])
    page = Path("page/index.html").read_text(encoding="utf-8")
    assert '<h3>Captions and answers</h3>\n<p class="note">model: ' in page
    assert page.count("data:image/png") == 2 * 2 * 3
    assert "Provide a short caption for this image." in page
    assert "CIDEr-D" in Path("page/results.md").read_text(encoding="utf-8")


def test_mistakes_of_the_command(llava_folder: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--attack", "nonsense"], ["--tasks", "cocoa"], ["--eps", "2"]):
        with pytest.raises(SystemExit) as caught:
            main(["lvlm", "eval", str(llava_folder), "--root", str(root), "--device", "cpu", *words])
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_command_knows_every_task() -> None:
    assert typing.get_args(TaskName) == tuple(TASKS)


@pytest.mark.parametrize(
    "kind",
    ["no zip", "cut off", "large", "lying", "encrypted", "compressed otherwise", "no pixels", "long images"],
)
def test_answers_that_others_made(kind: str, tmp_path: Path) -> None:
    """Nothing is unpacked that is larger than a document may be."""
    about = {"model": "m", "vision": "v", "checkpoint_sha256": "0", "samples_sha256": "0", "version": "0"}
    how = {
        "subset": {},
        "attack": "clean",
        "attack_args": {},
        "norm": None,
        "eps": 0.0,
        "precision": "fp32",
        "seed": 0,
    }
    cell = AnswerCell(task="coco", metric="cider", **about, **how)  # type: ignore[arg-type]
    store = tmp_path / "r.jsonl"
    path = answers_path(store, cell)
    names = ("keys", "prompts", "clean", "answers", "before", "after")
    size = MAX_DOCUMENT_BYTES // 5 if kind == "large" else 10
    save_answers(store, cell, {name: np.zeros(size, np.uint8) for name in names})
    whole = path.read_bytes()
    if kind == "no zip":
        path.write_bytes(b"PK\x03\x04" + b"0" * 50)
    elif kind == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "lying":
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                with packed.open(f"{name}.npy", "w") as file:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (2**50,)}
                    np.lib.format.write_array_header_1_0(file, header)
    elif kind == "encrypted":
        # The flag of the first entry, in its own header and in the directory.
        place = whole.index(b"PK\x01\x02") + 8
        path.write_bytes(whole[:6] + b"\x01" + whole[7:place] + b"\x01" + whole[place + 1 :])
    elif kind == "compressed otherwise":
        place = whole.index(b"PK\x01\x02") + 10
        path.write_bytes(whole[:8] + b"\x63" + whole[9:place] + b"\x63" + whole[place + 1 :])
    elif kind in ("no pixels", "long images"):
        shape = (1, 3, 0, 8) if kind == "no pixels" else (1, 3, 1, 70_000)
        arrays = {name: np.zeros(shape if name in names[4:] else 1, np.uint8) for name in names}
        save_answers(store, cell, arrays)
    with pytest.raises(ValueError, match="is damaged"):
        read_answers(store, cell)
