"""The attacks of an evaluation by name, each a list of stages run on the points still standing."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from advflyp.attack.autoattack import MEMBERS, arguments
from advflyp.attack.losses import cross_entropy, margin
from advflyp.attack.names import read_attack_name
from advflyp.attack.pgd import pgd_points
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.plugins import load_object

# (victim, images, labels, threat, streams=…) → adversarial images
Stage = Callable[..., Tensor]
LOSSES = {
    "fgsm": ("cross-entropy", cross_entropy),
    "pgd": ("cross-entropy", cross_entropy),
    "cw": ("margin", margin),
}


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack by name; `parse` makes one.

    clean               none: the images as they are
    noise               one uniform draw from the ball: what any attack has to beat
    fgsm                one step of length ε on the cross-entropy, from the image itself (Goodfellow et al. 2015)
    pgd10, cw10         N steps on the cross-entropy, or on the margin of Carlini & Wagner, from a random start
    pgd10x5             with five restarts
    autoattack          APGD-CE, targeted APGD-DLR, targeted FAB, Square (Croce & Hein 2020)
    autoattack-rand     its variant for randomised models: APGD-CE and APGD-DLR on the mean of 20 gradients
    apgd-ce+square      some of AutoAttack's members, in this order; its name says which
    apgd-cex5+apgd-t    a member with five restarts
    my_module:my_attack a function of one's own, see docs/extend.md

    kind:     what the name begins with;  steps, restarts: of fgsm, pgd and cw;  members: of AutoAttack
    """

    name: str
    kind: str
    steps: int = 0
    restarts: int = 1
    members: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> "Attack":
        """The attack of a name, also as tables print it ("PGD-10"); ValueError for a name that is no attack."""
        found = cls(**read_attack_name(name))
        if found.kind == "own":
            load_object(name)
        return found

    @property
    def perturbs(self) -> bool:
        return self.kind != "clean"

    @property
    def random_start(self) -> bool:
        """Whether pgd and cw begin at a draw from the ball; fgsm begins at the image."""
        return self.kind != "fgsm"

    def step_size(self, threat: Threat) -> float:
        """α: ε for fgsm; for pgd and cw the paper's 1/255 (L∞) or 2.5·ε/steps (L2, where grey levels mean little)."""
        if self.kind == "fgsm":
            return threat.eps
        return 1 / 255 if threat.norm == "linf" else 2.5 * threat.eps / self.steps

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        """Every parameter that changes the outcome, as results record them."""
        if threat is None or self.kind == "noise":
            return {}
        if self.kind == "own":
            # The name alone would not say when the code has become another.
            source = inspect.getsource(inspect.getmodule(load_object(self.name)) or load_object(self.name))
            return {"source_sha256": hashlib.sha256(source.encode()).hexdigest()}
        if self.kind == "autoattack":
            turns = {member: self.members.count(member) for member in self.members}
            return {
                member: arguments(member, classes) | ({"restarts": count} if count > 1 else {})
                for member, count in turns.items()
            }
        return {
            "loss": LOSSES[self.kind][0],
            "steps": self.steps,
            "step_size": self.step_size(threat),
            "restarts": self.restarts,
            "random_start": self.random_start,
        }

    def stages(self, threat: Threat) -> list[Stage]:
        """What is run one after another, each on the points that still stand."""
        if self.kind == "noise":
            return [_noise]
        if self.kind == "own":
            return [load_object(self.name)]
        if self.kind == "autoattack":
            return [MEMBERS[member] for member in self.members]
        _, loss = LOSSES[self.kind]
        one = partial(
            pgd_points,
            loss=loss,
            steps=self.steps,
            step_size=self.step_size(threat),
            random_start=self.random_start,
        )
        return [one] * self.restarts


def _noise(victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams) -> Tensor:
    return threat.random_start(images, streams)
