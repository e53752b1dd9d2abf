"""The promise on the front page: a small flow always, the real one where slow tests run."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from advflyp import quickstart as module
from advflyp.evaluation.results import Cell, mean_interval, read_cells
from advflyp.quickstart import AFTER, BEFORE, EPS, quickstart


def mean(cells: list[Cell], model: str, attack: str, eps: float) -> float:
    return mean_interval([c for c in cells if (c.model, c.attack, c.eps) == (model, attack, eps)])[0]


def test_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_SET", 3)
    monkeypatch.setattr(module, "EPS_CURVE", (EPS, 4 / 255))
    real_train = module.train
    small = {"train.max_steps": 2, "validate.limit": 4, "data.limit": 256}
    monkeypatch.setattr(module, "train", lambda recipe, over, **k: real_train(recipe, over | small, **k))
    console = Console(file=io.StringIO(), width=100)
    outcome = quickstart(tmp_path / "q", console=console)
    assert outcome.report == tmp_path / "q/report/index.html"
    page = outcome.report.read_text()
    assert "<img" in page or "<svg" in page
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "flags" in printed and "mean of 10" in printed
    cells = read_cells(tmp_path / "q/results.jsonl")
    assert cells == outcome.cells
    sets = {cell.set for cell in cells}
    assert len(sets) >= 10
    assert len(cells) == 2 * len(sets) * 3
    assert {cell.model for cell in cells} == {BEFORE, AFTER}

    again = quickstart(tmp_path / "q", console=console)
    assert again.cells == cells, "a second call goes on where the first ended"
    assert len(read_cells(tmp_path / "q/results.jsonl")) == len(cells)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "q").touch()
    with pytest.raises(ValueError, match="is a file; name a folder with --out"):
        quickstart(tmp_path / "q")


@pytest.mark.slow
def test_the_claim(tmp_path: Path) -> None:
    """Mean robust accuracy at 2/255 up by at least 15 points, mean clean accuracy down by at most 6."""
    cells = quickstart(tmp_path / "q").cells
    robust = [mean(cells, model, "pgd10", EPS) for model in (BEFORE, AFTER)]
    clean = [mean(cells, model, "clean", 0.0) for model in (BEFORE, AFTER)]
    print(json.dumps({"robust": robust, "clean": clean}))
    assert robust[1] - robust[0] >= 0.15
    assert clean[0] - clean[1] <= 0.06
