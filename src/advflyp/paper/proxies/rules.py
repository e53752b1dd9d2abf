"""The hypotheses of docs/proxies.md and the rules that decide them, as written down before their data was trained on.

All functions are pure: accuracies go in by run and seed, verdicts come out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from advflyp.paper.efficiency import Seeds, mean_change
from advflyp.paper.proxies.plan import EVERY_PAIR, PAIRS, SAME, WORDS, Cell
from advflyp.report.measure.estimates import Estimate

Verdict = Literal["holds", "does not hold", "undecided"]
POINT, TWO_POINTS = 0.01, 0.02
FEWEST_SEEDS = 3
# The labelled methods that hypotheses compare with pairs.
RIVALS = {"tecoa": "TeCoA", "pmg_aft": "PMG-AFT"}
# (low, high) of a difference's 95 % interval → verdict. If two clauses apply, the first one decides.
Rule = Callable[[float, float], Verdict]


def leads(low: float, high: float) -> Verdict:
    """For "A > B": holds if the interval of A − B is above 0; does not if it is below 0 or within ±1 point."""
    if low > 0:
        return "holds"
    return "does not hold" if high < 0 or (low >= -POINT and high <= POINT) else "undecided"


def never_leads(low: float, high: float) -> Verdict:
    """For "not (A > B)": holds if the interval of A − B ends at 1 point at most; does not if it begins above 0."""
    if high <= POINT:
        return "holds"
    return "does not hold" if low > 0 else "undecided"


def is_indifferent(low: float, high: float) -> Verdict:
    """For "A and B alike": holds if the interval of A − B is within ±2 points; does not if entirely outside."""
    if low >= -TWO_POINTS and high <= TWO_POINTS:
        return "holds"
    return "does not hold" if low > TWO_POINTS or high < -TWO_POINTS else "undecided"


@dataclass(frozen=True)
class Statement:
    """A part of a hypothesis: a difference of trainings, and the rule for its interval.

    Attributes:
        words: What is claimed.
        terms: (sign, name of a run); the difference is the sum of their signed accuracies.
        clean: Whether it is about clean accuracy; otherwise about robust accuracy.
    """

    words: str
    terms: tuple[tuple[int, str], ...]
    rule: Rule
    clean: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """Statements that all have to hold."""

    id: str
    words: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class Decision:
    """The decision on a statement; `difference` is None if no seed has all of its runs."""

    statement: Statement
    difference: Estimate | None
    seeds: int
    verdict: Verdict


def decide(statement: Statement, robust: Mapping[str, Seeds], clean: Mapping[str, Seeds]) -> Decision:
    """Apply a statement's rule.

    Args:
        statement: The statement.
        robust: Run → seed → robust accuracy (0–1), the mean over the headline's sets. A run that was not measured may
            be missing.
        clean: The same for clean accuracy.
    """
    differences = by_seed(statement, clean if statement.clean else robust)
    found = mean_change(list(differences.values()))
    if found is None or len(differences) < FEWEST_SEEDS:
        return Decision(statement, found, len(differences), "undecided")
    return Decision(statement, found, len(differences), statement.rule(found.low, found.high))


def by_seed(statement: Statement, accuracies: Mapping[str, Seeds]) -> dict[int, float]:
    """Seed → difference, for seeds that all runs of the statement have."""
    found = [accuracies.get(run, {}) for _, run in statement.terms]
    common = set.intersection(*map(set, found))
    return {
        seed: sum(sign * one[seed] for (sign, _), one in zip(statement.terms, found, strict=True))
        for seed in sorted(common)
    }


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on statements joined by "and"."""
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if all(verdict == "holds" for verdict in verdicts) else "undecided"


def _more(run: str, than: str) -> tuple[tuple[int, str], ...]:
    return ((1, run), (-1, than))


def _falls_behind(distant: Cell) -> tuple[Statement, ...]:
    """On `distant` data the labelled methods' deficit is larger than on near data, and pairs lead."""
    words, number = WORDS[distant.data], distant.number
    near = Cell(number, "near")
    pairs = near.run(PAIRS)
    grows = tuple(
        Statement(
            f"{number:,}: (pairs − {label}, {words}) > (pairs − {label}, near)",
            (*_more(pairs, distant.run(name)), *_more(near.run(name), pairs)),
            leads,
        )
        for name, label in RIVALS.items()
    )
    lead = tuple(
        Statement(f"{words}, {number:,}: pairs > {label}", _more(pairs, distant.run(name)), leads)
        for name, label in RIVALS.items()
    )
    return grows + lead


def _hypotheses() -> tuple[Hypothesis, ...]:
    near, foreign = ({n: Cell(n, data) for n in (660, 2200, 6651)} for data in ("near", "foreign"))
    pairs = {n: cell.run(PAIRS) for n, cell in near.items()}
    no_lead = tuple(
        Statement(f"near, {n:,}: not (pairs > {label})", _more(pairs[n], near[n].run(name)), never_leads)
        for n in (2200, 6651)
        for name, label in RIVALS.items()
    )
    on_pairs = f"{PAIRS}-{EVERY_PAIR}"
    basic, logit, feature = (f"{name}-{on_pairs}" for name in ("advflyp", "advflyp_logit", "advflyp_feature"))
    fare = {n: cell.run("fare") for n, cell in near.items()}
    alike = (
        *(
            Statement(f"{n:,}: FARE, near and foreign alike", _more(fare[n], foreign[n].run("fare")), is_indifferent)
            for n in (660, 2200)
        ),
        Statement("near: FARE on 6,651 and 660 alike", _more(fare[6651], fare[660]), is_indifferent),
    )  # fmt: skip
    return (
        Hypothesis("H1", "At equal number and distance zero AdvFLYP does not lead from 2,200 images on", no_lead),
        Hypothesis(
            "H2", "With distance the labelled methods' deficit grows, and pairs lead", _falls_behind(foreign[2200])
        ),
        Hypothesis(
            "H3",
            "On pairs, logit regularisation helps robustness and feature regularisation clean accuracy",
            (
                Statement("all pairs: logit alone > AdvFLYP", _more(logit, basic), leads),
                Statement("all pairs, clean: feature alone > AdvFLYP", _more(feature, basic), leads, clean=True),
            ),
        ),
        Hypothesis(
            "H4",
            "On the same few images the contrastive loss on captions beats the cross-entropy",
            (
                Statement(
                    "near, 660: AdvFLYP_full on labelled images > TeCoA",
                    _more(near[660].run(SAME), near[660].run("tecoa")),
                    leads,
                ),
            ),
        ),
        Hypothesis("H5", "FARE is indifferent to number and distance", alike),
        Hypothesis(
            "H6",
            "H2 holds for photographs of classes that the pretraining captions name, too (CIFAR-10)",
            _falls_behind(Cell(2200, "cifar")),
        ),
    )  # fmt: skip


HYPOTHESES = _hypotheses()
