"""Embeddings of single patches, for every ViT that open_clip builds.

A tower pools its tokens into one, which a head of norms and projections turns into the embedding of the image. The
embedding of a patch is the output of the same head when every token is that patch's: class-token, average and
attention pooling then all use that token alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from advflyp.model.layers import ClassTokenTower

# Attention kernels on CUDA take at most 65,535 sequences, one fewer than 256 images of 16 × 16 patches.
MOST_SEQUENCES = 32_768


class Patches(NamedTuple):
    """Embeddings of N images and their patches, from one forward pass.

    Attributes:
        image: (N, d) float32 unit-norm, those of `CLIP.encode_image` up to rounding.
        tokens: (N, rows · columns, d) float32 unit-norm, one per patch, row by row from the top left.
        grid: (rows, columns).

    Embeddings from `CLIP.encode_patches_raw` may have any norm.
    """

    image: Tensor
    tokens: Tensor
    grid: tuple[int, int]


def patch_grid(visual: Any, size: tuple[int, int], name: str) -> tuple[int, int]:
    """(rows, columns) of patches in an image of (height, width) pixels; ValueError if the tower has no patch tokens.

    Args:
        name: The model's name, for the message.
    """
    if isinstance(visual, VisionTransformer) and getattr(visual, "attn_pool_contrastive", None) is None:
        rows, columns = visual.grid_size
        return int(rows), int(columns)
    tower = visual
    if isinstance(visual, TimmModel):
        tower = visual.trunk
        grid_of = getattr(getattr(tower, "patch_embed", None), "dynamic_feat_size", None)
        # A tower that halves its grid as it goes (Swin) embeds patches too, but keeps no sequence of tokens.
        if grid_of is not None and hasattr(tower, "num_prefix_tokens"):
            rows, columns = grid_of(size)
            return rows, columns
    raise ValueError(
        f"the image tower of {name}, {type(tower).__name__}, has no patch tokens; choose a ViT, such as "
        "mini-vit or ViT-B-32/openai"
    )


def embed_patches(visual: Any, normalised: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass of a tower with a `patch_grid`: (N, d) image and (N, rows · columns, d) patch embeddings.

    Args:
        normalised: (N, 3, H, W) pixels, normalised as the tower expects. The embeddings are not normalised.
    """
    with _every_patch(visual):
        if isinstance(visual, TimmModel):
            return _embed_timm(visual, normalised)
        return _embed_open_clip(visual, normalised)


def _embed_open_clip(visual: Any, normalised: Tensor) -> tuple[Tensor, Tensor]:
    states: list[Tensor] = []
    handle = visual.transformer.register_forward_hook(lambda module, inputs, output: states.append(output))
    try:
        image = (
            visual(normalised, every_token=True)
            if isinstance(visual, ClassTokenTower)
            else visual(normalised)
        )
    finally:
        handle.remove()
    tokens = states[0][:, 1:]
    pooler = visual.attn_pool
    if pooler is not None:  # CoCa
        # With a single token, every query gives the same result: the token's value.
        query = pooler.ln_q(pooler.query[:1])

        def pool(alone: Tensor) -> Tensor:
            keys = pooler.ln_k(alone)
            return pooler.attn(query.expand(len(alone), 1, -1), keys, keys, need_weights=False)[0]

        tokens = _each_alone(tokens, 1, pool)
    tokens = visual.ln_post(tokens)
    if visual.proj is not None:
        tokens = tokens @ visual.proj
    return image[0] if isinstance(image, tuple) else image, tokens


def _embed_timm(visual: Any, normalised: Tensor) -> tuple[Tensor, Tensor]:
    trunk = visual.trunk

    def head(features: Tensor) -> Tensor:
        return visual.head(trunk.forward_head(features))

    features = trunk.forward_features(normalised)
    prefix = trunk.num_prefix_tokens
    return head(features), _each_alone(features[:, prefix:], prefix + 1, head)


def _each_alone(tokens: Tensor, copies: int, head: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, L, width) tokens → (N, L, d): for each token, the head's output on a sequence of `copies` copies of it."""
    n, count, width = tokens.shape
    alone = tokens.reshape(n * count, 1, width).expand(-1, copies, -1)
    return torch.cat([head(part) for part in alone.split(MOST_SEQUENCES)]).reshape(n, count, -1)


@contextmanager
def _every_patch(visual: Any) -> Iterator[None]:
    """Turn patch dropout off: every patch needs an embedding."""
    tower = visual.trunk if isinstance(visual, TimmModel) else visual
    dropouts: list[Any] = [getattr(tower, name, None) for name in ("patch_dropout", "patch_drop")]
    active = [module for module in dropouts if module is not None and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()
