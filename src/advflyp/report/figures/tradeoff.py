"""Clean against robust accuracy: a point for each method, and the Pareto front of the non-dominated ones."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from advflyp.report.figures.plots import GRID, MUTED, Look, figure_with_axes, styled
from advflyp.report.measure.estimates import Estimate

Point = tuple[float, float]
Span = tuple[float, float, float]  # low, value, high
# Candidate positions of a label: the side of its point, and the distance in pixels.
WAYS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
DISTANCES = (5, 9, 14, 22, 34, 52, 80)


def pareto(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates (as good in both numbers, better in one), ascending in x."""
    best = {(x, y) for x, y in points if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)}
    return sorted((i for i, point in enumerate(points) if point in best), key=lambda i: points[i][0])


@styled()
def tradeoff(
    points: Mapping[str, tuple[Estimate, Estimate]],
    look: Look,
    *,
    width: int,
    robust: str,
    title: str,
    on_front: Collection[str],
) -> Figure:
    """A labelled point for each method: clean accuracy (x) against robust accuracy (y), with intervals.

    Args:
        points: Method → (clean, robust).
        robust: Name of the robust accuracy's condition, for the axis.
        on_front: Methods that may be on the Pareto front, one or more.
    """
    figure, axes = _axes(width, 480 if width > 500 else 420, "accuracy on clean images (%)", top=34)
    axes.set_title(title, pad=10)
    axes.set_ylabel(f"accuracy under {robust} (%)" if width >= 500 else "robust accuracy (%)")
    axes.set_xlim(*_limits([clean for clean, _ in points.values()]))
    axes.set_ylim(*_limits([hard for _, hard in points.values()]))
    ranked = [(100 * a.value, 100 * b.value) for name, (a, b) in points.items() if name in on_front]
    front = _front(axes, [ranked[i] for i in pareto(ranked)])
    spans = {name: (_span(clean), _span(hard)) for name, (clean, hard) in points.items()}
    _draw(axes, look, spans, [front])
    return figure


@styled()
def against_cost(points: Mapping[str, tuple[float, Estimate]], look: Look, *, width: int) -> Figure:
    """A labelled point for each training: robust accuracy (y) against the arithmetic it took (x).

    Args:
        points: Training → (PFLOPs, robust accuracy).
    """
    figure, axes = _axes(width, 380, "arithmetic of the finetuning (PFLOPs)", top=14)
    axes.set_ylabel("robust accuracy (%)")
    axes.set_xlim(0, 1.12 * max(cost for cost, _ in points.values()))
    axes.set_ylim(*_limits([robust for _, robust in points.values()]))
    _draw(axes, look, {name: ((cost, cost, cost), _span(robust)) for name, (cost, robust) in points.items()})
    return figure


def _axes(width: int, height: int, across: str, *, top: float) -> tuple[Figure, Axes]:
    figure, axes = figure_with_axes(width, height, left=56, bottom=50, right=16, top=top)
    FigureCanvasAgg(figure)  # the size of a text is known on a canvas only
    axes.grid()
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(across)
    return figure, axes


def _span(one: Estimate) -> Span:
    return 100 * one.low, 100 * one.value, 100 * one.high


def _draw(
    axes: Axes, look: Look, spans: Mapping[str, tuple[Span, Span]], lines: Sequence[Sequence[Point]] = ()
) -> None:
    """Draw points with horizontal and vertical bars, and their names, which cover no point and few of `lines`."""
    lines = list(lines)
    for name, ((left, x, right), (low, y, high)) in spans.items():
        colour = look.colours[name]
        for bar in ([(left, y), (right, y)], [(x, low), (x, high)]):
            axes.plot(*zip(*bar, strict=True), color=colour, alpha=0.35, linewidth=2.5, solid_capstyle="butt")
            lines.append(bar)
        axes.plot([x], [y], look.markers[name], color=colour, markersize=9, clip_on=False, zorder=3)
    places = {name: (across[1], up[1]) for name, (across, up) in spans.items()}
    _labels(axes, look, places, [axes.transData.transform(line) for line in lines])


