"""Projected gradient descent (Madry et al. 2018): the one ascent loop, for every loss and norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.losses import cross_entropy
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat, check_pixels, widest
from advflyp.attack.victim import Victim

# A step has several temporaries of the size of the images; of more images than this they would fill a memory.
UPDATED_TOGETHER = 1024


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The training attack (recipe table `attack`).

    norm, eps: the threat model, eps in pixels of [0, 1] ("1/255")
    steps:     ascent steps; 0 trains on clean images
    step_size: α, in the units of eps
    start:     where the ascent begins: "random", a uniform draw from the ball; "zero", the image itself; or "noise",
               N-FGSM's (de Jorge et al. 2022): a draw from the ball of radius 2ε, then one step that is not projected
               back onto the ball of radius ε
    share_clean_forward: one step from zero takes its gradient from the forward pass over the clean images that the
               losses need as well; the same perturbation and losses for less arithmetic
    overfitting_gap: of one-step attacks: when the accuracy (0–1) under one step of validation exceeds that under
               `validate.attack` by more than this, training goes on with two steps from a random start
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: float = 1 / 255
    steps: int = 2
    step_size: float = 1 / 255
    start: Literal["random", "zero", "noise"] = "random"
    share_clean_forward: bool = False
    overfitting_gap: float = 0.15

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(
                f"attack.eps must be above 0, not {self.eps}; to train on clean images: attack.steps = 0"
            )
        Threat(norm=self.norm, eps=self.eps)
        if self.norm == "linf" and self.eps == 1:
            raise ValueError("attack.eps = 1 allows any image; write 1/255 for a grey level")
        if self.steps < 0:
            raise ValueError(f"attack.steps must be 0 (clean) or above, not {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"attack.step_size must be above 0, not {self.step_size}")
        if self.step_size > widest(self.norm):
            raise ValueError(
                f"attack.step_size is in pixels of [0, 1], write 1/255 for a grey level, not {self.step_size:g}"
            )
        if self.start == "noise" and self.steps != 1:
            raise ValueError(
                f"attack.start = 'noise' is for one step; set attack.steps = 1, not {self.steps}"
            )
        if self.share_clean_forward and (self.steps != 1 or self.start != "zero"):
            raise ValueError(
                "attack.share_clean_forward needs the gradient at the clean images alone; set attack.steps = 1 and "
                "attack.start = 'zero'"
            )
        if not 0 < self.overfitting_gap <= 1:
            raise ValueError(
                "attack.overfitting_gap is a difference of accuracies, above 0 and at most 1, not "
                f"{self.overfitting_gap:g}"
            )

    @property
    def threat(self) -> Threat:
        return Threat(norm=self.norm, eps=self.eps)


def pgd(
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Images inside `threat` that raise `loss` (Eqs. 4 and 6).

    images:       (N, 3, H, W) float32 or float64 pixels in [0, 1]
    loss:         (N, 3, H, W) → (N,) or scalar, maximised; may couple the images of the batch
    steps:        number of ascent steps; each is projected onto the ball and the pixel range
    step_size:    α in pixels, 1/255 is one grey level
    random_start: begin at a uniform draw from the ball instead of at the image
    generator:    source of that draw, on the images' device
    start:        begin here instead, (N, 3, H, W) inside the threat
    Returns adversarial images, detached. No parameter and no `.grad` is touched. ValueError for pixels that are not
    in [0, 1].
    """
    images = images.detach()
    check_pixels(images)
    if start is None:
        start = threat.random_start(images, generator) if random_start else images
    return ascend(images, start, loss, threat, steps=steps, step_size=step_size)


def ascend(
    images: Tensor,
    start: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """`pgd` from `start`, without looking at the pixels: on an accelerator the host does not wait for it.

    images, start: (N, 3, H, W) detached
    """

    def slope(candidates: Tensor, rows: Tensor | slice) -> tuple[Tensor, None]:
        (gradient,) = torch.autograd.grad(loss(candidates).sum(), candidates)
        return gradient, None

    return _ascend(images, start, slope, threat, steps, step_size)


def pgd_points(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    streams: Streams,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    steps: int = 10,
    step_size: float = 1 / 255,
    random_start: bool = True,
) -> Tensor:
    """The same ascent for an evaluation: each image for itself, and an image that is misclassified leaves at once.

    images:  (N, 3, H, W) float32 or float64 pixels in [0, 1];  labels: (N,)
    loss:    (N, K) logits, (N,) labels → (N,), maximised
    streams: the random starts, one stream an image
    Returns adversarial images, detached: for each image the first misclassified iterate, else the last one.
    """
    images = images.detach()
    start = threat.random_start(images, streams) if random_start else images

    def slope(candidates: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        logits = victim(candidates)
        (gradient,) = torch.autograd.grad(loss(logits, labels[rows]).sum(), candidates)
        return gradient, ~victim.fooled(candidates.detach(), labels[rows], logits.detach())

    return _ascend(images, start, slope, threat, steps, step_size)


def _ascend(
    images: Tensor,
    start: Tensor,
    slope: Callable[[Tensor, Tensor | slice], tuple[Tensor, Tensor | None]],
    threat: Threat,
    steps: int,
    step_size: float,
) -> Tensor:
    """Steepest ascent inside `threat`; `slope(candidates, rows)` gives the gradient and which rows go on."""
    adversarial = start.detach().clone()
    rows: Tensor | slice = slice(None)
    for _ in range(steps):
        leaf = adversarial[rows].detach().requires_grad_(True)
        with torch.enable_grad():
            gradient, standing = slope(leaf, rows)
        here = leaf.detach()
        stay = None if standing is None else standing.nonzero().squeeze(1)
        if stay is not None and len(stay) < len(here):
            rows = torch.arange(len(images), device=images.device)[rows][stay]
            here, gradient = here[stay], gradient[stay]
            if not len(rows):
                break
        for first in range(0, len(here), UPDATED_TOGETHER):
            part = slice(first, first + UPDATED_TOGETHER)
            at = part if isinstance(rows, slice) else rows[part]
            adversarial[at] = threat.project(images[at], threat.step(here[part], gradient[part], step_size))
    return adversarial
