"""The table of accuracy against arithmetic, against scipy's own paired test."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from advflyp.evaluation.results import append_cell
from advflyp.paper.efficiency import against_cost_points, efficiency_table
from advflyp.paper.page import paper_report
from advflyp.paper.study import read_study
from advflyp.report.measure.estimates import Estimate
from report.cells import cell
from report.sample import sha

FULL, FAST = "AdvFLYP_full", "AdvFLYP_fast"
SEEDS = {FULL: 3, FAST: 4}
COST = {FULL: 2.0, FAST: 1.0}
ATTACKS = [("clean", 0), ("pgd10", 1), ("pgd10", 2), ("autoattack", 1)]


@pytest.fixture(scope="module")
def accuracy() -> dict[tuple[str, int, str, str, int], float]:
    generator = np.random.default_rng(0)
    return {
        (label, seed, name, attack, grey): generator.integers(0, 101) / 100
        for label, count in SEEDS.items()
        for seed in range(count)
        for name in ("food", "flags")
        for attack, grey in ATTACKS
        if attack != "autoattack" or seed == 0
    }


@pytest.fixture(scope="module")
def folder(
    accuracy: dict[tuple[str, int, str, str, int], float], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("study")
    (path / "results").mkdir()
    for (label, seed, name, attack, grey), value in accuracy.items():
        found = cell(
            label, f"mini/{name}", grey, round(100 * value), 100,
            attack=attack, checkpoint_sha256=sha(label, seed), pflops=COST[label],
        )  # fmt: skip
        append_cell(path / "results" / f"{label}-s{seed}.jsonl", found)
    experiment = {
        "id": "cost", "title": "Cost", "rows": [FULL, FAST, "not trained yet"], "sets": ["mini/food", "mini/flags"],
        "attacks": ["clean", "pgd10", "autoattack"], "eps": [1 / 255, 2 / 255],
    }  # fmt: skip
    runs = [{"name": n, "label": n, "recipe": "x.toml", "overrides": {}} for n in SEEDS]
    (path / "plan.json").write_text(json.dumps({"scale": "mini", "runs": runs, "experiments": [experiment]}))
    return path


def test_differences_are_those_of_a_paired_test(
    folder: Path, accuracy: dict[tuple[str, int, str, str, int], float]
) -> None:
    study = read_study(folder)
    table = efficiency_table(study, study.experiments[0])
    rows = {row[0]: dict(zip(table.flat_columns(), row, strict=True)) for row in table.rows}
    assert list(rows) == [FULL, FAST] and [rows[label]["seeds"] for label in rows] == ["3", "4"]
    assert (rows[FAST]["PFLOPs"], rows[FAST]["of full"]) == ("1", "50 %")

    def means(label: str, attack: str, greys: tuple[int, ...], seeds: int) -> np.ndarray:
        each = [
            [accuracy[label, seed, name, attack, grey] for name in ("food", "flags") for grey in greys]
            for seed in range(seeds)
        ]
        return np.array(each).mean(1)

    for column, attack, greys in (("clean", "clean", (0,)), ("robust", "pgd10", (1, 2))):
        change = rows[FAST][f"{column}: difference"]
        assert (
            isinstance(change, Estimate) and change.is_change and rows[FULL][f"{column}: difference"] is None
        )
        found = ttest_rel(means(FAST, attack, greys, 3), means(FULL, attack, greys, 3)).confidence_interval()
        assert (change.low, change.high) == pytest.approx((found.low, found.high), abs=1e-12)
    robust = rows[FAST]["robust (mean)"]
    assert isinstance(robust, Estimate) and robust.seeds == 4
    assert robust.value == pytest.approx(means(FAST, "pgd10", (1, 2), 4).mean(), abs=1e-12)
    points = against_cost_points(study, study.experiments[0])
    assert {label: cost for label, (cost, _) in points.items()} == COST
    assert points[FAST][1] == robust
    strong = rows[FAST]["AutoAttack ε = 1/255"]
    assert isinstance(strong, Estimate) and strong.seeds == 1


@pytest.mark.parametrize("attack", ["pgd10", "autoattack"])
def test_without_clean_results_there_is_no_difference_of_theirs(folder: Path, attack: str) -> None:
    study = read_study(folder)
    table = efficiency_table(study, replace(study.experiments[0], attacks=[attack]))
    for row in table.rows:
        found = dict(zip(table.flat_columns(), row, strict=True))
        assert found["clean: difference"] is None
        assert (found["robust: difference"] is not None) == (row[0] == FAST and attack == "pgd10")


def test_the_report_shows_it(folder: Path, tmp_path: Path) -> None:
    out = paper_report(folder, tmp_path / "out").parent
    assert (out / "tables" / "cost-levers.csv").is_file()
    note = "paired over the seeds of both"
    page = (out / "index.html").read_text()
    assert note in page and note in (out / "results.md").read_text()
    assert 'aria-label="robust accuracy against the arithmetic of the finetuning"' in page


def test_a_study_of_two_precisions_says_so(folder: Path, tmp_path: Path) -> None:
    study = read_study(folder)
    assert "Precision" not in efficiency_table(study, study.experiments[0]).note
    shutil.copytree(folder, tmp_path / "mixed")
    path = tmp_path / f"mixed/results/{FAST}-s3.jsonl"
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    study = read_study(tmp_path / "mixed")
    note = efficiency_table(study, study.experiments[0]).note
    assert note.endswith(" Precision: bf16 for 1 model, fp32 for 6 models.")
