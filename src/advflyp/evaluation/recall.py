"""Ranks and recall of image–text retrieval, and the losses that attack it, as functions of embeddings."""

from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.evaluation.results import wilson

# Cosines that differ by less count as equal: float32 cannot tell them apart, so rounding would decide at random.
TIE = 1e-6
CUTOFFS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Fraction of n queries with a hit among the k most similar items, and its Wilson 95 % interval [low, high]."""

    k: int
    hits: int
    n: int
    recall: float
    ci95: list[float]


@torch.no_grad()
def ranks(images: Tensor, captions: Tensor, owner: Tensor, *, block: int = 512) -> tuple[Tensor, Tensor]:
    """The rank of each image's best own caption among all captions, and of each caption's image among all images.

    Args:
        images: (n, d) unit-norm.
        captions: (m, d) unit-norm.
        owner: (m,) int64, the row of the image that a caption belongs to; every image has at least one caption.
        block: Images at a time: block × m similarities are in memory.

    Returns:
        (n,) and (m,) int64, from 1. Anything as similar as the correct item ranks before it, so that a model gains
        nothing by making all similarities equal, or NaN.
    """
    own = (images[owner] * captions).sum(1)
    best = torch.full_like(images[:, 0], float("-inf")).scatter_reduce(0, owner, own, "amax")
    of_images, of_captions = [], torch.ones_like(owner)
    for start in range(0, len(images), block):
        rows = torch.arange(start, min(start + block, len(images)), device=images.device)
        similarity = images[rows] @ captions.T
        similarity.masked_fill_(owner == rows[:, None], float("-inf"))
        # "Not below" instead of "at least", which a NaN never is.
        of_images.append(1 + (~(similarity < best[rows, None] - TIE)).sum(1))
        of_captions += (~(similarity < own - TIE)).sum(0)
    return torch.cat(of_images), of_captions


def recalls(ranked: Tensor, independent: int) -> list[Recall]:
    """Recall at 1, 5 and 10.

    Args:
        ranked: (n,) ranks of n queries.
        independent: How many of them are independent. Captions of one image share its embedding and tend to hit or miss
            together, so that their interval is computed for as many queries as there are images.
    """
    n = len(ranked)
    result = []
    for k in CUTOFFS:
        hits = int((ranked <= k).sum())
        low, high = wilson(hits / n * independent, independent)
        result.append(Recall(k=k, hits=hits, n=n, recall=hits / n, ci95=[low, high]))
    return result


def cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """(N,) −log Σ_{j own} softmax(z)_j: how little of an image's softmax over all captions falls on its own.

    Args:
        logits: (N, m).
        own: (N, m) bool.
    """
    return logits.logsumexp(1) - logits.masked_fill(~own, float("-inf")).logsumexp(1)


def margin(logits: Tensor, own: Tensor) -> Tensor:
    """(N,) max_{j foreign} z_j − max_{j own} z_j; above 0 if the most similar caption is another image's.

    Args:
        logits: (N, m).
        own: (N, m) bool.
    """
    return logits.masked_fill(own, float("-inf")).amax(1) - logits.masked_fill(~own, float("-inf")).amax(1)
