"""open_clip's text towers, computed only up to the end of the longest text.

In a causal tower no place depends on those after it, and the embedding is read at the token that ends the text. So the
padding behind it can be left out: a class prompt takes about 10 of CLIP's 77 places.
"""

from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from advflyp.devices import to_device


def encode_unpadded(net: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """What `net.encode_text` returns, up to rounding.

    Args:
        net: An open_clip model.
        tokens: (N, context) int64, on the CPU.
        device: The model's device.

    Returns:
        (N, d) embeddings of any norm; their rounding depends on the longest of the texts.
    """
    tower = _tower(net)
    ends = _ends(tower, tokens)
    if ends is None or not len(tokens) or tokens.shape[1] != len(tower.positional_embedding):
        return net.encode_text(to_device(tokens, device))
    length = int(ends.max()) + 1
    x = (
        tower.token_embedding(to_device(tokens[:, :length].contiguous(), device))
        + tower.positional_embedding[:length]
    )
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x), device=device), to_device(ends, device)])
    project = tower.text_projection
    if project is None:
        return x
    return project(x) if isinstance(project, nn.Linear) else x @ project


def without_padding(net: Any, tokens: Tensor) -> list[list[int]]:
    """The tokens of each text that its embedding depends on: in a causal tower, those up to its end."""
    ends = _ends(_tower(net), tokens)
    if ends is None:
        return tokens.tolist()
    return [row[: end + 1].tolist() for row, end in zip(tokens, ends.tolist(), strict=True)]


def _tower(net: Any) -> Any:
    return net.text if type(net) is open_clip.CustomTextCLIP else net


def _ends(tower: Any, tokens: Tensor) -> Tensor | None:
    """(N,) places at which the embeddings are read; None if they depend on later places, or the tower is another's."""
    pooling: Any
    end: Any
    if type(tower) is open_clip.CLIP:
        pooling, end = tower.text_pool_type, tower.text_eos_id
    elif type(tower) is TextTransformer and tower.cls_emb is None:
        pooling, end = tower.pool_type, tower.eos_id
    else:
        return None
    if tower.attn_mask is None or pooling not in ("argmax", "eos"):
        return None
    return tokens.argmax(1) if pooling == "argmax" else (tokens == end).int().argmax(1)
