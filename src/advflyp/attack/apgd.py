"""Auto-PGD (Croce & Hein 2020, Algorithm 1): ascent with momentum that halves its own step size."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from advflyp.attack.adaptive import Bound, DefenceTerms
from advflyp.attack.attempts import Attempts, Finds, each_target, untargeted
from advflyp.attack.base import Member
from advflyp.attack.losses import LOSSES, check_loss, targeted_dlr
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import (
    CorrectPoints,
    Victim,
    correct_points,
    pixel_gradient,
)

RHO = 0.75  # a step size is kept while the loss rises in more than this fraction of the steps
FIRST_STEP = 2.0  # η⁽⁰⁾, in ε
MOMENTUM = 0.75  # α: the weight of the new step; the rest repeats the previous step


@dataclass(frozen=True, kw_only=True)
class APGD(Member):
    """Untargeted Auto-PGD from a random start on the surface of the ball.

    Images on which it fails are returned unchanged. With `eot` above 1 every step is taken, and the last misclassified
    iterate is returned: one that is misclassified once may be so by luck.

    Args:
        loss: "ce" or "dlr" (Croce & Hein 2020), or "lse", the margin with a smooth maximum (log-sum-exp).
        against: Terms of a defence, maximised together with the loss.
        steps: Ascent steps.
        first_step: The first step size in ε.
        eot: Passes over which logits, loss and gradient are averaged, for randomised models.
        restarts: Number of runs, each on the images that are still classified correctly.
    """

    loss: str = "ce"
    steps: int = 100
    first_step: float = FIRST_STEP
    eot: int = 1
    against: DefenceTerms | None = None
    in_kind: ClassVar[tuple[str, ...]] = ("loss", "eot", "against")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss, ("ce", "dlr", "lse"))
        if not self.first_step > 0:
            raise ValueError(f"first_step must be above 0, for example 2, not {self.first_step:g}")

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        finds = Finds(images)
        points = correct_points(victim, finds.images, labels, streams)
        terms = self.against and self.against.bind(victim, images.detach(), labels)
        if len(points):
            start = _random_start(points.images, threat, points.streams)
            objective = _Objective(LOSSES[self.loss], self.eot, terms, self.first_step)
            _climb(victim, untargeted(points), start, threat, objective, self.steps, finds)
        return finds.images

    @property
    def needs_patches(self) -> bool:
        return self.against is not None and self.against.needs_patches

    @property
    def member(self) -> str:
        against = "" if self.against is None else f"-{self.against.name}"
        return f"apgd-{self.loss}{against}" + (f"-eot{self.eot}" if self.eot > 1 else "")

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        found = super().arguments(threat, classes)
        if self.first_step == FIRST_STEP:
            del found[self.member]["first_step"]
        if self.against is not None:
            found[self.member]["against"] = self.against.arguments()
        return found


@dataclass(frozen=True, kw_only=True)
class TargetedAPGD(Member):
    """Auto-PGD on the targeted DLR loss, from a new random start for each of the most likely wrong classes.

    Args:
        targets: Number of target classes, the most likely on the clean image first; at most all wrong classes.
        steps: Ascent steps per target.
        restarts: Number of runs, each on the images that are still classified correctly.
    """

    targets: int = 9
    steps: int = 100
    kind: ClassVar[str] = "apgd-t"

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        def climb(points: CorrectPoints, attempts: Attempts, finds: Finds) -> None:
            count = len(attempts) // len(points)
            start = torch.cat([_random_start(points.images, threat, points.streams) for _ in range(count)])
            _climb(victim, attempts, start, threat, _Objective(), self.steps, finds)

        return each_target(victim, images, labels, streams, self.targets, climb)


@dataclass
class _Ascent(Attempts):
    """The state of each ascent; `best` is the point with the highest loss so far."""

    adversarial: Tensor
    previous: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor  # (M, 1, 1, 1)
    rises: Tensor  # steps since the last checkpoint in which the loss rose
    checked_loss: Tensor  # best loss at the last checkpoint
    halved: Tensor  # whether the step size was halved there


@dataclass(frozen=True)
class _Objective:
    """The objective, a loss plus a defence's terms averaged over `eot` passes; and the first step size in ε.

    loss: of logits (N, K) and labels (N,); None is the targeted DLR
    """

    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    eot: int = 1
    terms: Bound | None = None
    first_step: float = FIRST_STEP

    def __call__(self, logits: Tensor, points: Attempts) -> Tensor:
        """(N,) values of the loss."""
        if self.loss is None:
            return targeted_dlr(logits, points.labels, points.targets)
        return self.loss(logits, points.labels)


def _climb(
    victim: Victim,
    attempts: Attempts,
    start: Tensor,
    threat: Threat,
    objective: _Objective,
    steps: int,
    finds: Finds,
) -> None:
    at, logits = _begin(victim, attempts, start, threat, objective)
    _note(victim, at, logits, objective, finds)

    # Checkpoints after 0.22, 0.41, 0.57, 0.70 … of the steps: each window is 0.03 shorter than the last, down to 0.06.
    window, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    since = 0
    for step in range(steps):
        if not len(at):
            break
        share = MOMENTUM if step else 1.0
        kind = ("apgd", threat, objective, share) if objective.terms is None else None
        (logits,) = victim.advance(partial(_advance, victim, threat, objective, share), at, kind)
        _note(victim, at, logits, objective, finds)

        since += 1
        if since == window:
            _checkpoint(at, window)
            since, window = 0, max(window - shorter, shortest)


def _advance(
    victim: Victim, threat: Threat, objective: _Objective, share: float, at: _Ascent
) -> tuple[Tensor]:
    """One step, of which the gradient's direction is `share` and the momentum the rest. Returns the logits (M, K)."""
    moved = threat.project(at.images, threat.step(at.adversarial, at.gradient, at.step_size, keep_nan=True))
    moved = at.adversarial + share * (moved - at.adversarial) + (1 - share) * (at.adversarial - at.previous)
    at.previous, at.adversarial = at.adversarial, threat.project(at.images, moved)

    last = at.loss
    logits, at.loss, at.gradient = _evaluate(victim, at, at.adversarial, objective)
    at.rises = at.rises + (at.loss > last)
    better = at.loss > at.best_loss
    at.best = torch.where(_wide(better), at.adversarial, at.best)
    at.best_gradient = torch.where(_wide(better), at.gradient, at.best_gradient)
    at.best_loss = torch.where(better, at.loss, at.best_loss)
    return (logits,)


