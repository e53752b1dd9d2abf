"""A plan cut down to seconds, for `advflyp reproduce`."""

import dataclasses
from pathlib import Path

from advflyp.evaluation.results import read_cells
from advflyp.paper.experiments import make_plan
from advflyp.paper.plan import Measure, Plan

SETS = ("mini/food", "mini/flags")


def small(model: Path, *, seeds: int = 1, grid: tuple[float, ...] = ()) -> Plan:
    """Table 4 with two trained rows: 2 steps of 16 pairs, 4 images a set."""
    plan = make_plan("mini", seeds=seeds, steps=2)
    measure = Measure(sets=SETS, attacks=("clean", "pgd2"), eps=(1 / 255,), limit=4)
    keys = {"model.name": str(model), "data.batch_size": 16, "train.max_steps": 2, "train.precision": "fp32"}
    runs = tuple(
        dataclasses.replace(run, overrides=run.overrides | keys)
        for run in plan.runs
        if run.name in ("original", "advflyp", "advflyp_full")
    )
    names = tuple(run.name for run in runs)
    first = next(e for e in plan.experiments if e.id == "table4")
    experiment = dataclasses.replace(first, runs=names, attacks=("clean", "pgd2"), measures=(measure,))
    return dataclasses.replace(plan, runs=runs, experiments=(experiment,), grid=grid)


def accuracies(folder: Path) -> dict[str, list[tuple[str, str, int]]]:
    return {
        path.stem: [(cell.set, cell.attack, cell.correct) for cell in read_cells(path)]
        for path in sorted((folder / "results").glob("*.jsonl"))
    }
