"""The attacks of an evaluation by name, each a list of stages run on the points still standing."""

import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from advflyp.attack.autoattack import MEMBERS, RAND, STANDARD, arguments
from advflyp.attack.losses import cross_entropy, margin
from advflyp.attack.pgd import pgd_points
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.config import nearest, suggest
from advflyp.own import is_own, own

# (victim, images, labels, threat, streams=…) → adversarial images
Stage = Callable[..., Tensor]
LOSSES = {"pgd": ("cross-entropy", cross_entropy), "cw": ("margin", margin)}
KNOWN = (
    "clean, noise, pgdN, cwN (N steps; pgd10x5: five restarts), autoattack, autoattack-rand, or members of AutoAttack "
    "joined by '+' (apgd-ce, apgd-dlr, apgd-t, fab-t, square)"
)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack by name; `parse` makes one.

    clean               none: the images as they are
    noise               one uniform draw from the ball: what any attack has to beat
    pgd10, cw10         N steps on the cross-entropy, or on the margin of Carlini & Wagner, from a random start
    pgd10x5             with five restarts
    autoattack          APGD-CE, targeted APGD-DLR, targeted FAB, Square (Croce & Hein 2020)
    autoattack-rand     its variant for randomised models: APGD-CE and APGD-DLR on the mean of 20 gradients
    apgd-ce+square      some of AutoAttack's members, in this order; its name says which
    my_module:my_attack a function of one's own, see docs/extend.md

    kind:     what the name begins with;  steps, restarts: of pgd and cw;  members: of AutoAttack
    """

    name: str
    kind: str
    steps: int = 0
    restarts: int = 1
    members: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> "Attack":
        """ValueError for a name that is no attack."""
        if name in ("clean", "noise"):
            return cls(name=name, kind=name)
        if name in ("autoattack", "autoattack-rand"):
            return cls(name=name, kind="autoattack", members=STANDARD if name == "autoattack" else RAND)
        if match := re.fullmatch(r"(pgd|cw)([1-9]\d*)(?:x([1-9]\d*))?", name):
            return cls(name=name, kind=match[1], steps=int(match[2]), restarts=int(match[3] or 1))
        if is_own(name):
            own(name)
            return cls(name=name, kind="own")
        members = tuple(name.split("+"))
        if all(member in MEMBERS for member in members):
            return cls(name=name, kind="autoattack", members=members)
        if len(members) > 1:
            wrong = next(member for member in members if member not in MEMBERS)
            raise ValueError(f"'{name}': AutoAttack has no member '{wrong}'{suggest(wrong, MEMBERS)}")
        known = ["clean", "noise", "pgd10", "cw10", "autoattack", "autoattack-rand", *MEMBERS]
        raise ValueError(f"there is no attack '{name}'{nearest(name, known) or f'; known: {KNOWN}'}")

    @property
    def perturbs(self) -> bool:
        return self.kind != "clean"

    def step_size(self, threat: Threat) -> float:
        """α of pgd and cw: the paper's 1/255 for L∞, 2.5·ε/steps for L2, where a grey level is no natural unit."""
        return 1 / 255 if threat.norm == "linf" else 2.5 * threat.eps / self.steps

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        """Every parameter that changes the outcome, as results record them."""
        if threat is None or self.kind == "noise":
            return {}
        if self.kind == "own":
            # The name alone would not say when the code has become another.
            source = inspect.getsource(inspect.getmodule(own(self.name)) or own(self.name))
            return {"source_sha256": hashlib.sha256(source.encode()).hexdigest()}
        if self.kind == "autoattack":
            return {member: arguments(member, classes) for member in self.members}
        return {
            "loss": LOSSES[self.kind][0],
            "steps": self.steps,
            "step_size": self.step_size(threat),
            "restarts": self.restarts,
            "random_start": True,
        }

    def stages(self, threat: Threat) -> list[Stage]:
        """What is run one after another, each on the points that still stand."""
        if self.kind == "noise":
            return [_noise]
        if self.kind == "own":
            return [own(self.name)]
        if self.kind == "autoattack":
            return [MEMBERS[member] for member in self.members]
        _, loss = LOSSES[self.kind]
        one = partial(pgd_points, loss=loss, steps=self.steps, step_size=self.step_size(threat))
        return [one] * self.restarts


def _noise(victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams) -> Tensor:
    return threat.random_start(images, streams)
