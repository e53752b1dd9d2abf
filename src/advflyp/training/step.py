"""One update: text embeddings, attack (inner maximisation), losses (outer minimisation), optimiser."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advflyp.attack.threat import Threat
from advflyp.data.stream import Share
from advflyp.method.base import Batch, Method

# Rows of a batch whose random starts come from one generator.
STARTS = 256


class Objective(nn.Module):
    """A method's losses as a module, for what wraps modules to exchange gradients."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.model = method.model
        self.method = method

    def forward(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.method.losses(images, images_adv, batch)


def random_start(images: Tensor, threat: Threat, seed: int, step: int, share: Share) -> Tensor:
    """(n, 3, H, W): the rows of `share` of a random start for the whole batch, a function of (seed, step) alone.

    images: the n own rows. Of other rows only those are drawn that share a block with them.
    """
    parts = []
    for block in range(share.first // STARTS, (share.last - 1) // STARTS + 1):
        generator = torch.Generator(images.device)
        generator.manual_seed(derive_seed(seed, step, *([block] if block else [])))
        begin = block * STARTS
        rows = min(STARTS, share.batch - begin)
        noise = threat.noise(images[:1].expand(rows, *images.shape[1:]).contiguous(), generator)
        parts.append(noise[max(0, share.first - begin) : share.last - begin])
    return threat.project(images, images + torch.cat(parts))


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
