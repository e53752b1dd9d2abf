"""Large matrices of logits, some rows at a time: the memory of a loss grows with N, not with N²."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Beyond the logits of a batch of 4,096 (64 MiB), they are computed in row blocks, and recomputed for the gradient.
MOST_LOGITS = 4096**2


def in_row_blocks(function: Callable[..., Any], *rows: Tensor, columns: int) -> list[Any]:
    """The results of `function` for each block of rows, in order; a single block if that is small enough.

    rows:    tensors (n, …), all split into the same blocks

    Args:
        columns: Number of columns of the (n, columns) matrix that `function` computes from them.
    """
    size = max(1, MOST_LOGITS // columns)
    if len(rows[0]) <= size:
        return [function(*rows)]
    blocks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return [checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]


def without(logits: Tensor, ignored: Iterable[Tensor]) -> Tensor:
    """Set ignored pairs to the lowest finite number: in a column of nothing else, −∞ would give NaN gradients."""
    for mask in ignored:
        logits = logits.masked_fill(mask, torch.finfo(logits.dtype).min)
    return logits
