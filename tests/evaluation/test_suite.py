import json
import re
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, Lambda

import advflyp
import helpers
from advflyp import APGD, PGD, AutoAttack, DefenceTerms, Square, Threat
from advflyp.attack.base import SingleAttack
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.evaluator import Evaluator, Outcome
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.protocols import ADVFLYP
from advflyp.evaluation.results import append_cell, labels, read_cells
from advflyp.evaluation.retrieval import retrieval
from advflyp.evaluation.samples import read_samples, write_samples
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256, save_model, weights_sha256
from advflyp.model.load import load_model
from advflyp.report.console import verdicts
from advflyp.report.measure.results import Results


def test_cells(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    told = []
    cells = evaluate(
        tiny,
        ["mini"],
        ["clean", "pgd2"],
        [1 / 255, 4 / 255],
        out=out,
        limit=10,
        name="m",
        progress=told.append,
    )
    assert [(c.attack, c.eps) for c in cells] == [("clean", 0.0), ("pgd2", 1 / 255), ("pgd2", 4 / 255)]
    assert told == cells == read_cells(out)
    clean, weak, _ = cells
    assert (clean.n, clean.correct, clean.accuracy, clean.norm, clean.attack_args) == (10, 10, 1.0, None, {})
    assert clean.ci95[0] == pytest.approx(0.7224672, abs=5e-8)
    assert weak.attack_args == {
        "loss": "cross-entropy", "steps": 2, "step_size": 1 / 255, "restarts": 1, "random_start": True
    }  # fmt: skip
    assert weak.subset == {"of": 20, "limit": 10, "seed": 0}
    assert sum(n for _, n in weak.per_class.values()) == 10
    assert sum(correct for correct, _ in weak.per_class.values()) == weak.correct
    assert (weak.norm, weak.precision, weak.prompt, weak.split) == ("linf", "fp32", "a {} | the {}", "test")
    assert weak.checkpoint_sha256 == weights_sha256(tiny)
    assert weak.version == advflyp.__version__
    assert weak.accuracy == weak.correct / weak.n


def test_one_set_and_one_attack_need_no_list(tiny: CLIP, known_sets: LabelledSet) -> None:
    listed = evaluate(tiny, ["mini"], ["pgd2"], limit=4)
    alone = evaluate(tiny, "mini", "pgd2", limit=4)
    assert [replace(cell, seconds=0) for cell in alone] == [replace(cell, seconds=0) for cell in listed]


def test_what_is_stored_is_not_computed_again(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    original = Evaluator.run
    first = evaluate(tiny, ["mini"], ["clean", "pgd2"], [1 / 255], out=out)
    monkeypatch.setattr(Evaluator, "run", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate(tiny, ["mini"], ["clean", "pgd2"], 1 / 255, out=out) == first
    monkeypatch.setattr(Evaluator, "run", original)
    with torch.no_grad():
        tiny.net.logit_scale += 0.1
    evaluate(tiny, ["mini"], ["clean"], [1 / 255], out=out)
    assert len(read_cells(out)) == 3, "other weights are another measurement"


def test_a_set_that_no_table_describes_is_not_computed_again(tiny: CLIP, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    first = evaluate(tiny, ["mini/proxy"], ["clean"], out=out, limit=4)
    assert evaluate(tiny, ["mini/proxy"], ["clean"], out=out, limit=4) == first


def with_config(folder: Path, tmp_path: Path, **changes: dict) -> Path:
    """The same weights under another configuration."""
    copy = Path(shutil.copytree(folder, tmp_path / "-".join(changes)))
    config = json.loads((copy / "open_clip_config.json").read_text())
    for key, value in changes.items():
        config[key].update(value)
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    return copy


def test_the_same_weights_in_another_configuration_are_another_model(
    tiny_folder: Path, known_sets: LabelledSet, tmp_path: Path
) -> None:
    """OpenAI's weights with GELU in place of quick-GELU, say, or with ImageNet's normalisation."""
    out = tmp_path / "r.jsonl"
    folders = [
        tiny_folder,
        with_config(tiny_folder, tmp_path, model_cfg={"quick_gelu": True}),
        with_config(tiny_folder, tmp_path, preprocess_cfg={"mean": [0.0, 0.0, 0.0]}),
    ]
    models = [load_model(folder) for folder in folders]
    short = deepcopy(models[0])
    short.tokenizer = lambda texts: models[0].tokenizer([text[:9] for text in texts])
    own = deepcopy(models[0])
    own.__class__ = Inverted
    models += [short, own]
    assert len({weights_sha256(model) for model in models}) == 1
    assert len({config_sha256(model) for model in models}) == 5
    cells = [evaluate(model, "mini", "clean", out=out, name="m")[0] for model in models]
    assert read_cells(out) == cells and len({cell.accuracy for cell in cells}) > 1
    assert evaluate(load_model(folders[1]), "mini", "clean", out=out) == [cells[1]]
    results = Results(cells)
    assert len(results.models) == 5
    assert all(re.fullmatch(r"m \(config [0-9a-f]{8}\)", model) for model in results.models)


class Purified:
    """A preprocessing whose text does not show its setting."""

    def __init__(self, preprocess: Any, keep: float) -> None:
        self.preprocess, self._keep = preprocess, keep

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self._keep * self.preprocess(image)

    def __repr__(self) -> str:
        return "Purified()"


def test_what_is_added_to_a_model_makes_another(
    tiny_folder: Path, known_sets: LabelledSet, tmp_path: Path
) -> None:
    """A defence as a hook, a replaced method or a preprocessing, under one name and with the same weights."""
    out, models = tmp_path / "r.jsonl", [load_model(tiny_folder) for _ in range(8)]
    for model, factor in zip(models[1:3], (0, 1), strict=True):
        model.net.visual.register_forward_pre_hook(lambda module, given, factor=factor: (factor * given[0],))
    encode = models[3].net.encode_image
    models[3].net.encode_image = lambda images, normalize=False: encode(images, normalize=normalize)
    for model, keep in zip(models[4:6], (0.5, 0.0), strict=True):
        model.preprocess = Purified(model.preprocess, keep)
    for model, keep in zip(models[6:], (0.5, 0.0), strict=True):
        steps = model.preprocess.transforms  # type: ignore[attr-defined]
        model.preprocess = Compose([*steps, Lambda(lambda pixels, keep=keep: keep * pixels)])
    assert len({weights_sha256(model) for model in models}) == 1
    assert len({config_sha256(model) for model in models}) == 8
    cells = [evaluate(model, "mini", "clean", out=out, name="m")[0] for model in models]
    assert read_cells(out) == cells
    assert (
        cells[1].accuracy == cells[5].accuracy == cells[7].accuracy < cells[0].accuracy == cells[2].accuracy
    )


@dataclass(frozen=True, kw_only=True)
class FromElsewhere(SingleAttack):
    """An attack whose parameter is a network."""

    surrogate: nn.Module

    def perturb(
        self, victim: Any, images: torch.Tensor, labels: torch.Tensor, threat: Any, *, streams: Any
    ) -> torch.Tensor:
        return threat.project(images, images + self.surrogate.bias)


def test_an_attack_holds_what_json_cannot_store(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    surrogates = [nn.Linear(2, 1) for _ in range(2)]
    for bias, surrogate in enumerate(surrogates):
        nn.init.constant_(surrogate.bias, bias)
    attacks = [FromElsewhere(surrogate=surrogate) for surrogate in surrogates]
    cells = [
        evaluate(tiny, "mini", attack, 1.0, out=tmp_path / "r.jsonl", precision="fp32")[0]
        for attack in attacks
    ]
    assert cells[0].accuracy > cells[1].accuracy and read_cells(tmp_path / "r.jsonl") == cells
    assert cells[0].attack_args["surrogate"] != cells[1].attack_args["surrogate"]


def test_numbers_of_numpy_are_stored(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    given = {"limit": np.int64(4), "seed": np.int64(1), "batch_size": np.int64(2)}
    cells = evaluate(tiny, "mini", "pgd2", np.float32(0.25), out=out, **given)  # type: ignore[arg-type]
    assert read_cells(out) == cells == evaluate(tiny, "mini", "pgd2", 0.25, out=out, limit=4, seed=1)
    assert cells == evaluate(tiny, "mini", "pgd2", torch.tensor(0.25), out=out, limit=4, seed=1)  # type: ignore[arg-type]


def test_an_autocast_around_an_evaluation_changes_nothing(tiny: CLIP, known_sets: LabelledSet) -> None:
    """The results record the precision that was asked for."""
    images = torch.rand(2, 3, *tiny.image_size, generator=torch.Generator().manual_seed(0))
    classifier = tiny.classifier(known_sets.classes, known_sets.templates)
    alone = evaluator_logits(tiny, known_sets, images), classifier(images)
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluator_logits(tiny, known_sets, images), classifier(images)
    for one, other in zip(alone, inside, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)


def evaluator_logits(model: CLIP, labelled: LabelledSet, images: torch.Tensor) -> torch.Tensor:
    return Evaluator(model, labelled).logits_fp32(images)


def test_other_weights_than_float32_are_refused(tiny_folder: Path, known_sets: LabelledSet) -> None:
    """They would compute in a precision that the results do not record."""
    for convert in (CLIP.bfloat16, CLIP.half):
        with pytest.raises(ValueError, match=r"16 weights: convert them with model.float\(\)"):
            evaluate(convert(load_model(tiny_folder)), "mini", "clean")
    assert evaluate(load_model(tiny_folder).double(), "mini", "clean", limit=2)


class Counting:
    """An attack that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, victim, images, labels, threat, *, streams):
        self.calls += 1
        return threat.random_start(images, streams)


def test_an_attack_is_described_before_it_runs(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    """Otherwise the models of one call would not be compared under it."""
    other = deepcopy(tiny)
    with torch.no_grad():
        other.net.logit_scale += 0.1
    one, two = evaluate([tiny, other], known_sets, Counting(), out=tmp_path / "r.jsonl", limit=2)
    assert one.attack_args == two.attack_args and one.checkpoint_sha256 != two.checkpoint_sha256


def test_older_results_are_of_the_same_model(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    """They do not record the configuration."""
    out = tmp_path / "r.jsonl"
    older = [replace(cell, config_sha256="") for cell in evaluate(tiny, "mini", ["clean", "pgd2"])]
    for cell in older:
        append_cell(out, cell)
        write_samples(
            out, cell, **{name: torch.zeros(1, dtype=torch.int64) for name in Outcome.__annotations__}
        )
    assert evaluate(tiny, "mini", ["clean", "pgd2"], out=out) == older == read_cells(out)
    newer = evaluate(tiny, "mini", "pgd2", 2 / 255, out=out)
    assert newer[0].config_sha256 and len(Results(read_cells(out)).models) == 1
    unknown = replace(newer[0], config_sha256="f" * 64)
    assert labels([*older, *newer, unknown], ["m"] * 4)[0] == "m (config unknown)"
    with pytest.raises(ValueError, match="the same weights of .* in 2 configurations, which are not seeds"):
        Results([*newer, unknown], seeds=True)


def test_a_folder_with_other_contents_is_another_set(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path stays when a class is renamed or an image replaced; two folders may have the same relative path."""

    def write(folder: Path, *colours: str) -> None:
        for name, colour in zip(("cat", "dog"), colours, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), colour).save(folder / name / "0.png")

    measured: list[str] = []

    def sha() -> str:
        (cell,) = evaluate(
            tiny, "pets", "clean", out=tmp_path / "r.jsonl", watch=lambda cell, _: measured.append(cell.set)
        )
        return cell.settings["set_sha256"]

    hashes = []
    for place, colours in (("one", ("red", "blue")), ("two", ("red", "green"))):
        write(tmp_path / place / "pets", *colours)
        monkeypatch.chdir(tmp_path / place)
        hashes.append(sha())
    write(tmp_path / "two" / "pets", "red", "yellow")
    hashes.append(sha())
    (tmp_path / "two" / "pets" / "dog").rename(tmp_path / "two" / "pets" / "horse")
    hashes.append(sha())
    assert len(set(hashes)) == 4 == len(read_cells(tmp_path / "r.jsonl"))
    count = len(measured)
    assert sha() == hashes[-1] and len(measured) == count


def test_a_function_alone_is_an_attack(tiny: CLIP, known_sets: LabelledSet) -> None:
    (cell,) = evaluate(tiny, "mini", random_answer, limit=2)
    assert cell.attack.endswith(":random_answer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.nn.Linear(2, 2),), "takes an advflyp.CLIP or its name, not Linear: wrap a model of open_clip"),
        (([3],), "takes an advflyp.CLIP or its name, not int"),
        (("mini", torch.utils.data.TensorDataset()), "takes an advflyp.LabelledSet or its name, not TensorDataset"),
        (("mini", "mini/food", 3), "3 cannot be called"),
        (("mini", "mini/food", "clean", None), "eps is a number, 4 / 255 for four grey levels, not None"),
        (([],), "there is nothing to measure; give a model, a set and an attack"),
        (("mini", []), "nothing to measure"),
        (("mini", "mini/food", []), "nothing to measure"),
    ],
)  # fmt: skip
def test_other_objects_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)


class Inverted(CLIP):
    """A subclass that computes something else from the same weights."""

    def encode_image_raw(self, images: Tensor) -> Tensor:
        return super().encode_image_raw(1 - images)


def random_answer(victim, images, labels, threat, *, streams):
    return threat.random_start(images, streams)


def test_objects_in_place_of_names(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    """The same numbers as by name; what an object is, its cell says."""
    ensemble = AutoAttack(members=(APGD(steps=3), Square(queries=5)))
    attacks = ["clean", PGD(steps=2), ensemble, random_answer]
    out = tmp_path / "r.jsonl"
    cells = evaluate([tiny, tiny], [known_sets], attacks, [4 / 255], out=out)
    first, second = ([replace(cell, seconds=0) for cell in part] for part in (cells[:4], cells[4:]))
    assert first == second and read_cells(out) == cells[4:]
    assert [cell.attack for cell in cells[:4]] == [
        "clean", "pgd2", "apgd-ce(steps=3)+square(queries=5)", f"{__name__}:random_answer"
    ]  # fmt: skip
    assert cells[2].attack_args["apgd-ce"]["steps"] == 3 and cells[2].attack_args["square"]["queries"] == 5
    assert set(cells[3].attack_args) == {"source_sha256"}
    assert cells[0].set == known_sets.name and cells[0].subset == {"of": 20}
    assert cells[0].settings == {"set_sha256": known_sets.sha256}
    named = evaluate(tiny, ["mini"], ["clean", "pgd2"], [4 / 255])
    assert [cell.correct for cell in named] == [cell.correct for cell in cells[:2]]
    # An attack called by itself finds what the evaluation finds.
    evaluator = Evaluator(tiny, known_sets)
    images = torch.cat([images for _, images, _ in known_sets.batches(tiny.preprocess, 20)])
    for attack, cell in ((attacks[1], cells[1]), (ensemble, cells[2])):
        found = attack(evaluator.logits, images, known_sets.labels, Threat(eps=4 / 255))
        assert (evaluator.logits_fp32(found).argmax(1) == known_sets.labels).sum() == cell.correct
    with pytest.raises(ValueError, match="`name` is for one model, not for 2"):
        evaluate([tiny, tiny], [known_sets], name="m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ["pgd"]}, "there is no attack 'pgd'; did you mean 'pgd10'"),
        ({"eps": [0.0]}, "eps must be above 0"),
        ({"sets": ["mini/foood"]}, "there is no set 'mini/foood'; did you mean 'mini/food'"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": 2**63}, "seed must be at most 9,223,372,036,854,775,807 in size"),
        ({"seed": -(10**400)}, "seed must be at most 9,223,372,036,854,775,807 in size"),
        ({"seed": float("inf")}, "seed must be a whole number, not inf"),
        ({"protocol": "tecoa"}, "protocol must be a Protocol, such as find_protocol gives, not 'tecoa'"),
        ({"out": ""}, r"^\. is a folder; name a file, for example results\.jsonl$"),
    ],
)
def test_mistakes(tiny: CLIP, arguments: dict, message: str, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    with pytest.raises(ValueError, match=message):
        evaluate(tiny, **{"out": out, **arguments})
    assert not out.exists()


def test_every_image_is_in_the_parquet_beside(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    cells = evaluate(
        tiny, ["mini"], ["clean", "pgd3"], [1 / 255, 4 / 255], out=tmp_path / "r.jsonl", name="m"
    )
    table = pyarrow.parquet.read_table(tmp_path / "r.samples").to_pylist()
    assert len(table) == 3 * 20
    for cell in cells:
        rows = [row for row in table if (row["attack"], row["eps"]) == (cell.attack, cell.eps)]
        assert sum(row["correct"] for row in rows) == cell.correct
        for row in rows:
            assert row["predicted_clean"] == row["label"]
            assert (row["predicted_attacked"] == row["label"]) == row["correct"]


def test_a_cell_whose_parquet_is_gone_is_measured_again(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    arguments = (tiny, ["mini"], ["clean", "pgd2"], [1 / 255])
    clean, attacked = evaluate(*arguments, out=out, sanity=True, name="first")
    before = read_samples(out, attacked)
    for path in (tmp_path / "r.samples").glob("*pgd2*"):
        path.unlink()
    measured = []
    original = Evaluator.run
    monkeypatch.setattr(
        Evaluator,
        "run",
        lambda self, attack, *a, **k: (measured.append(attack.name), original(self, attack, *a, **k))[1],
    )
    again = evaluate(*arguments, out=out, name="second")
    assert measured == ["pgd2"], "what has its Parquet file stays as it is"
    assert again == [clean, replace(attacked, seconds=again[1].seconds)], "name and verdict are kept"
    assert read_cells(out) == again
    for a, b in zip(before, read_samples(out, again[1]), strict=True):
        assert a.tolist() == b.tolist()
    assert len(out.read_text().splitlines()) == 4, (
        "clean, pgd2, its verdict, pgd2 again: no line is taken away"
    )


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers import labelled_by
from advflyp.evaluation import suite
from advflyp.model.load import load_model
tiny = load_model({model!r})
suite.set_names, suite.load_set = lambda names: names, lambda name: labelled_by(tiny, 20)
def watch(cell, progress):
    if cell.attack != "clean" and progress.finished >= 8:
        os.kill(os.getpid(), signal.SIGKILL)
arguments = tiny, ["mini/noise"], ["clean", "pgd3x2"], [1 / 255]
suite.evaluate(*arguments, batch_size=1, out={out!r}, precision="fp32", watch=watch)
"""


@pytest.mark.slow
def test_a_killed_process_is_continued(
    tiny: CLIP, tiny_folder: Path, known_sets: LabelledSet, tmp_path: Path
) -> None:
    """kill -9 in the middle of an attacked cell."""
    out = tmp_path / "r.jsonl"
    script = KILLED.format(tests=str(Path(helpers.__file__).parent), model=str(tiny_folder), out=str(out))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    (journal,) = (tmp_path / "r.unfinished").iterdir()
    known = int((Journal(journal).read()["attacked"] >= 0).sum())
    assert len(read_cells(out)) == 1 and 8 <= known < 20
    told = []
    arguments = (tiny, ["mini"], ["clean", "pgd3x2"], [1 / 255])
    resumed = evaluate(*arguments, batch_size=1, out=out, watch=lambda cell, progress: told.append(progress))
    whole = evaluate(*arguments, batch_size=1, out=tmp_path / "whole.jsonl")
    assert told[0].finished >= known
    for a, b in zip(resumed, whole, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)
        for one, other in zip(read_samples(out, a), read_samples(tmp_path / "whole.jsonl", b), strict=True):
            assert one.tolist() == other.tolist()
    assert not (tmp_path / "r.unfinished").exists()


def test_a_cell_names_the_unreadable_pictures_of_its_own_part(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path
) -> None:
    known_sets.unreadable["00003"] = "in an evaluation of more of the set"
    (cell,) = evaluate(tiny, ["mini"], ["clean"], out=tmp_path / "r.jsonl", limit=9)
    assert cell.n == 9 and cell.unreadable == []


def test_an_interrupted_cell_is_continued(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    arguments = (tiny, ["mini"], ["pgd3x2"], [1 / 255])
    whole = evaluate(*arguments, batch_size=4)
    out, calls = tmp_path / "r.jsonl", []

    def stop(cell, progress) -> None:
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, batch_size=4, out=out, watch=stop)
    assert len(list((tmp_path / "r.unfinished").iterdir())) == 1
    (cell,) = evaluate(*arguments, batch_size=4, out=out)
    assert cell.correct == whole[0].correct
    assert not (tmp_path / "r.unfinished").exists()


def test_unreadable_pictures_are_named_and_left_out(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path
) -> None:
    known_sets.unreadable["00003"] = "truncated"
    object.__setattr__(known_sets, "batches", _without(known_sets, 3))
    (cell,) = evaluate(tiny, ["mini"], ["clean"], out=tmp_path / "r.jsonl")
    assert (cell.n, cell.unreadable, cell.subset) == (19, ["00003"], {"of": 20})


def _without(labelled: LabelledSet, place: int):
    original = labelled.batches

    def batches(preprocess, batch_size, index=None, workers=4, of=None):
        wanted = range(len(labelled)) if index is None else index
        return original(preprocess, batch_size, [i for i in wanted if i != place], workers)

    return batches


@pytest.mark.parametrize(("data", "seen"), [("mini/noise", True), ("mini", False)])
def test_a_set_that_the_model_was_trained_on(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path, data: str, seen: bool
) -> None:
    save_model(tiny, tmp_path / "run", {"trained_on": [data], "pflops": 1.5})
    (cell,) = evaluate(tmp_path / "run", ["mini"], ["clean"], [], out=tmp_path / "r.jsonl")
    assert cell.seen is seen and cell.pflops == 1.5 and read_cells(tmp_path / "r.jsonl") == [cell]
    said = [line.partition("clean: ")[2] for line in verdicts([cell])]
    assert said == ["the model was trained on this data; its accuracy here is not zero-shot"] * seen


def test_sanity_is_added_to_a_known_cell(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    (before,) = evaluate(tiny, ["mini"], ["pgd2"], [1 / 255], out=out)
    (after,) = evaluate(tiny, ["mini"], ["pgd2"], [1 / 255], out=out, sanity=True)
    assert before.sanity is None and after.sanity is not None
    assert read_cells(out) == [after]


def test_compiled(tiny: CLIP, known_sets: LabelledSet) -> None:
    calls = []
    tiny.visual.compile = lambda **options: calls.append(options)  # type: ignore[method-assign]
    evaluate(tiny, ["mini"], ["clean"], compile=True)
    assert calls == [{"dynamic": True}], "batches shrink; one graph for all sizes"


def test_inside_inference_mode(tiny: CLIP, known_sets: LabelledSet) -> None:
    (expected,) = evaluate(tiny, ["mini"], ["pgd2"], [4 / 255])
    with torch.inference_mode():
        (found,) = evaluate(tiny, ["mini"], ["pgd2"], [4 / 255])
    assert found.per_class == expected.per_class and 0 < found.correct < found.n


def test_graphs_are_for_cuda(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="^graphs needs a CUDA device, and the model is on cpu; leave it out$"
    ):
        evaluate(tiny, ["mini"], ["clean"], graphs=True, out=tmp_path / "r.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["r.samples", "r.unfinished"])
def test_a_file_in_the_way_of_a_folder_shows_before_anything_is_measured(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    message = rf"{name} is a file where .*r\.jsonl needs a folder; move it away"
    with pytest.raises(ValueError, match=message):
        evaluate("no-such-model", ["mini/flags"], out=tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=message):
        retrieval("no-such-model", tmp_path, out=tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("eurosat", "eurosat is not on this machine"),
        ("dtd", r"dtd is incomplete, .*test1\.txt is missing"),
        ("mini/photos", "mini/photos is not on this machine"),
    ],
)
def test_a_missing_set_is_said_before_another_is_measured(
    name: str, reason: str, tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing here"))
    (tmp_path / "sets" / "dtd").mkdir(parents=True)
    out = tmp_path / "results.jsonl"
    with pytest.raises(ValueError, match=reason):
        evaluate(tiny, ["mini/food", name], "clean", limit=4, out=out)
    assert not out.exists()


@pytest.mark.parametrize(
    "attack", ["encoder-both2", "pgd-lse-attention-2", "pgd-lse-attention-2@openai", "encoder-patches2@{}"]
)
def test_an_attack_on_patches_that_a_model_lacks_is_refused_before_others_run(
    attack: str, tiny: CLIP, tiny_rn_folder: Path, noise_set: LabelledSet, tmp_path: Path
) -> None:
    model = tiny if "{}" in attack else load_model(tiny_rn_folder)
    with pytest.raises(ValueError, match="ModifiedResNet, has no patch tokens; choose a ViT"):
        evaluate(model, noise_set, ["clean", attack.format(tiny_rn_folder)], out=tmp_path / "r.jsonl")
    assert not list(tmp_path.iterdir())


def test_members_on_patches_that_a_model_lacks_are_refused_before_others_run(
    tiny_rn_folder: Path, noise_set: LabelledSet, tmp_path: Path
) -> None:
    members = (Square(queries=5), APGD(against=DefenceTerms(terms=("attention",))))
    with pytest.raises(ValueError, match="ModifiedResNet, has no patch tokens; choose a ViT"):
        evaluate(
            load_model(tiny_rn_folder), noise_set, ["clean", AutoAttack(members=members)], out=tmp_path / "r"
        )
    assert not list(tmp_path.iterdir())


def test_a_set_that_does_not_fit_is_refused_before_another_is_measured(
    tiny: CLIP, noise_set: LabelledSet, tmp_path: Path
) -> None:
    long = ["very " * 20 + name for name in ("cat", "dog", "house")]
    more = LabelledSet(noise_set.dataset, ["cat", "dog", "house", "car"], name="more")
    named = ADVFLYP.changed(classnames=["a", "b", "c"])
    with pytest.raises(ValueError, match="more has 4 classes, and --classnames 3 names"):
        evaluate(tiny, [noise_set, more], "clean", out=tmp_path / "r.jsonl", protocol=named)
    with pytest.raises(ValueError, match="are the same text to"):
        evaluate(tiny, [noise_set, replace(noise_set, classes=long)], "clean", out=tmp_path / "r.jsonl")
    assert not list(tmp_path.iterdir())


def test_an_attack_needs_a_radius(tiny: CLIP, noise_set: LabelledSet) -> None:
    with pytest.raises(
        ValueError, match="^pgd2 needs a radius, and eps is empty; give one, for example 1/255$"
    ):
        evaluate(tiny, noise_set, ["clean", "pgd2"], eps=[])
    assert len(evaluate(tiny, noise_set, "clean", eps=[])) == 1


@pytest.mark.parametrize("name", ["r.samples", "r.unfinished"])
def test_results_are_not_called_as_a_folder_of_theirs(tmp_path: Path, name: str) -> None:
    message = (
        rf"{name} is what results call a folder of theirs; give the file another ending, as in .*r\.jsonl$"
    )
    with pytest.raises(ValueError, match=message):
        evaluate("no-such-model", ["mini/flags"], out=tmp_path / name)
    with pytest.raises(ValueError, match=message):
        retrieval("no-such-model", tmp_path, out=tmp_path / name)
    assert not list(tmp_path.iterdir())
