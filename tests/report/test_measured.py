import dataclasses

import numpy as np
import pytest

from advflyp.evaluation.results import mean_interval
from advflyp.report.measured import Change, Condition, Estimate, Replicated, Results, difference, together
from report.cells import SETS, cell

PGD = Condition("pgd10", "linf", 2 / 255)
COUNTS = {"a": [[31, 40, 53], [35, 47, 49], [28, 44, 58]], "b": [[20, 30, 40]]}


def seeded() -> list:
    return [
        cell(model, name, 2, correct, checkpoint_sha256=f"{model}{seed}".ljust(64, "0"))
        for model, runs in COUNTS.items()
        for seed, counts in enumerate(runs)
        for name, correct in zip(SETS, counts, strict=True)
    ]


def test_seeds_are_mean_and_sample_deviation() -> None:
    results = Results(seeded(), seeds=True)
    assert results.models == ["a", "b"] and results.replicated
    values = np.array(COUNTS["a"]) / 97
    for place, name in enumerate(SETS):
        one = results.get("a", name, PGD)
        assert isinstance(one, Replicated) and one.seeds == 3
        assert one.value == pytest.approx(values[:, place].mean(), abs=1e-12)
        assert one.deviation == pytest.approx(values[:, place].std(ddof=1), abs=1e-12)
    for sets in (SETS, SETS[1:]):
        mean = results.mean("a", PGD, sets)
        per_seed = values[:, [SETS.index(s) for s in sets]].mean(1)
        assert isinstance(mean, Replicated)
        assert mean.value == pytest.approx(per_seed.mean()) and mean.deviation == pytest.approx(
            per_seed.std(ddof=1)
        )
        assert mean.interval == f"±{100 * per_seed.std(ddof=1):.1f}"


def test_one_seed_keeps_its_interval() -> None:
    cells = [c for c in seeded() if c.model == "b"]
    results = Results(seeded(), seeds=True)
    assert results.get("b", SETS[0], PGD) == Estimate(cells[0].accuracy, *cells[0].ci95)
    value, interval = mean_interval(cells)
    assert results.mean("b", PGD) == Estimate(value, *interval)


def test_a_seed_that_lacks_a_set_is_not_in_the_mean() -> None:
    lacking = [c for c in seeded() if not (c.checkpoint_sha256.startswith("a2") and c.set == SETS[0])]
    results = Results(lacking, seeds=True)
    mean = results.mean("a", PGD, SETS)
    assert isinstance(mean, Replicated) and mean.seeds == 2
    assert mean.value == pytest.approx(np.array(COUNTS["a"][:2]).mean() / 97)
    assert results.mean("a", PGD, [*SETS, "mini/none"]) is None


def test_without_seeds_checkpoints_are_apart() -> None:
    assert Results(seeded()).models == ["a (a0000000)", "a (a1000000)", "a (a2000000)", "b"]


def test_models_not_measured_are_kept_in_their_order() -> None:
    results = Results(seeded(), seeds=True, models=["c", "b", "a"])
    assert results.models == ["c", "b", "a"] and results.get("c", SETS[0], PGD) is None
    assert results.mean("c", PGD) is None and results.hashes["c"] == []


def test_the_largest_of_two_measurements_counts_among_seeds() -> None:
    few = cell("a", SETS[0], 2, 5, n=10)
    many = cell("a", SETS[0], 2, 60, n=97)
    for order in ([few, many], [many, few]):
        one = Results(order, seeds=True).get("a", SETS[0], PGD)
        assert one is not None and one.value == 60 / 97
        with pytest.raises(ValueError, match="twice, with different n"):
            Results(order)


def test_masked_gradients_flag_the_value_and_the_mean() -> None:
    verdict = {"n": 50, "passed": False, "failed": ["noise beats PGD"]}
    cells = seeded()
    cells[0] = dataclasses.replace(cells[0], sanity=verdict)
    results = Results(cells, seeds=True)
    found = [results.get("a", name, PGD) for name in SETS]
    assert [one.flagged for one in found if one] == [True, False, False]
    mean, other = results.mean("a", PGD), results.mean("b", PGD)
    assert mean and mean.flagged and other and not other.flagged


def test_difference_of_seeds() -> None:
    def of(values: list[float]) -> Estimate:
        found = together([Estimate(value, 0.0, 1.0) for value in values])
        assert found is not None
        return found

    before, after = [0.2, 0.24, 0.28], [0.4, 0.5]
    change = difference(of(before), of(after))
    reach = np.hypot(np.std(before, ddof=1), np.std(after, ddof=1))
    assert isinstance(change, Change) and change.value == pytest.approx(0.21)
    assert (change.high - change.value, change.value - change.low) == (pytest.approx(reach),) * 2
    alone = difference(Estimate(0.3, 0.1, 0.5), of(after))
    assert alone.high - alone.value == pytest.approx(np.std(after, ddof=1))
