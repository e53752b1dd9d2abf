from pathlib import Path

import numpy as np
import pytest

from advflyp.attack.apgd import APGD
from advflyp.lvlm.evaluate import evaluate_lvlm, scorer
from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.protocol import LVLMProtocol, Round
from advflyp.lvlm.results import read_answer_cells, read_answers
from advflyp.lvlm.tasks import load_task

QUICK = LVLMProtocol(
    name="quick",
    attack=APGD(loss="dlr", steps=2),
    rounds={"cider": (Round(0), Round("best")), "vqa": (Round(0), Round("target", target="maybe"))},
)
EPS = [8 / 255]


@pytest.fixture(scope="module")
def model(llava_folder: Path) -> LVLM:
    return load_lvlm(llava_folder, device="cpu")


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
    assert 0 < np.abs(kept["before"].astype(int) - kept["after"]).max() <= 9
    score = scorer(tasks[0])
    assert cells[1].score == pytest.approx(np.mean([score(i, str(a)) for i, a in enumerate(kept["answers"])]))


def test_nothing_is_measured_twice(
    model: LVLM, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, store = [load_task("coco", root)], tmp_path / "results.jsonl"
    first = evaluate_lvlm(model, tasks, QUICK, EPS, out=store)
    monkeypatch.setattr(LVLM, "answer", lambda *_, **__: pytest.fail("measured again"))
    assert evaluate_lvlm(model, tasks, QUICK, EPS, out=store) == first
