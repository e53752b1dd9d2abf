"""The promise on the front page: a small flow always, the real one where slow tests run."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from rich.console import Console

from advflyp.errors import RunError
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.results import Cell, mean_interval, read_cells
from advflyp.evaluation.suite import evaluate
from advflyp.method.base import Batch
from advflyp.training import loop
from advflyp.training.build import TrainingRun
from advflyp.training.update import Updated
from advflyp.use import quickstart as module
from advflyp.use.quickstart import AFTER, BEFORE, EPS, quickstart


def mean(cells: list[Cell], model: str, attack: str, eps: float) -> float:
    return mean_interval([c for c in cells if (c.model, c.attack, c.eps) == (model, attack, eps)])[0]


@pytest.mark.long
def test_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_SET", 3)
    monkeypatch.setattr(module, "EPS_CURVE", (EPS, 4 / 255))
    monkeypatch.setattr(module, "_seconds_per_step", lambda: 0.01)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    monkeypatch.setattr(module, "MEASURED", nothing)
    real_train = module.train
    small = {"train.max_steps": 2, "data.limit": 256, "data.batch_size": 16}
    monkeypatch.setattr(module, "train", lambda recipe, over, **k: real_train(recipe, over | small, **k))
    console = Console(file=io.StringIO(), width=100)
    report = quickstart(tmp_path / "q", console=console)
    assert report == tmp_path / "q/report/index.html"
    page = report.read_text()
    assert "<img" in page or "<svg" in page
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "flags" in printed and "mean of 10" in printed
    cells = read_cells(tmp_path / "q/results.jsonl")
    sets = {cell.set for cell in cells}
    assert len(sets) >= 10
    assert len(cells) == 2 * len(sets) * 3
    assert {cell.model for cell in cells} == {BEFORE, AFTER}

    quickstart(tmp_path / "q", console=console)
    assert read_cells(tmp_path / "q/results.jsonl") == cells, "a second call goes on where the first ended"


def test_the_results_that_come_with_the_weights_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, version and settings are those of the quickstart, or it would measure them again; made by
    advflyp eval mini --sets mini --attacks clean pgd10 --eps 1/255 2/255 4/255 8/255 --limit 150 --precision fp32
    """
    shutil.copytree(module.MEASURED, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Evaluator, "run", lambda *_, **__: pytest.fail("measured again"))
    cells = module._measure("mini", BEFORE, tmp_path, Console(quiet=True))
    assert len(cells) == 50 and {cell.model for cell in cells} == {BEFORE}


@pytest.mark.slow
def test_the_results_that_come_with_the_weights_are_right() -> None:
    shipped = {cell.key(): cell for cell in read_cells(module.MEASURED / module.RESULTS)}
    attacks = ("clean", "pgd10")
    for cell in evaluate("mini", ["mini/food"], attacks, module.EPS_CURVE, limit=150, precision="fp32"):
        # Rounding, which differs from processor to processor, may decide an image.
        assert abs(cell.correct - shipped[cell.key()].correct) <= 1


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "q").touch()
    with pytest.raises(ValueError, match="is a file; name a folder with --out"):
        quickstart(tmp_path / "q")
    for place, message in (
        ("report/index.html", "was not written by advflyp"),
        ("run/metrics.jsonl", "is not empty"),
    ):
        path = tmp_path / message / place
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(ValueError, match=message):
            quickstart(tmp_path / message)
        assert [one for one in (tmp_path / message).rglob("*") if one.is_file()] == [path]
        assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("pace", "left", "steps"),
    # 60 steps, 40 steps' worth of evaluation and 20 s of report take 220 s at 2 s a step.
    [(2.0, 221.0, 60), (2.0, 181.0, 40), (0.1, 220.0, 60), (60.0, 220.0, 20), (2.0, -10.0, 20)],
)
def test_a_slow_machine_trains_less_and_says_so(
    monkeypatch: pytest.MonkeyPatch, pace: float, left: float, steps: int
) -> None:
    monkeypatch.setattr(module, "_seconds_per_step", lambda: pace)
    console = Console(file=io.StringIO(), width=200)
    assert module._affordable(left, console) == steps
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{pace:.2f} s here: {steps} steps" in said
    assert ("shortened from 60 steps" in said) == (steps < 60)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quickstart of two steps, the fewest, on few images."""
    monkeypatch.setattr(module, "IMAGES_PER_SET", 3)
    monkeypatch.setattr(module, "EPS_CURVE", (EPS,))
    monkeypatch.setattr(module, "SETS", ("mini/food",))
    monkeypatch.setattr(module, "FEWEST_STEPS", 2)
    small = {"data.limit": 256, "data.batch_size": 16, "checkpoint.every": 1}
    monkeypatch.setattr(module, "KEYS", module.KEYS | small)
    monkeypatch.setattr(module, "_seconds_per_step", lambda: 1000.0)


@pytest.mark.parametrize("stop", ["at once", "after the step"])
def test_a_stopped_quickstart_keeps_the_length_it_chose(
    stop: str, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pace is by then: a run of another length would be another run."""
    real, done = loop.update, []

    def stopped(run: TrainingRun, batch: Batch) -> Updated:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        if stop == "after the step":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch)

    monkeypatch.setattr(loop, "update", stopped)
    with pytest.raises((KeyboardInterrupt, RunError)) as said:
        quickstart(tmp_path)
    if stop == "after the step":
        assert str(said.value) == "a signal stopped the training; the same command continues it"
    monkeypatch.setattr(loop, "update", real)
    monkeypatch.setattr(module, "_seconds_per_step", lambda: pytest.fail("the length is known"))
    quickstart(tmp_path)
    assert "max_steps = 2" in (tmp_path / "run/recipe.toml").read_text()


def test_the_pace_is_that_of_the_real_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS", module.KEYS | {"data.batch_size": 8})
    assert 0 < module._seconds_per_step() < 60


@pytest.mark.slow
def test_the_claim(tmp_path: Path) -> None:
    """Mean robust accuracy at 2/255 up by at least 15 points, mean clean accuracy down by at most 2."""
    quickstart(tmp_path / "q")
    cells = read_cells(tmp_path / "q/results.jsonl")
    robust = [mean(cells, model, "pgd10", EPS) for model in (BEFORE, AFTER)]
    clean = [mean(cells, model, "clean", 0.0) for model in (BEFORE, AFTER)]
    print(json.dumps({"robust": robust, "clean": clean}))
    assert robust[1] - robust[0] >= 0.15
    assert clean[0] - clean[1] <= 0.02
