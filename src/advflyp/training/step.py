"""One update: text embeddings, attack (inner maximisation), losses (outer minimisation), optimiser."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advflyp.attack.pgd import AttackConfig, ascend
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat, widest
from advflyp.method.base import Batch, FromEmbeddings, Method

# Pixels drawn at a time, through int64 temporaries: a processor wants what fits its cache, an accelerator few kernels.
DRAWN_ON_CPU, DRAWN_ON_ACCELERATOR = 2**20, 2**24
# Of N-FGSM's start, in ε.
NOISE = 2


class Objective(nn.Module):
    """A method's losses as a module, for what wraps modules to exchange gradients."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.model = method.model
        self.method = method

    def forward(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.method.losses(images, images_adv, batch)


def random_start(images: Tensor, threat: Threat, seed: int, step: int, first_row: int = 0) -> Tensor:
    """The process's own rows of a random start for the whole batch.

    A row's draw is a function of the seed, the step and the row's place in the whole batch alone, so that δ₀ does not
    depend on the number of processes, nor on the device: equal to the last bit in L∞, up to rounding in L2.

    Args:
        images: The process's own n rows, (n, 3, H, W) pixels in [0, 1].
        threat: The ball to draw from.
        seed: The run's seed.
        step: Updates made so far.
        first_row: Where in the whole batch they begin.

    Returns:
        (n, 3, H, W) images inside `threat`.
    """
    drawn = DRAWN_ON_CPU if images.device.type == "cpu" else DRAWN_ON_ACCELERATOR
    size = max(1, drawn // images[0].numel())
    places = torch.arange(first_row, first_row + len(images), device=images.device)
    parts = zip(images.split(size), places.split(size), strict=True)
    key = derive_seed(seed, step)
    return torch.cat([threat.random_start(part, Streams(key, at)) for part, at in parts])


def perturbed(
    method: Method, images: Tensor, batch: Batch, attack: AttackConfig, seed: int, step: int
) -> Tensor:
    """Eq. 6: perturb the batch jointly, from where the recipe says; the loss found there is `batch["loss_at_start"]`.

    images: (n, 3, H, W), the process's own rows
    """
    threat = attack.threat

    def loss(candidates: Tensor) -> Tensor:
        value = method.attack_loss(candidates, batch)
        if "loss_at_start" not in batch:
            batch["loss_at_start"] = _of_batch(method, value)
        return value

    batch.pop("loss_at_start", None)
    if attack.start == "zero":
        start = images
    elif attack.start == "random":
        start = random_start(images, threat, seed, step, method.ranks.first_row)
    else:
        noise = Threat(norm=attack.norm, eps=min(NOISE * attack.eps, widest(attack.norm)))
        start = random_start(images, noise, seed, step, method.ranks.first_row)
        # What the step can reach, so that it is never projected.
        threat = Threat(norm=attack.norm, eps=min(noise.eps + attack.step_size, widest(attack.norm)))
    return ascend(images, start, loss, threat, steps=attack.steps, step_size=attack.step_size)


def perturbed_sharing(method: FromEmbeddings, images: Tensor, batch: Batch, attack: AttackConfig) -> Tensor:
    """The one step from the images themselves whose forward pass, with its graph, the losses use again.

    Adds "clean_embeddings" to the batch, f_θ(x).
    """
    leaf = images.detach().requires_grad_()
    clean = batch["clean_embeddings"] = method.model.encode_image(leaf)
    value = method.attack_loss_of(clean, batch)
    batch["loss_at_start"] = _of_batch(method, value)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    return attack.threat.project(images, attack.threat.step(images, gradient, attack.step_size))


def _of_batch(method: Method, loss: Tensor) -> Tensor:
    found = loss.detach()
    return method.ranks.mean(found) if found.ndim else found


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block no gradient is wanted of the parameters, and nothing is kept to compute it."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def cap_logit_scale(net: Any) -> None:
    """τ⁻¹ ≤ 100, as CLIP was pretrained."""
    with torch.no_grad():
        net.logit_scale.clamp_(0, math.log(100))


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed from any values, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
