"""The choice of AdvFLYP_soft's mixture: on validation, each training once."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import soft_targets


def test_each_training_once(
    recipe: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe.write_text(recipe.read_text() + '[validate]\nset = "mini/val"\nlimit = 16\n')
    arguments = soft_targets.Arguments(
        out=tmp_path / "mixture",
        mixtures=(0, 0.5),
        seeds=(7,),
        recipe=str(recipe),
        model=str(tiny_folder),
        steps=2,
    )
    soft_targets.main(arguments)
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[1:3]] == [["0", "7"], ["0.5", "7"]]
    assert printed.splitlines()[-1].startswith("method.soft_targets = 0")
    for mixture in ("0", "0.5"):
        resolved = (tmp_path / f"mixture/{mixture}-7/recipe.toml").read_text()
        assert f"soft_targets = {float(mixture)}" in resolved and "max_steps = 2" in resolved

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(soft_targets, "train", never)
    soft_targets.main(arguments)
    assert capsys.readouterr().out == printed


def test_only_the_end_counts(tmp_path: Path) -> None:
    assert soft_targets.last(tmp_path, 40) is None
    lines = [
        {"kind": "validate", "step": step, "time": 1.0, "clean": step / 100, "robust": 0.1}
        for step in (0, 40)
    ]
    lines.insert(1, {"kind": "train", "step": 40, "time": 0.5})
    written = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(f'{written}{{"kind": "val')  # killed as it wrote the next line
    assert soft_targets.last(tmp_path, 40) == (0.4, 0.1) and soft_targets.last(tmp_path, 20) is None


def test_the_best_mean_and_of_equal_ones_the_smallest() -> None:
    scores = {0.5: [(0.3, 0.1), (0.3, 0.1)], 0.25: [(0.2, 0.2), (0.3, 0.1)], 0.75: [(0.9, 0.0), (0.0, 0.0)]}
    assert soft_targets.chosen({**scores, 0.75: [(0.3, 0.0), (0.3, 0.0)]}) == 0.25
    assert soft_targets.chosen(scores) == 0.75
