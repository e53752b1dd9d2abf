"""AutoAttack (Croce & Hein 2020): an ensemble of attacks without parameters to tune."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from advflyp.attack.apgd import APGD, TargetedAPGD
from advflyp.attack.base import Attack, Member, Stage
from advflyp.attack.fab import FAB
from advflyp.attack.names import RAND, STANDARD
from advflyp.attack.square import Square
from advflyp.attack.threat import Threat

# With the parameters of the published ensembles.
MEMBERS: dict[str, Member] = {
    "apgd-ce": APGD(loss="ce"),
    "apgd-dlr": APGD(loss="dlr"),
    "apgd-t": TargetedAPGD(),
    "fab-t": FAB(),
    "square": Square(),
    "apgd-ce-eot20": APGD(loss="ce", eot=20),
    "apgd-dlr-eot20": APGD(loss="dlr", eot=20),
}


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Attack):
    """Run the members one after another, each on the images that are still classified correctly.

    With fewer than ten classes there are fewer targets; with fewer than four the DLR losses are adapted (`losses.py`).

    Args:
        members: Attacks, or names in `MEMBERS`: by default the four published ones; `RAND` is for randomised models. In
            results, any other ensemble is named after its members.
    """

    members: tuple[Member | str, ...] = STANDARD

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [one for one in self.members if not isinstance(one, Member) and one not in MEMBERS]
        if wrong or not self.members:
            raise ValueError(
                f"AutoAttack's members are one or more of APGD, TargetedAPGD, FAB and Square, or names of them "
                f"({', '.join(MEMBERS)}); not {', '.join(map(str, wrong)) or 'none'}"
            )

    @property
    def attacks(self) -> list[Member]:
        """The members as objects."""
        return [MEMBERS[one] if isinstance(one, str) else one for one in self.members]

    def stages(self, threat: Threat) -> list[Stage]:
        return [stage for attack in self.attacks for stage in attack.stages(threat)] * self.restarts

    @property
    def needs_patches(self) -> bool:
        return any(attack.needs_patches for attack in self.attacks)

    @property
    def name(self) -> str:
        names = tuple(attack.name for attack in self.attacks)
        return self._named(
            {STANDARD: "autoattack", RAND: "autoattack-rand"}.get(names, "+".join(names)), "members"
        )

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        found: dict[str, Any] = {"restarts": self.restarts} if self.restarts > 1 else {}
        runs: Counter[Member] = Counter()
        for attack in self.attacks:
            runs[replace(attack, restarts=1)] += attack.restarts
        named: Counter[str] = Counter()
        for attack, restarts in runs.items():
            for name, values in replace(attack, restarts=restarts).arguments(threat, classes).items():
                named[name] += 1
                found[name if named[name] == 1 else f"{name} {named[name]}"] = values
        return found
