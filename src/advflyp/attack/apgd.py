"""Auto-PGD (Croce & Hein 2020, Algorithm 1): ascent with momentum that halves its own step size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.attack.losses import attack_targets, count_targets, cross_entropy, targeted_dlr
from advflyp.attack.points import Points, Standing, standing
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.dtypes import at_least_float32

RHO = 0.75  # a step size stays while more than this share of the steps raised the loss
MOMENTUM = 0.75  # α: the share of the new step; the rest repeats the one before

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (N, K), labels (N,), targets (N,) → (N,)


def apgd(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    streams: Streams,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    steps: int = 100,
    eot: int = 1,
) -> Tensor:
    """Untargeted APGD from one random start.

    images:  (N, 3, H, W) float32 or float64 pixels in [0, 1]
    labels:  (N,) int64
    streams: the images' random numbers
    loss:    logits (N, K), labels (N,) → (N,), raised
    steps:   ascent steps
    eot:     passes over which logits, loss and gradient are averaged, for a model that draws random numbers
    Returns (N, 3, H, W) inside `threat`, detached: an image that fools `victim`, or else the image itself.
    """
    result = images.detach().clone()
    points = standing(victim, result, labels, streams)
    _climb(victim, points, points.labels, threat, lambda z, y, _: loss(z, y), steps, eot, result)
    return result


def apgd_targeted(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    streams: Streams,
    targets: int = 9,
    steps: int = 100,
) -> Tensor:
    """APGD on the targeted DLR loss, from a new random start for each of the most likely wrong classes.

    targets: how many classes, the likeliest on the clean image first; all wrong ones where these are fewer
    Otherwise as `apgd`.
    """
    result = images.detach().clone()
    points = standing(victim, result, labels, streams)
    for rank in range(1, count_targets(points.logits.shape[1], targets) + 1):
        classes = attack_targets(points.logits, points.labels, rank)
        rest = _climb(victim, points, classes, threat, targeted_dlr, steps, 1, result)
        points.keep(torch.isin(points.rows, rest))
    return result


@dataclass
class _Ascent(Points):
    """Where each image's ascent stands; `best` is the point with the highest loss so far."""

    targets: Tensor
    adversarial: Tensor
    previous: Tensor
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_loss: Tensor
    best_gradient: Tensor
    step_size: Tensor  # (M, 1, 1, 1)
    rises: Tensor  # steps since the last checkpoint that raised the loss
    checked_loss: Tensor  # best loss at the last checkpoint
    halved: Tensor  # whether the step size was halved there


def _climb(
    victim: Victim,
    points: Standing,
    targets: Tensor,
    threat: Threat,
    objective: Objective,
    steps: int,
    eot: int,
    result: Tensor,
) -> Tensor:
    """Write what is found into `result`; returns the rows of the images that still stand."""
    if not len(points):
        return points.rows
    start = _random_start(points.images, threat, points.streams)
    logits, loss, gradient = _evaluate(victim, start, points.labels, targets, objective, eot)
    at = _Ascent(
        rows=points.rows,
        images=points.images,
        labels=points.labels,
        targets=targets,
        adversarial=start,
        previous=start,
        loss=loss,
        gradient=gradient,
        best=start,
        best_loss=loss,
        best_gradient=gradient,
        step_size=start.new_full((len(points), 1, 1, 1), 2 * threat.eps),
        rises=torch.zeros_like(points.labels),
        checked_loss=loss,
        halved=torch.ones_like(points.labels, dtype=torch.bool),
    )
    at.leave(victim.fooled(start, at.labels, logits), start, result)

    # Checkpoints 0.22, 0.41, 0.57, 0.70 … of the way: each window is 0.03 shorter than the last, down to 0.06.
    window, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    since = 0
    for step in range(steps):
        if not len(at):
            break
        moved = threat.project(at.images, threat.step(at.adversarial, at.gradient, at.step_size))
        share = MOMENTUM if step else 1.0
        moved = (
            at.adversarial + share * (moved - at.adversarial) + (1 - share) * (at.adversarial - at.previous)
        )
        at.previous, at.adversarial = at.adversarial, threat.project(at.images, moved)

        last = at.loss
        logits, at.loss, at.gradient = _evaluate(
            victim, at.adversarial, at.labels, at.targets, objective, eot
        )
        at.rises = at.rises + (at.loss > last)
        better = at.loss > at.best_loss
        at.best = torch.where(_wide(better), at.adversarial, at.best)
        at.best_gradient = torch.where(_wide(better), at.gradient, at.best_gradient)
        at.best_loss = torch.where(better, at.loss, at.best_loss)
        at.leave(victim.fooled(at.adversarial, at.labels, logits), at.adversarial, result)

        since += 1
        if since == window:
            _checkpoint(at, window)
            since, window = 0, max(window - shorter, shortest)
    return at.rows


def _checkpoint(at: _Ascent, window: int) -> None:
    """Halve the step size and return to the best point where one of the paper's two conditions holds."""
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
    victim: Victim, images: Tensor, labels: Tensor, targets: Tensor, objective: Objective, eot: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), losses (N,) and the losses' gradients (N, 3, H, W), the means of `eot` passes."""
    passes = []
    for _ in range(eot):
        leaf = images.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = at_least_float32(victim(leaf))
            loss = objective(logits, labels, targets)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        passes.append((logits.detach(), loss.detach(), gradient))
    if eot == 1:
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
