"""Clean against robust accuracy: every method a point, the Pareto front of those that no other beats in both."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from advflyp.report.figures.plots import GRID, MUTED, Look, axes_in, sheet, styled
from advflyp.report.measure.estimates import Estimate

Point = tuple[float, float]


def pareto(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other beats (as good in both numbers, better in one), ascending by the first."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1]))
    front: list[int] = []
    best = -math.inf
    for _, group in itertools.groupby(order, key=lambda i: points[i][0]):
        same = list(group)
        top = points[same[0]][1]
        if top > best:
            front += [i for i in same if points[i][1] == top]
            best = top
    return front[::-1]


@styled
def tradeoff(
    points: Mapping[str, tuple[Estimate, Estimate]],
    look: Look,
    *,
    width: int,
    robust: str,
    title: str = "",
    on_front: Collection[str] | None = None,
) -> Figure:
    """Each method's clean (across) and robust accuracy (up) with their intervals, and its name beside it.

    Args:
        points: Method → (clean, robust).
        look: Colours, marks and names of the methods.
        width: In pixels.
        robust: Name of the robust accuracy's condition, for the axis.
        title: Above the axes.
        on_front: Methods that the Pareto front is made of, by default all.
    """
    figure = sheet(width, 480 if width > 500 else 420)
    axes = axes_in(figure, 56, 50, 16, 34 if title else 14)
    axes.set_title(title, pad=10)
    places = {name: (100 * clean.value, 100 * hard.value) for name, (clean, hard) in points.items()}
    axes.set_xlim(*_limits([clean for clean, _ in points.values()]))
    axes.set_ylim(*_limits([hard for _, hard in points.values()]))
    axes.grid()
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("accuracy on clean images (%)")
    axes.set_ylabel(f"accuracy under {robust} (%)" if width >= 500 else "robust accuracy (%)")
    ranked = [place for name, place in places.items() if on_front is None or name in on_front]
    avoided = _front(axes, [ranked[i] for i in pareto(ranked)]) if ranked else []
    for name, (clean, hard) in points.items():
        (x, y), colour = places[name], look.colours[name]
        faint = {"color": colour, "alpha": 0.35, "linewidth": 2.5, "solid_capstyle": "butt"}
        axes.plot([100 * clean.low, 100 * clean.high], [y, y], **faint)
        axes.plot([x, x], [100 * hard.low, 100 * hard.high], **faint)
        axes.plot([x], [y], look.markers[name], color=colour, markersize=9, clip_on=False, zorder=3)
    # The size of a text is known on a canvas only.
    FigureCanvasAgg(figure)
    _labels(axes, look, places, avoided)
    return figure


@styled
def against_cost(points: Mapping[str, tuple[float, Estimate]], look: Look, *, width: int) -> Figure:
    """Each training's robust accuracy (up) against the arithmetic that it took (across), its name beside it.

    Args:
        points: Training → (PFLOPs, robust accuracy).
        look: Colours, marks and names of the trainings.
        width: In pixels.
    """
    figure = sheet(width, 380)
    axes = axes_in(figure, 56, 50, 16, 14)
    places = {name: (cost, 100 * robust.value) for name, (cost, robust) in points.items()}
    axes.set_xlim(0, 1.12 * max(cost for cost, _ in points.values()))
    axes.set_ylim(*_limits([robust for _, robust in points.values()]))
    axes.grid()
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("arithmetic of the finetuning (PFLOPs)")
    axes.set_ylabel("robust accuracy (%)")
    for name, (cost, robust) in points.items():
        colour = look.colours[name]
        axes.plot(
            [cost, cost], [100 * robust.low, 100 * robust.high], color=colour, alpha=0.35, linewidth=2.5
        )
        axes.plot([cost], [100 * robust.value], look.markers[name], color=colour, markersize=9, zorder=3)
    # The size of a text is known on a canvas only.
    FigureCanvasAgg(figure)
    _labels(axes, look, places, ())
    return figure


def _labels(axes: Axes, look: Look, places: Mapping[str, Point], avoided: Sequence[Point]) -> None:
    """Each point's name near it: on no point, no other name and inside the axes, as far as there is room.

    Args:
        avoided: Points that no name is to cover, in the axes' units.
    """
    # It imports pyplot, which takes a while.
    from adjustText import adjust_text

    texts = [
        axes.text(x, y, look.names[name], color=look.colours[name], fontweight="bold", zorder=4)
        for name, (x, y) in places.items()
    ]
    marks = [_mark(axes, place) for place in places.values()]
    xs, ys = zip(*avoided, strict=True) if avoided else ((), ())
    # As many steps on every machine, so that the figure is the same.
    adjust_text(
        texts,
        xs or None,
        ys or None,
        objects=marks,
        ax=axes,
        iter_lim=400,
        expand=(1.12, 1.5),
        force_text=(0.3, 0.5),
        force_static=(0.2, 0.4),
        min_arrow_len=16,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8},
    )


def _mark(axes: Axes, place: Point) -> Bbox:
    """The room that a point's mark takes, in the axes' units."""
    x, y = axes.transData.transform(place)
    reach = 8 * axes.figure.dpi / 72
    corners = [(x - reach, y - reach), (x + reach, y + reach)]
    return Bbox(axes.transData.inverted().transform(corners))


def _front(axes: Axes, front: Sequence[Point]) -> list[Point]:
    """Draws the stairs under which everything is beaten by a method of the front; points along them."""
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
    """All intervals, and room around the points where names stand; in %, within [0, 100]."""
    low, high = (100 * end(one.value for one in values) for end in (min, max))
    room = max(2.0, 0.16 * (high - low))
    low = min(low - room, *(100 * one.low - 0.5 for one in values))
    high = max(high + room, *(100 * one.high + 0.5 for one in values))
    return max(0.0, low), min(100.0, high)
