"""Large matrices of logits, some rows at a time: the memory of a loss grows with N, not with N²."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# More logits than a batch of 4,096 has (64 MiB) are computed in blocks of rows, and again for the gradient.
MOST_LOGITS = 4096**2


def in_row_blocks(function: Callable[..., Any], *rows: Tensor, columns: int) -> list[Any]:
    """What `function` returns for each block of rows, in order; one block where that is small enough.

    rows:    tensors (n, …), split alike

    Args:
        columns: Number of columns of the (n, columns) matrix that `function` makes of them.
    """
    size = max(1, MOST_LOGITS // columns)
    if len(rows[0]) <= size:
        return [function(*rows)]
    blocks = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return [checkpoint(function, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]


def without(logits: Tensor, ignored: Iterable[Tensor]) -> Tensor:
    """Ignored pairs at the lowest number: −∞ would have a NaN for a gradient in a column of nothing else."""
    for mask in ignored:
        logits = logits.masked_fill(mask, torch.finfo(logits.dtype).min)
    return logits
