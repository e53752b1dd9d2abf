"""Square Attack (Andriushchenko et al. 2020): random search with square patches, forward passes only."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from advflyp.attack.base import Member
from advflyp.attack.losses import margin
from advflyp.attack.streams import Streams, as_integers, as_signs
from advflyp.attack.threat import Threat
from advflyp.attack.victim import AT_ONCE_ON_CPU, Points, Victim, correct_points
from advflyp.devices import lowered, to_device

# From these queries on, p is p_init divided by 2, 4, 8, … (the paper's schedule for 10 000 queries)
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Queries whose random numbers are drawn at once; drawing for one at a time would take as long as a small network.
AHEAD = 64
# Proposals per forward pass, when fewer images than this are left.
AT_ONCE_ON_ACCELERATOR = 256


@dataclass
class _RandomSearch(Points):
    streams: Streams
    best: Tensor
    best_loss: Tensor
    drawn: Tensor  # (M, AHEAD, draws per query, C) in [0, 1)


@dataclass
class _Query:
    """M proposals. `point`: the best image of each, before the query; the proposal, after it."""

    images: Tensor
    labels: Tensor
    point: Tensor
    drawn: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class Square(Member):
    """Square Attack on the margin loss. Each image draws its own squares; robust images are returned unchanged.

    Args:
        queries: Proposals per image, after the start.
        p_init: Fraction of the pixels that the first squares cover, above 0 and at most 1.
        rescale: Fit the whole schedule of p into `queries`; AutoAttack does not, so it stops half-way.
    """

    queries: int = 5000
    p_init: float = 0.8
    rescale: bool = False
    kind: ClassVar[str] = "square"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be above 0 and at most 1, for example 0.8, not {self.p_init:g}")

    @torch.no_grad()
    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        result = images.detach().clone()
        points = correct_points(victim, result, labels, streams)
        if not len(points):
            return result
        begin, proposals = (_stripes, _Squares) if threat.norm == "linf" else (_tiles, _Bumps)
        best = begin(points.images, threat, points.streams)
        logits = victim(best)
        loss = margin(logits, points.labels)
        at = _RandomSearch(points.rows, points.images, points.labels, points.streams, best, loss, drawn=loss)
        at.leave(victim.fooled(best, at.labels, logits), best, result)
        self._search(victim, at, proposals, threat, result)
        return result

    def _search(
        self,
        victim: Victim,
        at: _RandomSearch,
        proposals: "type[_Squares | _Bumps]",
        threat: Threat,
        result: Tensor,
    ) -> None:
        channels, height, width = at.images.shape[1:]
        most = AT_ONCE_ON_CPU if at.images.device.type == "cpu" else AT_ONCE_ON_ACCELERATOR
        taken, query = 1.0, 0
        for stage, end in self._stages():
            side = round(math.sqrt(self.p_init / 2**stage * height * width))
            # One object for all batches: it is the `kind` of the steps.
            propose = victim.once(
                (proposals, threat, side, at.images.shape[1:], at.images.dtype),
                partial(proposals, threat, side, at.images),
            )
            while query < end and len(at):
                if query % AHEAD == 0:
                    draws = proposals.draws
                    at.drawn = at.streams.ahead(AHEAD * draws, channels).unflatten(1, (AHEAD, draws))
                # Enough that about one image in four accepts one.
                together = max(1, min(most // len(at), int(0.25 / max(taken, 1e-3))))
                until = min(query + together, end, query - query % AHEAD + AHEAD)
                queries = (until - query) * len(at)
                taken += 0.1 * (_make(victim, at, propose, query, until, result) / queries - taken)
                query = until

    def _stages(self) -> Iterator[tuple[int, int]]:
        """How often p has been halved, and the query at which it is halved again or the search ends."""
        scale = self.queries if self.rescale else 10_000
        starts = [-(-(start + 1) * scale // 10_000) for start in SCHEDULE]
        for end in sorted({self.queries, *(start for start in starts if start < self.queries)}):
            yield sum(start < end for start in starts), end


def _make(
    victim: Victim, at: _RandomSearch, propose: "_Squares | _Bumps", begin: int, end: int, result: Tensor
) -> int:
    """Make the queries from `begin` to `end` for each image, and return how many proposals were accepted.

    They are made all at once, since most proposals are rejected and do not affect later ones. The queries after an
    accepted proposal are repeated, so the result equals that of sequential queries.
    """
    count, taken, device = end - begin, 0, at.rows.device
    made = torch.zeros(len(at), dtype=torch.long)  # on the host, where the next queries are chosen
    while len(rows := (made < count).nonzero().squeeze(1)):
        row, step = (made[rows][:, None] + torch.arange(count) < count).nonzero(as_tuple=True)
        query = made[rows[row]] + step
        image, drawn = to_device(rows[row], device), to_device((begin + query) % AHEAD, device)
        asked = _Query(at.images[image], at.labels[image], at.best[image], at.drawn[image, drawn])
        logits, loss = victim.advance(partial(_ask, victim, propose), asked, propose)
        fooled = victim.fooled(asked.point, asked.labels, logits)
        # The first accepted proposal of each image; `none` if there is none.
        none = len(asked)
        place = torch.where((loss > at.best_loss[image]) | fooled, torch.arange(none, device=device), none)
        first = lowered(torch.full((len(rows),), none, device=device), to_device(row, device), place)
        # The only synchronisation with the device, apart from `fooled`.
        place, gone = torch.stack([first, fooled[first.clamp_max(none - 1)].long()]).cpu()
        is_taken = place < none
        made[rows] = count
        if not is_taken.any():
            continue
        rows, place, gone = rows[is_taken], place[is_taken], gone[is_taken].bool()
        of, chosen = to_device(rows, device), to_device(place, device)
        at.best[of], at.best_loss[of] = asked.point[chosen], loss[chosen]
        made[rows] = query[place] + 1
        taken += len(rows)
        left = torch.zeros(len(at), dtype=torch.bool)
        left[rows[gone]] = True
        at.leave(left, at.best, result)
        made = made[~left]
    return taken


def _ask(victim: Victim, propose: "_Squares | _Bumps", at: _Query) -> tuple[Tensor, Tensor]:
    """Logits (M, K) and margins (M,) of the proposals."""
    at.point = propose(at.images, at.point, at.drawn)
    logits = victim(at.point)
    return logits, margin(logits, at.labels)


def _stripes(images: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """Vertical stripes one pixel wide, each ±ε in each colour."""
    _, channels, _, width = images.shape
    return threat.project(images, images + threat.eps * streams.signs(channels, 1, width, dtype=images.dtype))


class _Squares:
    """L∞: the best image so far with one square at ±ε in each colour (Algorithm 2)."""

    draws = 3  # per image and query: row, column, a number for each colour

    def __init__(self, threat: Threat, side: int, images: Tensor) -> None:
        height, width = images.shape[2:]
        self.eps, self.side = threat.eps, min(max(side, 1), height, width)
        self.rows, self.columns = (torch.arange(size, device=images.device) for size in (height, width))

    def __call__(self, images: Tensor, best: Tensor, drawn: Tensor) -> Tensor:
        top, left = _corner(drawn[:, 0], drawn[:, 1], self.side, images)
        down, across = self.rows - top, self.columns - left
        inside = ((down >= 0) & (down < self.side))[:, None, :, None]
        inside = inside & ((across >= 0) & (across < self.side))[:, None, None, :]
        signs = as_signs(drawn[:, 2, :, None, None], images.dtype)
        # No projection needed: pixels are ±ε from the image, or as in `best`.
        colour = torch.add(images, signs, alpha=self.eps).clamp_(0, 1)
        return torch.where(inside, colour, best)


def _tiles(images: Tensor, threat: Threat, streams: Streams) -> Tensor:
    """A grid of bumps (about five along the shorter side) with random directions and signs, of total length ε."""
    _, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    bump = _bump(side, images)
    is_upright = streams.uniform(1, down, across)[..., None, None] < 0.5
    bumps = torch.where(is_upright, bump, bump.T) * streams.signs(channels, down, across)[..., None, None]
    delta = torch.zeros_like(images)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    grid = bumps.transpose(3, 4).flatten(4, 5).flatten(2, 3)
    delta[:, :, top : top + down * side, left : left + across * side] = grid
    return _fill(images, delta, threat)


class _Bumps:
    """L2: a bump in one window; its length combines those of two windows and the unused part of ε (Algorithm 3)."""

    draws = 6  # per image and query: rows and columns of two windows, the bump's direction, a number for each colour

    def __init__(self, threat: Threat, side: int, images: Tensor) -> None:
        height, width = images.shape[2:]
        side = max(side, 3)
        self.threat, self.side = threat, min(side + 1 - side % 2, height, width)
        self.bump = _bump(self.side, images)

    def __call__(self, images: Tensor, best: Tensor, drawn: Tensor) -> Tensor:
        delta = best - images
        channels = delta.shape[1]
        window, other = (self._window(drawn[:, n], drawn[:, n + 1], delta) for n in (0, 2))
        squares = delta.square().sum((2, 3), keepdim=True)
        spare = (self.threat.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / channels
        old = delta[window]
        zero = delta.new_zeros(())
        delta[window] = zero
        delta[other] = zero
        budget = (spare + squares - delta.square().sum((2, 3), keepdim=True)).clamp_min(0).sqrt()
        bump = torch.where(drawn[:, 4, :1, None, None] < 0.5, self.bump, self.bump.T)
        bump = bump * as_signs(drawn[:, 5, :, None, None], torch.float32)
        delta[window] = budget * _unit(bump + _unit(old, (2, 3)), (2, 3))
        return _fill(images, delta, self.threat)

    def _window(self, row: Tensor, column: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        """Indices of one window per image, over all colour channels."""
        top, left = _corner(row, column, self.side, delta)
        steps = torch.arange(self.side, device=delta.device)
        every = torch.arange(len(delta), device=delta.device)[:, None, None, None]
        colours = torch.arange(delta.shape[1], device=delta.device)[:, None, None]
        return every, colours, (top + steps)[:, None, :, None], (left + steps)[:, None, None, :]


def _corner(row: Tensor, column: Tensor, side: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 1) each: top and left of squares with this side, from the first column of (M, C) numbers in [0, 1)."""
    height, width = images.shape[2:]
    return as_integers(row[:, :1], height - side + 1), as_integers(column[:, :1], width - side + 1)


def _bump(side: int, like: Tensor) -> Tensor:
    """(side, side): two pyramids of opposite sign, one above the other, of joint length 1."""
    half = side // 2
    bump = torch.cat([_pyramid(half, side, like.dtype), -_pyramid(side - half, side, like.dtype)])
    return to_device(bump / bump.norm(), like.device)


def _pyramid(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """(height, width), length 1: Σ_k 1/(k + 1)² over the concentric squares (of radius k) that contain the pixel."""
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
