"""Accuracies with their intervals, what they were measured under, and how both are written."""

import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

MINUS = "−"
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """An accuracy (0–1) and its 95 % interval. flagged: a check for masked gradients failed, do not believe it."""

    value: float
    low: float
    high: float
    flagged: bool = False

    @property
    def number(self) -> str:
        return f"{100 * self.value:.1f}"

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.0f}–{100 * self.high:.0f}"

    @property
    def seeds(self) -> int:
        """How many trainings it is the mean of."""
        return 1

    @property
    def is_change(self) -> bool:
        """Whether it is a difference of accuracies."""
        return False


@dataclass(frozen=True)
class Replicated(Estimate):
    """The mean of several training seeds; low and high are one sample standard deviation (n − 1) away from it."""

    trainings: int = 2

    @property
    def seeds(self) -> int:
        return self.trainings

    @property
    def deviation(self) -> float:
        return (self.high - self.low) / 2

    @property
    def interval(self) -> str:
        return f"±{100 * self.deviation:.1f}"


@dataclass(frozen=True)
class Change(Estimate):
    """A difference of accuracies; printed with its sign, in points. Without an interval, `low` and `high` are NaN."""

    low: float = math.nan
    high: float = math.nan

    @property
    def is_change(self) -> bool:
        return True

    @property
    def number(self) -> str:
        return signed(100 * self.value)

    @property
    def interval(self) -> str:
        return "" if math.isnan(self.low) else f"{signed(100 * self.low)} to {signed(100 * self.high)}"


@dataclass(frozen=True)
class ReplicatedChange(Replicated):
    """A difference of means over training seeds, ± one standard deviation of the difference of two such runs."""

    @property
    def is_change(self) -> bool:
        return True

    @property
    def number(self) -> str:
        return signed(100 * self.value)


@dataclass(frozen=True)
class Condition:
    """What the images went through: an attack in a norm ball, or nothing ("clean", eps 0)."""

    attack: str
    norm: str | None
    eps: float

    @property
    def title(self) -> str:
        return self.attack if not self.norm else f"{attack_title(self.attack)}, ε = {self.radius}"

    @property
    def radius(self) -> str:
        return radius(self.eps, self.norm)


def aggregate_seeds(found: Sequence[Estimate]) -> Estimate | None:
    """One seed as it is, several as mean ± sample standard deviation; None of none."""
    if len(found) < 2:
        return found[0] if found else None
    values = [one.value for one in found]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    flagged = any(one.flagged for one in found)
    return Replicated(mean, mean - deviation, mean + deviation, flagged, trainings=len(values))


def competitors(values: Mapping[Name, Estimate]) -> dict[Name, Estimate]:
    """Those that are ranked: of the most trainings. A mean of several and a single one are not ranked together."""
    most = max((value.seeds for value in values.values()), default=1)
    return {name: value for name, value in values.items() if value.seeds == most}


def attack_title(attack: str) -> str:
    """ "pgd10" → "PGD-10", "cw10x5" → "CW-10×5", "apgd-cex5+square" → "APGD-CE×5 + Square"; others stay as they are."""
    if match := re.fullmatch(r"(pgd|cw)(\d+)(?:x(\d+))?", attack):
        return f"{match[1].upper()}-{match[2]}" + (f"×{match[3]}" if match[3] else "")
    if ":" in attack:
        return attack  # a function of the user's
    return " + ".join(map(_member_title, attack.split("+")))


def _member_title(member: str) -> str:
    names = {
        "autoattack": "AutoAttack",
        "autoattack-rand": "AutoAttack (rand)",
        "fgsm": "FGSM",
        "square": "Square",
    }
    match = re.fullmatch(r"(.+?)(?:x(\d+))?", member)
    name, restarts = (match[1], match[2]) if match else (member, None)
    title = names.get(name, name.upper() if "-" in name else name)
    return f"{title}×{restarts}" if restarts else title


def radius(eps: float, norm: str | None) -> str:
    """ε as people write it: "2/255" for L∞, "0.5 (L2)" for L2; what is no number of grey levels stays as it is."""
    if norm == "l2":
        return f"{eps:.4g} (L2)"
    levels = round(eps * 255, 2)
    return f"{_trim(levels)}/255" if math.isclose(levels, eps * 255, rel_tol=1e-6) else f"{eps:.6g}"


def signed(points: float, digits: int = 1) -> str:
    """ "+3.2", "−0.4" with a true minus sign."""
    text = f"{abs(points):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if points > 0 else MINUS}{text}"


def _trim(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
