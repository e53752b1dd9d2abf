"""Square Attack (Andriushchenko et al. 2020): random search with square patches, forward passes only."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.attack.losses import margin
from advflyp.attack.points import Points, standing
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.devices import to_device
from advflyp.dtypes import at_least_float32

# From these queries on, p is p_init divided by 2, 4, 8, … (the paper's schedule for 10 000 queries)
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass
class _Search(Points):
    streams: Streams
    best: Tensor
    best_loss: Tensor


@torch.no_grad()
def square(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    streams: Streams,
    queries: int = 5000,
    p_init: float = 0.8,
    rescale: bool = False,
) -> Tensor:
    """Square Attack on the margin loss. Each image draws its own squares.

    images:  (N, 3, H, W) float32 or float64 pixels in [0, 1]
    labels:  (N,) int64
    streams: the images' random numbers
    queries: proposals an image, after the start
    p_init:  share of the pixels that the first squares cover
    rescale: go through the whole schedule of p in `queries`; AutoAttack does not, it stops half-way
    Returns (N, 3, H, W) inside `threat`, detached: an image that fools `victim`, or else the image itself.
    """
    result = images.detach().clone()
    points = standing(victim, result, labels, streams)
    if not len(points):
        return result
    begin, propose = (_stripes, _linf_proposal) if threat.norm == "linf" else (_tiles, _l2_proposal)
    best = begin(points.images, threat, points.streams)
    logits = at_least_float32(victim(best))
    loss = margin(logits, points.labels)
    at = _Search(points.rows, points.images, points.labels, points.streams, best, loss)
    at.leave(victim.fooled(best, at.labels, logits), best, result)

    height, width = images.shape[2:]
    for query in range(queries):
        if not len(at):
            break
        stage = sum((query * 10_000 // queries if rescale else query) > start for start in SCHEDULE)
        side = round(math.sqrt(p_init / 2**stage * height * width))
        proposal = propose(at, threat, side)
        logits = at_least_float32(victim(proposal))
        loss = margin(logits, at.labels)
        better = loss > at.best_loss
        at.best = torch.where(better.view(-1, 1, 1, 1), proposal, at.best)
        at.best_loss = torch.where(better, loss, at.best_loss)
        at.leave(victim.fooled(proposal, at.labels, logits), proposal, result)
    return result


def _stripes(images: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """Vertical stripes one pixel wide, each ±ε in each colour."""
    _, channels, _, width = images.shape
    return threat.project(images, images + threat.eps * streams.signs(channels, 1, width, dtype=images.dtype))


def _linf_proposal(at: _Search, threat: Threat, side: int) -> Tensor:
    """The best image so far with one square at ±ε in each colour (Algorithm 2)."""
    _, channels, height, width = at.images.shape
    side = min(max(side, 1), height, width)
    rows, columns = _window(at, side)
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    colour = at.images + threat.eps * at.streams.signs(channels, 1, 1, dtype=at.images.dtype)
    return threat.project(at.images, torch.where(inside, colour, at.best))


def _tiles(images: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A 5 × 5 grid of bumps with random directions and signs, of length ε in all."""
    _, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    bumps = _bumps(side, streams, 1, down, across, dtype=images.dtype)
    bumps = bumps * streams.signs(channels, down, across)[..., None, None]
    delta = torch.zeros_like(images)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    grid = bumps.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return _fill(images, delta, threat)


def _l2_proposal(at: _Search, threat: Threat, side: int) -> Tensor:
    """A bump is added in one window, with the length it has, that of a second one and what ε leaves (Algorithm 3)."""
    count, channels, height, width = at.images.shape
    side = max(side, 3)
    side = min(side + 1 - side % 2, height, width)
    (rows, columns), (other_rows, other_columns) = _window(at, side), _window(at, side)
    delta = at.best - at.images
    every = torch.arange(count, device=delta.device)[:, None, None, None]
    colours = torch.arange(channels, device=delta.device)[:, None, None]
    window = (every, colours, rows[:, None, :, None], columns[:, None, None, :])
    other = (every, colours, other_rows[:, None, :, None], other_columns[:, None, None, :])

    spare = (threat.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / channels
    before = delta.square().sum((2, 3), keepdim=True)
    old = delta[window]
    zero = delta.new_zeros(())
    delta[window] = zero
    delta[other] = zero
    budget = (spare + before - delta.square().sum((2, 3), keepdim=True)).clamp_min(0).sqrt()
    bump = _bumps(side, at.streams, 1, dtype=delta.dtype) * at.streams.signs(channels, 1, 1)
    delta[window] = budget * _unit(bump + _unit(old, (2, 3)), (2, 3))
    return _fill(at.images, delta, threat)


def _window(at: _Search, side: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, (M, side) each, of a square at a random place in each image."""
    height, width = at.images.shape[2:]
    steps = torch.arange(side, device=at.images.device)
    top, left = at.streams.integers(height - side + 1), at.streams.integers(width - side + 1)
    return top[:, None] + steps, left[:, None] + steps


def _within(places: Tensor, size: int) -> Tensor:
    """(M, size) bool: which of the pixels 0 … size − 1 are between an image's first and last place."""
    pixels = torch.arange(size, device=places.device)
    return (pixels >= places[:, :1]) & (pixels <= places[:, -1:])


def _bumps(side: int, streams: Streams, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, *shape, side, side): two opposite pyramids of length 1 together, side by side or one above the other."""
    half = side // 2
    bump = torch.cat([_pyramid(half, side, dtype), -_pyramid(side - half, side, dtype)])
    bump = to_device(bump / bump.norm(), streams.index.device)
    upright = streams.uniform(*shape)[..., None, None] < 0.5
    return torch.where(upright, bump, bump.T)


def _pyramid(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(height, width), length 1: Σ_k 1/(k + 1)² over the squares of radius k about the centre that hold the pixel."""
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    radius = torch.maximum(rows.abs()[:, None], columns.abs())
    rings = 1 / torch.arange(1, max(height, width) // 2 + 2, dtype=dtype).square()
    sums = rings.flip(0).cumsum(0).flip(0)[radius]
    return sums / sums.norm().clamp_min(1e-12)


def _fill(images: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    """The images with `delta` scaled to length ε."""
    return threat.project(images, images + threat.eps * _unit(delta, (1, 2, 3)))


def _unit(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x / x.square().sum(dims, keepdim=True).sqrt().clamp_min(1e-12)
