"""Projected gradient descent (Madry et al. 2018): the one ascent loop, for every loss and norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.threat import Threat


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The training attack (recipe table `attack`).

    norm, eps: the threat model, eps in pixels of [0, 1] ("1/255")
    steps:     ascent steps; 0 trains on clean images
    step_size: α, in the units of eps
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: float = 1 / 255
    steps: int = 2
    step_size: float = 1 / 255

    def __post_init__(self) -> None:
        Threat(norm=self.norm, eps=self.eps)
        if self.steps < 0:
            raise ValueError(f"attack.steps must be 0 (clean) or above, not {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"attack.step_size must be above 0, not {self.step_size}")

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

    images:       (N, 3, H, W) float32 pixels in [0, 1]
    loss:         (N, 3, H, W) → (N,) or scalar, maximised; may couple the images of the batch
    steps:        number of ascent steps; each is projected onto the ball and the pixel range
    step_size:    α in pixels, 1/255 is one grey level
    random_start: begin at a uniform draw from the ball instead of at the image
    generator:    source of that draw, on the images' device
    start:        begin here instead, (N, 3, H, W) inside the threat
    Returns adversarial images, detached. No parameter and no `.grad` is touched.
    """
    images = images.detach()
    adversarial = start
    if adversarial is None:
        adversarial = threat.random_start(images, generator) if random_start else images
    for _ in range(steps):
        leaf = adversarial.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        adversarial = threat.project(images, threat.step(adversarial, gradient, step_size))
    return adversarial.detach()
