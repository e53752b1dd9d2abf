"""FAB, the fast adaptive boundary attack (Croce & Hein 2020, "Minimally distorted adversarial examples")."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from advflyp.attack.attempts import Attempts, Finds, each_target
from advflyp.attack.base import Member
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import CorrectPoints, Victim, is_wrong, pixel_gradient
from advflyp.dtypes import in_float64

ALPHA_MAX = 0.1  # largest weight of the step from the original image
ETA = 1.05  # overshoot across the boundary
BETA = 0.9  # backward step of an adversarial image towards the original


@dataclass
class _Approach(Attempts):
    """The state of each attempt.

    before: the point that the classifier last saw
    value, gradient: z_t − z_y (M,) at `current`, negative on the true class's side of the boundary; and its gradient
    """

    current: Tensor
    before: Tensor
    value: Tensor
    gradient: Tensor


@dataclass(frozen=True, kw_only=True)
class FAB(Member):
    """Targeted FAB: steps to the boundary of each of the most likely wrong classes, staying close to the image.

    It minimises the distance whatever ε is, and stops on an image once it has found an adversarial version within ε. It
    starts at the image and draws no random numbers. Images on which it fails are returned unchanged.

    Args:
        targets: Number of target classes, the most likely on the clean image first; at most all wrong classes.
        steps: Iterations per class; each takes two forward passes and a backward pass.
    """

    targets: int = 9
    steps: int = 100
    kind: ClassVar[str] = "fab-t"

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        def approach(points: CorrectPoints, attempts: Attempts, finds: Finds) -> None:
            zeros = points.logits.new_zeros(len(attempts))  # of the type that the values will have
            nothing, start = torch.zeros_like(attempts.images), attempts.images
            at = _Approach(**vars(attempts), current=start, before=start, value=zeros, gradient=nothing)
            _approach(victim, at, threat, self.steps, finds)

        return each_target(victim, images, labels, streams, self.targets, approach)


def _approach(victim: Victim, at: _Approach, threat: Threat, steps: int, finds: Finds) -> None:
    for _ in range(steps):
        # Before the crossing, too: the backward step may have brought points into the ball.
        for half in (_differentiate, _cross):
            if not len(at):
                return
            logits, found = victim.advance(partial(half, victim, threat), at, (half, threat))
            rows = found.nonzero().squeeze(1)
            if len(rows):
                found[rows] = victim.fooled(at.before[rows], at.labels[rows], logits[rows])
            at.settle(found, at.before, finds)


def _differentiate(victim: Victim, threat: Threat, at: _Approach) -> tuple[Tensor, Tensor]:
    """Compute the value and the gradient. Returns what `_cross` returns."""
    at.before = at.current
    leaf = at.current.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = victim(leaf)
        value = logits.gather(1, at.targets[:, None]) - logits.gather(1, at.labels[:, None])
        at.gradient = pixel_gradient(value, leaf)
    logits, at.value = logits.detach(), value.detach().squeeze(1)
    return logits, is_wrong(logits, at.labels) & _counts(at, threat)


def _cross(victim: Victim, threat: Threat, at: _Approach) -> tuple[Tensor, Tensor]:
    """Go across the boundary, and then, where that is adversarial, back towards the image.

    Returns:
        The logits (M, K) at `before`, and (M,) bool, where that is inside `threat` and fools the search.
    """
    # The linearised boundary is {z: value + ⟨gradient, z − current⟩ = 0}, as seen from either point.
    rise = in_float64(at.gradient * (at.images - at.current)).flatten(1).sum(1)
    at_image = in_float64(at.value) + rise
    across = to_boundary(at.current, at.gradient, at.value, threat.norm)
    from_image = to_boundary(at.images, at.gradient, at_image, threat.norm)
    length = _length(across, threat.norm)
    alpha = (length / (length + _length(from_image, threat.norm))).clamp_max(ALPHA_MAX).view(-1, 1, 1, 1)
    moved = (1 - alpha) * (at.current + ETA * across) + alpha * (at.images + ETA * from_image)
    # Without a direction the point is lost, which ends the attack with an error.
    no_direction = at.gradient.isnan().flatten(1).any(1).view(-1, 1, 1, 1)
    at.before = moved.masked_fill(no_direction, float("nan")).clamp(0, 1)

    with torch.no_grad():
        logits = victim(at.before)
    wrong, delta = is_wrong(logits, at.labels), at.before - at.images
    at.current = at.images + torch.where(wrong.view(-1, 1, 1, 1), BETA * delta, delta)
    return logits, wrong & _counts(at, threat)


def _counts(at: _Approach, threat: Threat) -> Tensor:
    """(M,) bool: whether `before` is inside `threat`, or lost."""
    return threat.contains(at.images, at.before) | at.before.isnan().flatten(1).any(1)


def to_boundary(points: Tensor, gradient: Tensor, value: Tensor, norm: str) -> Tensor:
    """The shortest d with value + ⟨gradient, d⟩ = 0 and points + d in [0, 1] (Eq. 6).

    Every |d_i| is min(λ·s_i, room_i), with s_i = 1 (L∞) or |w_i| (L2), room_i the pixel's distance from its limit,
    and λ the one number for which Σ|w_i|·|d_i| = |value|. That sum is piecewise linear in λ with kinks at
    room_i / s_i; between two kinks λ is a division.

    Args:
        points: (N, 3, H, W).
        gradient: (N, 3, H, W), the normal w of each hyperplane.
        value: (N,).
        norm: "linf" or "l2".

    Returns:
        (N, 3, H, W). If the hyperplane does not meet the pixel range, d goes as near to it as possible.
    """
    # float64, because differences of nearly equal sums over 10⁵ pixels are taken below.
    w, x, wanted = in_float64(gradient).flatten(1), in_float64(points).flatten(1), -in_float64(value)
    towards = w.sign() * wanted.sign()[:, None]
    weight = w.abs()
    room = torch.where(towards > 0, 1 - x, x) * towards.abs()
    speed = torch.ones_like(weight) if norm == "linf" else weight
    kinks = torch.where(weight > 0, room / speed, 0.0)
    kinks, order = kinks.sort(dim=1)
    used_up = (weight * room).gather(1, order).cumsum(1)  # by pixels at their limit, up to each kink
    rates = (weight * speed).gather(1, order)
    rate = rates.flip(1).cumsum(1).flip(1)  # of the pixels that still move, just before each kink
    reached = used_up + kinks * (rate - rates)
    wanted = wanted.abs()[:, None]

    # The first kink at or beyond the hyperplane ends the piece that λ is on.
    piece = torch.searchsorted(reached, wanted)
    last = piece.clamp_max(w.shape[1] - 1)
    before = torch.where(piece > 0, used_up.gather(1, (piece - 1).clamp_min(0)), 0.0)
    scale = ((wanted - before) / rate.gather(1, last).clamp_min(1e-300)).clamp_min(0)
    scale = torch.where(piece < w.shape[1], torch.minimum(scale, kinks.gather(1, last)), torch.inf)
    # 0 · ∞ where a pixel has no part in the hyperplane
    length = torch.minimum(torch.where(weight > 0, scale * speed, 0.0), room)
    return (towards * length).to(points).view_as(points)


def _length(x: Tensor, norm: str) -> Tensor:
    """(N,) in this norm, at least 1e-8."""
    flat = x.flatten(1)
    return (flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)).clamp_min(1e-8)
