"""Projected gradient descent (Madry et al. 2018): the one ascent loop, for every loss and norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.base import SingleAttack
from advflyp.attack.checks import ordinary, outside_inference_mode
from advflyp.attack.losses import LOSSES, check_loss
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat, check_pixels, widest
from advflyp.attack.victim import Points, Victim, pixel_gradient
from advflyp.config import above_zero

# Images updated at once: a step has several temporaries of their size, which for more images could fill the memory.
UPDATED_TOGETHER = 1024


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The training attack (recipe table `attack`).

    Args:
        norm: The norm of the threat model, "linf" or "l2".
        eps: Its radius, in pixels of [0, 1] ("1/255").
        steps: Ascent steps; 0 trains on clean images.
        step_size: α, in the units of eps.
        start: Where the ascent starts: "random", a uniform draw from the ball; "zero", the image itself; or "noise", as
            in N-FGSM (de Jorge et al. 2022): a draw from the ball of radius 2ε, then one step that is not projected
            back onto the ball of radius ε.
        share_clean_forward: For one step from "zero": take its gradient from the clean forward pass that the losses
            need anyway. The perturbation and the losses are the same, for less compute.
        overfitting_gap: For one step: if validation accuracy (0–1) under FGSM exceeds that under `validate.attack` by
            more than this, training continues with two steps from a random start.
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
        above_zero(self, "attack.", "step_size")
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


@outside_inference_mode()
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
    """Images inside `threat` that maximise `loss` (Eqs. 4 and 6). Parameters and their `.grad` are not touched.

    Args:
        images: (N, 3, H, W) float32 or float64 pixels in [0, 1].
        loss: (N, 3, H, W) → (N,) or scalar, maximised; may couple the images of the batch.
        threat: The ball around each image.
        steps: Ascent steps; each is projected onto the ball and the pixel range.
        step_size: α in pixels, 1/255 is one grey level.
        random_start: Start at a uniform draw from the ball instead of at the image.
        generator: Source of that draw, on the images' device.
        start: (N, 3, H, W) inside the ball, where the ascent starts instead.

    Returns:
        (N, 3, H, W) adversarial images, detached.

    Raises:
        ValueError: Pixels are not in [0, 1].
    """
    (images,) = ordinary(images.detach())
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
    """`pgd` from `start` (N, 3, H, W) without checking the pixels, so the host does not wait for an accelerator."""
    adversarial = start.detach().clone()
    for _ in range(steps):
        leaf = adversarial.detach().requires_grad_(True)
        with torch.enable_grad():
            gradient = pixel_gradient(loss(leaf), leaf)
        adversarial = _moved(images, adversarial, gradient, threat, step_size)
    return adversarial


@dataclass
class _Ascent(Points):
    """The state of each ascent; `previous` is the point that the classifier last saw."""

    adversarial: Tensor
    previous: Tensor


# What results call the losses of `PGD`.
RECORDED = {"ce": "cross-entropy", "margin": "margin", "dlr": "dlr", "lse": "log-sum-exp"}


@dataclass(frozen=True, kw_only=True)
class PGD(SingleAttack):
    """N gradient steps on the cross-entropy (Madry et al. 2018), per image; each stops once it is misclassified.

    A randomised model may be wrong once by luck, which would end the search: attack it with "autoattack-rand".

    Args:
        steps: Ascent steps.
        step_size: α in pixels of [0, 1]; None is 1/255 for L∞ (as in the paper) and 2.5·ε/steps for L2, where grey
            levels mean little.
        random_start: Start at a uniform draw from the ball instead of at the image.
        loss: "ce", "margin" (Carlini & Wagner 2017), "dlr", or "lse", the margin with a smooth maximum (log-sum-exp).
        against: Terms of a defence, maximised together with the loss.
        restarts: Number of runs, each on the images that are still classified correctly.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: bool = True
    loss: str = "ce"
    against: DefenceTerms | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss(self.loss, LOSSES)
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size must be above 0, for example 1/255, not {self.step_size:g}")

    def alpha(self, threat: Threat) -> float:
        """The step size in `threat`."""
        if self.step_size is not None:
            return self.step_size
        return 1 / 255 if threat.norm == "linf" else 2.5 * threat.eps / self.steps

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        """For each image, the first misclassified iterate, or the last one if there is none."""
        images, loss, alpha = images.detach(), LOSSES[self.loss], self.alpha(threat)
        start = threat.random_start(images, streams) if self.random_start else images
        start = (start if victim.start is None else victim.start).detach()
        terms = self.against and self.against.bind(victim, images, labels)

        def step(at: _Ascent) -> tuple[Tensor]:
            at.previous, leaf = at.adversarial, at.adversarial.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = victim(leaf)
                value = loss(logits, at.labels)
                if terms is not None:
                    value = value + terms(leaf, at.rows)
                gradient = pixel_gradient(value, leaf)
            at.adversarial = _moved(at.images, at.previous, gradient, threat, alpha, keep_nan=True)
            return (logits.detach(),)

        kind = ("pgd", loss, threat, alpha) if terms is None else None
        rows = torch.arange(len(images), device=images.device)
        at, result = _Ascent(rows, images, labels, start, start), images.clone()
        for _ in range(self.steps):
            (logits,) = victim.advance(step, at, kind)
            at.leave(victim.fooled(at.previous, at.labels, logits), at.previous, result)
            if not len(at):
                break
        result[at.rows] = at.adversarial
        return result

    @property
    def needs_patches(self) -> bool:
        return self.against is not None and self.against.needs_patches

    @property
    def name(self) -> str:
        kind = {"ce": "pgd", "margin": "cw"}.get(self.loss, f"pgd-{self.loss}-")
        if self.against is not None:
            kind = f"pgd-{self.loss}-{self.against.name}-"
        return self._named(f"{kind}{self.steps}", "steps", "loss", "against")

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        if threat is None:
            return {}
        return {
            "loss": RECORDED[self.loss],
            "steps": self.steps,
            "step_size": self.alpha(threat),
            "restarts": self.restarts,
            "random_start": self.random_start,
            **({} if self.against is None else {"against": self.against.arguments()}),
        }


@dataclass(frozen=True, kw_only=True)
class CW(PGD):
    """PGD on the margin max_{j≠y} z_j − z_y of Carlini & Wagner (2017)."""

    loss: str = "margin"


@dataclass(frozen=True, kw_only=True)
class FGSM(PGD):
    """One step of length ε on the cross-entropy, from the image itself (Goodfellow et al. 2015)."""

    steps: int = 1
    random_start: bool = False

    def alpha(self, threat: Threat) -> float:
        return threat.eps if self.step_size is None else self.step_size

    @property
    def name(self) -> str:
        return self._named("fgsm")


def _moved(
    images: Tensor,
    adversarial: Tensor,
    gradient: Tensor,
    threat: Threat,
    step_size: float,
    keep_nan: bool = False,
) -> Tensor:
    """One step of steepest ascent inside `threat`."""
    parts = (x.split(UPDATED_TOGETHER) for x in (images, adversarial, gradient))
    return torch.cat(
        [
            threat.project(origin, threat.step(here, slope, step_size, keep_nan=keep_nan))
            for origin, here, slope in zip(*parts, strict=True)
        ]
    )