def _note(victim: Victim, at: _Ascent, logits: Tensor, objective: _Objective, finds: Finds) -> None:
    """Record the attempts that fool the victim at their current points, where it gave `logits`, and end them.

    A randomised model may be fooled by luck, so its ascents go on, and the last find counts.
    """
    fooled = victim.fooled(at.adversarial, at.labels, logits)
    if objective.eot == 1:
        at.settle(fooled, at.adversarial, finds)
    else:
        finds.images[at.rows] = torch.where(_wide(fooled), at.adversarial, finds.images[at.rows])


def _begin(
    victim: Victim, attempts: Attempts, start: Tensor, threat: Threat, objective: _Objective
) -> tuple[_Ascent, Tensor]:
    """The state and the logits (M, K) at `start` (M, 3, H, W), or at the victim's own start if it has one."""
    start = start if victim.start is None else victim.start[attempts.rows]
    logits, loss, gradient = _evaluate(victim, attempts, start, objective)
    state = _Ascent(
        **vars(attempts),
        adversarial=start,
        previous=start,
        loss=loss,
        gradient=gradient,
        best=start,
        best_loss=loss,
        best_gradient=gradient,
        step_size=start.new_full((len(attempts), 1, 1, 1), objective.first_step * threat.eps),
        rises=torch.zeros_like(attempts.labels),
        checked_loss=loss,
        halved=torch.ones_like(attempts.labels, dtype=torch.bool),
    )
    return state, logits


def _checkpoint(at: _Ascent, window: int) -> None:
    """Halve the step size and return to the best point if one of the paper's two conditions holds."""
    # The released code reads condition 1 as "at most"; the paper has "fewer than".
    few_rises = at.rises <= RHO * window
    no_gain = ~at.halved & (at.best_loss <= at.checked_loss)
    at.halved = few_rises | no_gain
    halved = _wide(at.halved)
    at.step_size = torch.where(halved, at.step_size / 2, at.step_size)
    at.adversarial = torch.where(halved, at.best, at.adversarial)
    at.gradient = torch.where(halved, at.best_gradient, at.gradient)
    at.checked_loss = at.best_loss
    at.rises = torch.zeros_like(at.rises)


def _evaluate(
    victim: Victim, points: Attempts, images: Tensor, objective: _Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (M, K), losses (M,) and the losses' gradients (M, 3, H, W), averaged over `eot` passes."""
    passes = []
    for _ in range(objective.eot):
        leaf = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = victim(leaf)
            loss = objective(logits, points)
            if objective.terms is not None:
                loss = loss + objective.terms(leaf, points.rows)
            gradient = pixel_gradient(loss, leaf)
        passes.append((logits.detach(), loss.detach(), gradient))
    if objective.eot == 1:
        return passes[0]
    logits, loss, gradient = (torch.stack(each).mean(0) for each in zip(*passes, strict=True))
    return logits, loss, gradient


def _random_start(images: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """On the surface of the ball (unlike PGD's start): uniform noise scaled to it, Gaussian noise in L2."""
    shape = images.shape[1:]
    if threat.norm == "linf":
        noise = 2 * streams.uniform(*shape, dtype=images.dtype) - 1
        noise = noise / noise.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    else:
        noise = streams.normal(*shape, dtype=images.dtype)
        noise = noise / noise.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return threat.project(images, images + threat.eps * noise)


def _wide(mask: Tensor) -> Tensor:
    """(N,) as (N, 1, 1, 1)."""
    return mask.view(-1, 1, 1, 1)
