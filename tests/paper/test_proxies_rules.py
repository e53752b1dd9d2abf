"""The rules that decide the hypotheses of docs/proxies.md: every verdict of each, against scipy's own tests."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from advflyp.paper.experiments import make_plan
from advflyp.paper.proxies.rules import (
    HYPOTHESES,
    Verdict,
    all_of,
    by_seed,
    decide,
    is_indifferent,
    leads,
    never_leads,
)

BY_ID = {hypothesis.id: hypothesis for hypothesis in HYPOTHESES}
RUNS = sorted({run for h in HYPOTHESES for statement in h.statements for _, run in statement.terms})
# What seeds 0, 1 and 2 are away from a run's mean, in multiples of its spread.
PATTERN = (-1.0, 0.0, 1.0)
ON_PAIRS = "pairs-24060"


def accuracies(
    points: Mapping[str, float], spread: Mapping[str, float], seeds: int = 3
) -> dict[str, dict[int, float]]:
    """Runs at 40 % and so many points, with so much spread (points) over seeds."""
    return {
        run: {
            seed: 0.4 + (points.get(run, 0.0) + spread.get(run, 0.1) * PATTERN[seed]) / 100
            for seed in range(seeds)
        }
        for run in RUNS
    }


def of(hypothesis: str, robust: dict[str, dict[int, float]], clean: dict[str, dict[int, float]]) -> Verdict:
    return all_of([decide(one, robust, clean).verdict for one in BY_ID[hypothesis].statements])


# 2.48 times a difference's spread is half its interval over three seeds.
WORLDS: list[tuple[str, dict[str, float], dict[str, float], dict[str, float], Verdict]] = [
    # hypothesis, robust points, their spread, clean points, verdict
    ("H1", {}, {}, {}, "holds"),
    ("H1", {"tecoa-near-2200": 4, "pmg_aft-near-6651": 4}, {}, {}, "holds"),
    ("H1", {"pairs-2200": 3}, {}, {}, "does not hold"),
    ("H1", {"pmg_aft-near-6651": -3}, {}, {}, "does not hold"),
    ("H1", {}, {"pairs-6651": 2}, {}, "undecided"),
    ("H2", {"tecoa-foreign-2200": -5, "pmg_aft-foreign-2200": -5}, {}, {}, "holds"),
    ("H2", {}, {}, {}, "does not hold"),
    # It leads foreign by as much as near: the deficit does not grow.
    ("H2", {"pairs-2200": 5}, {}, {}, "does not hold"),
    # It grows, and yet pairs are behind.
    (
        "H2",
        {"tecoa-near-2200": 9, "pmg_aft-near-2200": 9, "tecoa-foreign-2200": 4, "pmg_aft-foreign-2200": -5},
        {},
        {},
        "does not hold",
    ),
    (
        "H2",
        {"tecoa-foreign-2200": -5, "pmg_aft-foreign-2200": -5},
        {"tecoa-foreign-2200": 4},
        {},
        "undecided",
    ),
    ("H3", {f"advflyp_logit-{ON_PAIRS}": 2}, {}, {f"advflyp_feature-{ON_PAIRS}": 2}, "holds"),
    ("H3", {f"advflyp_logit-{ON_PAIRS}": 2}, {}, {}, "does not hold"),
    # Of the feature's robust accuracy nothing is said.
    ("H3", {f"advflyp_logit-{ON_PAIRS}": 2, f"advflyp_feature-{ON_PAIRS}": 2}, {}, {}, "does not hold"),
    ("H3", {}, {f"advflyp_logit-{ON_PAIRS}": 3}, {f"advflyp_feature-{ON_PAIRS}": 2}, "undecided"),
    ("H4", {"same-near-660": 2}, {}, {}, "holds"),
    ("H4", {"tecoa-near-660": 2}, {}, {}, "does not hold"),
    ("H4", {"same-near-660": 2}, {"same-near-660": 2}, {}, "undecided"),
    ("H5", {"fare-near-660": 1}, {}, {}, "holds"),
    ("H5", {"fare-foreign-660": -6}, {}, {}, "does not hold"),
    ("H5", {"fare-near-6651": 6}, {}, {}, "does not hold"),
    ("H5", {}, {"fare-foreign-2200": 3}, {}, "undecided"),
    ("H6", {"tecoa-cifar-2200": -5, "pmg_aft-cifar-2200": -5}, {}, {}, "holds"),
    ("H6", {"tecoa-foreign-2200": -5, "pmg_aft-foreign-2200": -5}, {}, {}, "does not hold"),
    ("H6", {"tecoa-cifar-2200": -5, "pmg_aft-cifar-2200": -5}, {"tecoa-cifar-2200": 4}, {}, "undecided"),
]


@pytest.mark.parametrize("place", range(len(WORLDS)))
def test_worlds_whose_verdict_is_known(place: int) -> None:
    hypothesis, points, spread, clean, verdict = WORLDS[place]
    assert of(hypothesis, accuracies(points, spread), accuracies(clean, {})) == verdict


def test_every_hypothesis_is_seen_with_every_verdict() -> None:
    assert {(world[0], world[-1]) for world in WORLDS} == {
        (h.id, verdict) for h in HYPOTHESES for verdict in ("holds", "does not hold", "undecided")
    }


def test_too_few_seeds_decide_nothing() -> None:
    for seeds in (0, 1, 2):
        found = accuracies({"same-near-660": 30}, {}, seeds)
        (decision,) = (decide(one, found, found) for one in BY_ID["H4"].statements)
        assert (decision.verdict, decision.seeds) == ("undecided", seeds)
        assert (decision.difference is None) == (seeds == 0)
    # A run with more seeds than the other, or one that was not measured.
    found = accuracies({}, {})
    del found["same-near-660"][1]
    assert decide(BY_ID["H4"].statements[0], found, found).seeds == 2
    del found["same-near-660"]
    assert decide(BY_ID["H4"].statements[0], found, found).seeds == 0


def test_intervals_are_those_of_a_t_test() -> None:
    generator = np.random.default_rng(0)
    robust, clean = ({run: dict(enumerate(generator.random(4))) for run in RUNS} for _ in range(2))
    for hypothesis in HYPOTHESES:
        for statement in hypothesis.statements:
            values = clean if statement.clean else robust
            differences = sum(sign * np.array(list(values[run].values())) for sign, run in statement.terms)
            assert list(by_seed(statement, values).values()) == pytest.approx(differences, abs=1e-12)
            interval = ttest_1samp(differences, 0).confidence_interval()
            found = decide(statement, robust, clean).difference
            assert found is not None
            assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        # low and high in points; leads, never_leads, is_indifferent
        ((0.1, 5.0), ("holds", "does not hold", "undecided")),
        ((0.0, 5.0), ("undecided", "undecided", "undecided")),
        # Of a lead of less than a point both rules have two clauses that fit; the first decides.
        ((0.2, 0.8), ("holds", "holds", "holds")),
        ((-1.0, 1.0), ("does not hold", "holds", "holds")),
        ((-1.1, 0.5), ("undecided", "holds", "holds")),
        ((-0.5, 1.1), ("undecided", "undecided", "holds")),
        ((-5.0, -0.1), ("does not hold", "holds", "undecided")),
        ((-2.0, 2.0), ("undecided", "undecided", "holds")),
        ((2.1, 9.0), ("holds", "does not hold", "does not hold")),
        ((-9.0, -2.1), ("does not hold", "holds", "does not hold")),
        ((1.9, 2.1), ("holds", "does not hold", "undecided")),
    ],
    ids=str,
)
def test_clauses(points: tuple[float, float], expected: tuple[Verdict, ...]) -> None:
    low, high = (value / 100 for value in points)
    assert tuple(rule(low, high) for rule in (leads, never_leads, is_indifferent)) == expected


def test_and() -> None:
    assert all_of(["holds", "holds"]) == "holds"
    assert all_of(["holds", "undecided"]) == "undecided"
    assert all_of(["undecided", "does not hold", "holds"]) == "does not hold"


def test_the_plan_has_three_seeds_of_every_run_that_a_rule_needs() -> None:
    plan = make_plan("mini", seeds=3, proxies=True).only(["proxies"])
    for run in RUNS:
        assert list(plan.seeds_of(plan.run(run))) == [0, 1, 2], run
