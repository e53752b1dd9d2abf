"""Accuracies with their intervals, the conditions they were measured under, and how both are printed."""

import math
import re
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

MINUS = "−"
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """An accuracy (0–1), or a change of one, with its uncertainty.

    Attributes:
        value: The accuracy; with several seeds, their mean.
        low: Lower end of the 95 % interval, NaN if there is none; with several seeds, `value` minus one sample
            standard deviation (n − 1).
        high: The upper end.
        flagged: A check for masked gradients failed: do not trust the accuracy.
        seeds: Number of trainings averaged.
        is_change: A difference of accuracies, printed in points with its sign.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    flagged: bool = False
    seeds: int = 1
    is_change: bool = False

    @property
    def deviation(self) -> float:
        """The standard deviation over several trainings."""
        return (self.high - self.low) / 2

    @property
    def number(self) -> str:
        return signed(100 * self.value) if self.is_change else f"{100 * self.value:.1f}"

    @property
    def interval(self) -> str:
        """ "51–70", "±1.2" over seeds, "+3.2 to +9.0" for a change; "" if there is none."""
        if self.seeds > 1:
            return f"±{100 * self.deviation:.1f}"
        if math.isnan(self.low) or self.low == self.high:
            return ""
        if self.is_change:
            return f"{signed(100 * self.low)} to {signed(100 * self.high)}"
        return f"{100 * self.low:.0f}–{100 * self.high:.0f}"


@dataclass(frozen=True)
class Condition:
    """What was done to the images: an attack in a norm ball, or nothing ("clean", eps 0)."""

    attack: str
    norm: str | None
    eps: float

    @classmethod
    def of(cls, measured: Any) -> "Condition":
        """That of a cell, or of anything else with an `attack`, a `norm` and an `eps`."""
        return cls(measured.attack, measured.norm, measured.eps)

    @property
    def title(self) -> str:
        return self.attack if not self.norm else f"{attack_title(self.attack)}, ε = {self.radius}"

    @property
    def words(self) -> str:
        """The title without a comma, for a list: "PGD-10 2/255"."""
        return self.title.replace(", ε = ", " ")

    @property
    def radius(self) -> str:
        return radius(self.eps, self.norm)


def aggregate_seeds(found: Sequence[Estimate]) -> Estimate | None:
    """A single seed as it is, several as mean ± sample standard deviation; None if there are none."""
    if len(found) < 2:
        return found[0] if found else None
    values = [one.value for one in found]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    flagged = any(one.flagged for one in found)
    return Estimate(mean, mean - deviation, mean + deviation, flagged, seeds=len(values))


def competitors(values: Mapping[Name, Estimate]) -> dict[Name, Estimate]:
    """The estimates with the most seeds, which are ranked: a mean and a single run are not ranked together."""
    most = max((value.seeds for value in values.values()), default=1)
    return {name: value for name, value in values.items() if value.seeds == most}


def attack_title(attack: str) -> str:
    """ "pgd10" → "PGD-10", "cw10x5" → "CW-10×5", "apgd-cex5+square" → "APGD-CE×5 + Square"; others stay as they are."""
    if match := re.fullmatch(r"(pgd|cw|encoder(?:-patches|-both)?)(\d+)(?:x(\d+))?", attack):
        kind = match[1].capitalize() if match[1].startswith("encoder") else match[1].upper()
        return f"{kind}-{match[2]}" + (f"×{match[3]}" if match[3] else "")
    if "@" in attack:
        searched, _, where = attack.partition("@")
        return f"{attack_title(searched)} @ {where}"
    if ":" in attack:
        return attack  # a user's function
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
    """ε as usually written: "2/255" for L∞ (a decimal if that is not exact), "0.5 (L2)" for L2."""
    if norm == "l2":
        return f"{eps:.4g} (L2)"
    levels = round(eps * 255, 2)
    return f"{trimmed(levels)}/255" if math.isclose(levels, eps * 255, rel_tol=1e-6) else f"{eps:.6g}"


def signed(points: float, digits: int = 1) -> str:
    """ "+3.2", "−0.4" with a true minus sign."""
    text = f"{abs(points):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if points > 0 else MINUS}{text}"


def trimmed(value: float) -> str:
    """ "2", "0.5", "1.25": two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
