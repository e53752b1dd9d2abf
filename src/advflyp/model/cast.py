"""bf16 copies of a tower's weights, in place of the casts that autocast would make again in every forward pass.

torch's autocast keeps the casts of one block only, and only those of weights that need a gradient. The weights of the
frozen original need none, nor do those of the trained model while an attack computes gradients of the images.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from advflyp.model.clip import CLIP
from advflyp.model.layers import SelfAttention

# A parameter: the module that has it, and its name there.
Place = tuple[nn.Module, str]

# By the forward method, since a subclass may do more with its weights than multiply: timm's standardised convolution
# normalises them first.
PRODUCTS: dict[Any, tuple[str, ...]] = {
    nn.Linear.forward: ("weight", "bias"),
    nn.Conv2d.forward: ("weight", "bias"),
    SelfAttention.forward: ("in_proj_weight", "in_proj_bias"),
}


def product_weights(model: CLIP) -> list[Place]:
    """The float32 weights of the image tower that autocast casts to bf16; none where the tower computes in float32.

    The others stay float32: LayerNorms, the patch embedding, the position embeddings.
    """
    if model.precision != "bf16":
        return []
    visual = model.visual
    found = [(m, name) for m in visual.modules() for name in PRODUCTS.get(type(m).forward, ())]
    if isinstance(visual, VisionTransformer):
        found.append((visual, "proj"))
    weights = ((place, place[0]._parameters.get(place[1])) for place in found)
    return [place for place, weight in weights if weight is not None and weight.dtype == torch.float32]


def freeze_in_bf16(model: CLIP) -> None:
    """Keep the weights of products in bf16 alone; embeddings in bf16 stay the same to the last bit.

    Args:
        model: Frozen, and never to compute in float32 again. One that computes in float32 stays as it is.
    """
    for module, name in product_weights(model):
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))


class WeightCasts:
    """Copies in bf16 of the weights at `places`, which take their places for the length of a block."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)
        self._copies: list[nn.Parameter] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Copy the weights as they are now; within the block the tower computes with the copies.

        Its results and the gradients of its images are autocast's to the last bit. The weights have no gradient there,
        and must not change.
        """
        weights = [getattr(module, name) for module, name in self.places]
        self._copy(weights)
        self._put(self._copies)
        try:
            yield
        finally:
            self._put(weights)

    @torch.no_grad()
    def _copy(self, weights: list[Tensor]) -> None:
        if not self._copies:
            empty = (torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights)
            self._copies = [nn.Parameter(copy, requires_grad=False) for copy in empty]
        if weights:
            # A few kernels for all of them, where casts would be one for each.
            torch._foreach_copy_(list[Tensor](self._copies), weights)  # pyright: ignore[reportPrivateImportUsage]

    def _put(self, parameters: Sequence[nn.Parameter]) -> None:
        for (module, name), parameter in zip(self.places, parameters, strict=True):
            # Not setattr, which searches all that a module has: 97 times a step for a ViT-B/32.
            module._parameters[name] = parameter
