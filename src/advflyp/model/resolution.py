"""Interpolated position embeddings, for images of another size than the tower was pretrained at."""

from functools import lru_cache
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

# Total stride of a CLIP ResNet before its attention pooling.
RESNET_STRIDE = 32


def positions_at(visual: Any, size: tuple[int, int], name: str) -> dict[str, Tensor]:
    """Interpolate a tower's position embeddings for images of another size.

    Bicubic with antialiasing, as when open_clip loads weights at another resolution; the class token's embedding is
    kept. Gradients flow through to the tower's own embeddings.

    Args:
        visual: An open_clip image tower.
        size: Height and width of the images, in pixels.
        name: The model's name, for messages.

    Returns:
        {name of the parameter: the embeddings that replace it}.

    Raises:
        ValueError: The tower has another kind of position embeddings, or the size is not a multiple of its patches.
    """
    if isinstance(visual, VisionTransformer):
        key, (rows, columns) = "positional_embedding", visual.patch_size
        own = visual.grid_size
    elif isinstance(visual, ModifiedResNet):
        key, rows, columns = "attnpool.positional_embedding", RESNET_STRIDE, RESNET_STRIDE
        own = (visual.image_size // RESNET_STRIDE,) * 2
    else:
        raise ValueError(
            f"the image tower of {name}, {type(visual).__name__}, takes images of its own size only; leave "
            "data.schedule out"
        )
    height, width = size
    if height % rows or width % columns:
        raise ValueError(
            f"the image tower of {name} takes sizes that are multiples of {rows} pixels, not {height} × {width}"
        )
    embeddings = visual.get_parameter(key)
    grid = (height // rows, width // columns)
    weights = _weights(tuple(own), grid).to(embeddings)
    # A product, since the gradient of an interpolation is not deterministic on CUDA.
    with torch.autocast(embeddings.device.type, enabled=False):
        return {key: torch.cat([embeddings[:1], weights @ embeddings[1:]])}


@lru_cache
def _weights(old: tuple[int, ...], new: tuple[int, int]) -> Tensor:
    """The interpolation as a matrix, (rows · columns of `new`, rows · columns of `old`)."""
    places = old[0] * old[1]
    each = torch.eye(places, dtype=torch.float64).view(places, 1, *old)
    return F.interpolate(each, new, mode="bicubic", antialias=True).flatten(1).T.contiguous()
