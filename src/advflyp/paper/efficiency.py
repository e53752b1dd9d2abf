"""Accuracy against arithmetic: each way to cheaper training, compared with full training, paired by seed."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from scipy.stats import t

from advflyp.paper.study import Exhibit, Study
from advflyp.report.measure.estimates import Condition, Estimate, aggregate_seeds
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted

Seeds = Mapping[int, float]
# Experiment → the baseline row.
BASELINES = {"cost": "AdvFLYP_full", "cost-other": "AdvFLYP_full, ResNet"}


def efficiency_table(study: Study, experiment: Exhibit) -> Table:
    """A row for each training: its arithmetic, its accuracies, and their differences from the experiment's baseline.

    Accuracies are over all measured seeds. Differences are paired over the seeds that both trainings have, with the
    95 % interval of Student's t (none for a single seed). "Robust" is PGD-10 accuracy averaged over the radii.

    Args:
        study: The results.
        experiment: One of `BASELINES`, with its rows, sets and radii.
    """
    baseline = BASELINES[experiment.id]
    results = _results(study, experiment)
    attacked = _attacked(results)
    conditions = [c for c in (results.clean, *attacked) if c is not None]
    strong = [c for c in results.attacked if c.attack == "autoattack"]
    robust = {row: _robust(results, row, attacked, experiment.sets, study) for row in experiment.rows}
    clean = {
        row: _by_seed(results, row, results.clean, experiment.sets, study) if results.clean else {}
        for row in experiment.rows
    }
    whole = results.pflops(baseline)
    rows: list[list[Value]] = []
    for row in experiment.rows:
        if not results.hashes[row]:
            continue
        spent = results.pflops(row)
        cost: list[Value] = [None, None]
        if spent is not None:
            cost = [f"{spent:.3g}", f"{100 * spent / whole:.0f} %" if whole else None]
        rows.append(
            [
                row,
                str(len(clean[row].keys() | robust[row].keys())),
                *cost,
                *(results.mean(row, condition, experiment.sets) for condition in conditions),
                mean_of_seeds(robust[row]),
                *(
                    None if row == baseline else paired(found[row], found[baseline])
                    for found in (clean, robust)
                ),
                *(results.mean(row, condition, experiment.sets) for condition in strong),
            ]
        )
    return Table(
        title=f"{experiment.title}: accuracy in %, and differences to {baseline} in points",
        columns=[
            "training", "seeds", "PFLOPs", "of full",
            *(c.title.replace(", ", "\n") for c in conditions),
            "robust\n(mean)", "clean:\ndifference", "robust:\ndifference",
            *(c.title.replace(", ", "\n") for c in strong),
        ],
        rows=rows,
        note="Differences: paired over the seeds of both, 95 % interval of Student's t."
        + _precisions(experiment, study),
    )  # fmt: skip


def against_cost_points(study: Study, experiment: Exhibit) -> dict[str, tuple[float, Estimate]]:
    """Training → (PFLOPs, robust accuracy), for trainings with both known."""
    results = _results(study, experiment)
    points = {}
    for row in experiment.rows:
        spent = results.pflops(row)
        robust = mean_of_seeds(_robust(results, row, _attacked(results), experiment.sets, study))
        if spent is not None and robust is not None:
            points[row] = (spent, results.drawn(robust))
    return points


def mean_of_seeds(found: Seeds) -> Estimate | None:
    """The mean and standard deviation over seeds (no deviation for a single seed); None without seeds."""
    return aggregate_seeds([Estimate(value, value, value) for value in found.values()])


def paired(found: Seeds, baseline: Seeds) -> Estimate | None:
    """The mean paired difference over shared seeds, with the 95 % interval of Student's t; None if they share none."""
    return mean_change([found[seed] - baseline[seed] for seed in sorted(found.keys() & baseline.keys())])


def mean_change(differences: Sequence[float]) -> Estimate | None:
    """The mean of paired differences with the 95 % interval of Student's t; None if there are none."""
    if not differences:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Estimate(mean, is_change=True)
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, is_change=True)


def _precisions(experiment: Exhibit, study: Study) -> str:
    """The number of models per precision (of training and attacks) as a note; empty if all have the same."""
    found = {cell.checkpoint_sha256: cell.precision for cell in experiment.cells(study) if cell.eps}
    counts = Counter(found.values())
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{name} for {counted(n, 'model')}" for name, n in sorted(counts.items()))
    return f" Precision: {listed}."


def _results(study: Study, experiment: Exhibit) -> Results:
    """Not `experiment.results`, which keeps only the seeds that all rows have."""
    return Results(experiment.cells(study), seeds=True, largest=True, models=experiment.rows)


def _attacked(results: Results) -> list[Condition]:
    return [c for c in results.attacked if c.attack == "pgd10"]


def _by_seed(results: Results, row: str, condition: Condition, sets: Sequence[str], study: Study) -> Seeds:
    means = results.means(row, condition, sets)
    return {study.seed_of[sha]: one.value for sha, one in means.items()}


def _robust(
    results: Results, row: str, conditions: Sequence[Condition], sets: Sequence[str], study: Study
) -> Seeds:
    """Seed → accuracy averaged over the radii, for seeds that have all radii."""
    found = [_by_seed(results, row, condition, sets, study) for condition in conditions]
    common = set.intersection(*(set(one) for one in found)) if found else set()
    return {seed: statistics.fmean(one[seed] for one in found) for seed in common}