def _labels(
    axes: Axes, look: Look, places: Mapping[str, Point], lines: Sequence[npt.NDArray[np.float64]]
) -> None:
    """Write each name at the nearest position that covers no point, no other name, and few of `lines`.

    lines: in pixels, each (corners, 2)
    """
    pixel, frame = axes.figure.dpi / 72, axes.get_window_extent()
    centres = axes.transData.transform(list(places.values()))
    to_data = axes.transData.inverted().transform
    away, ways = (np.array(each) for each in zip(*itertools.product(DISTANCES, WAYS), strict=True))
    taken = np.stack([centres - 7 * pixel, centres + 7 * pixel])  # their lower and upper corners

    for (name, place), centre in zip(places.items(), centres, strict=True):
        text = axes.text(*place, look.names[name], ha="center", va="center", zorder=4, fontweight="bold")
        text.set_color(look.colours[name])
        half = np.array(text.get_window_extent().size) / 2
        middles = centre + ways * (half + away[:, None] * pixel)
        lower, upper = middles - half, middles + half
        covered = ((lower < frame.min) | (upper > frame.max)).any(1).astype(int)
        covered += ((lower[:, None] <= taken[1]) & (upper[:, None] >= taken[0])).all(2).sum(1)
        # The first of the best: lexsort is stable.
        best = np.lexsort((away + 12 * crossed(middles, half, lines), covered))[0]
        box = np.stack([lower[best], upper[best]])
        taken = np.concatenate([taken, box[:, None]], axis=1)
        x, y = to_data(middles[best])
        text.set_position((x, y))
        if away[best] > DISTANCES[1]:
            ends = np.array([place, to_data(np.clip(centre, *box))])
            axes.plot(*ends.T, color=MUTED, linewidth=0.8, zorder=2)


def crossed(
    middles: npt.NDArray[np.float64], half: npt.NDArray[np.float64], lines: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.int64]:
    """(M,) how many of `lines` enter the boxes around `middles` (M, 2) that extend by `half` (2,) to each side."""
    start = np.concatenate([line[:-1] for line in lines])
    along = np.concatenate([line[1:] for line in lines]) - start
    to_start = start - middles[:, None]
    # No axis separates box and segment: neither the two of the box nor the one across the segment.
    near = (np.abs(2 * to_start + along) < np.abs(along) + 2 * half).all(2)
    across = np.abs(to_start[..., 0] * along[:, 1] - to_start[..., 1] * along[:, 0])
    near &= across <= (half * np.abs(along[:, ::-1])).sum(1)
    firsts = np.cumsum([0, *(len(line) - 1 for line in lines[:-1])])
    return np.logical_or.reduceat(near, firsts, axis=1).sum(1)


def _front(axes: Axes, front: Sequence[Point]) -> list[Point]:
    """Draw the staircase below which the front dominates everything; returns its corners."""
    (left, _), (bottom, _) = axes.get_xlim(), axes.get_ylim()
    corners = [(left, front[0][1])]
    for place, (x, y) in enumerate(front):
        corners.append((x, y))
        corners.append((x, front[place + 1][1] if place + 1 < len(front) else bottom))
    xs, ys = zip(*corners, strict=True)
    axes.plot(xs, ys, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1.5)
    axes.fill_between(xs, ys, bottom, color=GRID, alpha=0.35, lw=0, zorder=0.5)
    return corners


def _limits(values: Sequence[Estimate]) -> tuple[float, float]:
    """Axis limits in %, within [0, 100], that hold all intervals and leave room for names around the points."""
    low, high = (100 * end(one.value for one in values) for end in (min, max))
    room = max(2.0, 0.16 * (high - low))
    low = min(low - room, *(100 * one.low - 0.5 for one in values))
    high = max(high + room, *(100 * one.high + 0.5 for one in values))
    return max(0.0, low), min(100.0, high)
