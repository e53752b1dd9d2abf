"""Universal perturbations (Moosavi-Dezfooli et al. 2017): one δ for all images, optimised on some and tested on others.

max over δ in the ball:  1/N Σ_i loss(z(x_i + δ), y_i)
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from advflyp.attack.base import SingleAttack
from advflyp.attack.checks import check_batch, check_logits, check_numbers, ordinary, outside_inference_mode
from advflyp.attack.losses import LOSSES
from advflyp.attack.pgd import PGD, ascend
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.model.precision import for_use
from advflyp.seeds import derive_seed

# δ is optimised as a perturbation of a uniformly grey image, so that the common ascent loop applies.
GREY = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift(SingleAttack):
    """A fixed δ, added to every image; what `universal_perturbation` returns.

    Args:
        delta: (3, H, W) pixels.
        called: Its name in results.
    """

    delta: Tensor
    called: str = "universal"

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        if self.delta.shape != images.shape[1:]:
            raise ValueError(
                f"the perturbation is for images of shape {tuple(self.delta.shape)}, not {tuple(images.shape[1:])}"
            )
        return threat.project(images, images + self.delta.to(images))

    @property
    def name(self) -> str:
        return self.called

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        values = self.delta.detach().cpu().contiguous().numpy().tobytes()
        return {"delta_sha256": hashlib.sha256(values).hexdigest()}


def universal_perturbation(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    steps: int = 200,
    step_size: float | None = None,
    batch_size: int = 64,
    loss: str = "ce",
    seed: int = 0,
) -> Shift:
    """Optimise one δ on images that are not used to test it.

    Args:
        classifier: (N, 3, H, W) pixels in [0, 1] → (N, K) logits, differentiable.
        images: (N, 3, H, W) pixels in [0, 1].
        labels: (N,) int64.
        threat: The ball around 0 that δ stays in; an L∞ radius is at most 1/2.
        steps: Ascent steps, each on `batch_size` of the images, in orders drawn with `seed`.
        step_size: α, as in `PGD`.
        batch_size: Images a step, at most; at least 1.
        loss: As in `PGD`.

    Returns:
        An attack, to call as `shift(classifier, other_images, other_labels, threat)` or to pass to `advflyp.evaluate`.
    """
    check_batch(images, labels)
    seed, batch_size = check_numbers(threat, seed, batch_size)
    attack = PGD(steps=steps, step_size=step_size, loss=loss)
    if not len(images):
        raise ValueError("a universal perturbation is found on images, and there are none")
    if threat.norm == "linf" and threat.eps > GREY:
        raise ValueError(f"a universal perturbation has an eps of at most 1/2, not {threat.eps:g}")
    order, victim = _orders(len(images), batch_size, seed), Victim(classifier)

    def mean_loss(candidates: Tensor) -> Tensor:
        rows = next(order)
        moved = (images[rows.to(images.device)] + (candidates - GREY)).clamp(0, 1)
        logits = victim(moved)
        check_logits(logits, labels[rows])
        return LOSSES[loss](logits, labels[rows].to(images.device)).mean()

    with outside_inference_mode(), for_use(classifier):
        images, labels = ordinary(images.detach(), labels.cpu())
        grey = torch.full_like(images[:1], GREY)
        found = ascend(grey, grey, mean_loss, threat, steps=attack.steps, step_size=attack.alpha(threat))
        return Shift(delta=(found - grey)[0].detach())


def _orders(rows: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of row numbers, reshuffled each epoch."""
    for epoch in count():
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        yield from torch.randperm(rows, generator=generator).split(batch_size)
