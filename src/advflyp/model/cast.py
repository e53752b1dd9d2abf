"""bf16 copies of a tower's weights, so that autocast need not cast them again in every forward pass.

torch's autocast caches casts only within one autocast block, and only of weights that require gradients. The weights
of the frozen original never do; those of the trained model do not while an attack computes gradients of the images.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from advflyp.model.clip import CLIP
from advflyp.model.layers import SelfAttention

# A parameter: the module that owns it, and its name in that module.
Place = tuple[nn.Module, str]

# Keyed by forward method, since a subclass may do more than multiply by its weights: timm's standardised convolution
# normalises them first.
PRODUCTS: dict[Any, tuple[str, ...]] = {
    nn.Linear.forward: ("weight", "bias"),
    nn.Conv2d.forward: ("weight", "bias"),
    SelfAttention.forward: ("in_proj_weight", "in_proj_bias"),
}


def product_weights(model: CLIP) -> list[Place]:
    """The float32 weights of the image tower that autocast casts to bf16; none if the tower computes in float32.

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
    """Replace the weights that autocast would cast by bf16 copies; the embeddings stay bit-identical.

    Args:
        model: A frozen model that will never compute in float32 again. If its precision is float32, nothing changes.
    """
    for module, name in product_weights(model):
        weight = getattr(module, name)
        setattr(module, name, nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False))


class WeightCasts:
    """bf16 copies of the weights at `places`, swapped in for the duration of a `with` block."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = list(places)
        empty = (torch.empty_like(getattr(*place), dtype=torch.bfloat16) for place in places)
        self._copies = [nn.Parameter(copy, requires_grad=False) for copy in empty]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Copy the current weights; within the block the tower computes with the copies.

        Its outputs and image gradients are bit-identical to autocast's. Within the block the weights get no gradients
        and must not change.
        """
        weights = [getattr(module, name) for module, name in self.places]
        if weights:
            with torch.no_grad():  # a few kernels in total, instead of one cast per weight
                torch._foreach_copy_(list[Tensor](self._copies), weights)  # pyright: ignore[reportPrivateImportUsage]
        self._put(self._copies)
        try:
            yield
        finally:
            self._put(weights)

    def _put(self, parameters: Sequence[nn.Parameter]) -> None:
        for (module, name), parameter in zip(self.places, parameters, strict=True):
            # Not setattr, which searches all of a module's attributes: 97 times a step for a ViT-B/32.
            module._parameters[name] = parameter
