"""Clean against robust accuracy: every method a point, the front of those that no other beats in both."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.report.figures.plots import GRID, MUTED, Look, axes_in, sheet, styled
from advflyp.report.measure.measured import Estimate

# How wide a letter of a bold 12-pixel label is at most on average, and how high a line.
LETTER, LINE = 7.4, 15.0

Point = tuple[float, float]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
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
    height: int,
    robust: str,
    title: str = "",
    on_front: Collection[str] | None = None,
) -> Figure:
    """Each method's clean (across) and robust accuracy (up) with their intervals, and its name beside it.

    points:   method → (clean, robust)
    robust:   name of the robust accuracy's condition, for the axis
    on_front: methods that the front is made of, by default all
    """
    figure = sheet(width, height)
    axes = axes_in(figure, 56, 50, 16, 34 if title else 14)
    axes.set_title(title, pad=10)
    xs = [100 * clean.value for clean, _ in points.values()]
    ys = [100 * hard.value for _, hard in points.values()]
    axes.set_xlim(*_limits([clean for clean, _ in points.values()]))
    axes.set_ylim(*_limits([hard for _, hard in points.values()]))
    axes.grid()
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("accuracy on clean images (%)")
    axes.set_ylabel(f"accuracy under {robust} (%)" if width >= 500 else "robust accuracy (%)")
    names = list(points)
    ranked = [place for place, name in enumerate(names) if on_front is None or name in on_front]
    front = [ranked[i] for i in pareto([(xs[place], ys[place]) for place in ranked])]
    stairs = _front(axes, [(xs[i], ys[i]) for i in front]) if front else []
    for (name, (clean, hard)), x, y in zip(points.items(), xs, ys, strict=True):
        colour = look.colours[name]
        faint = {"color": colour, "alpha": 0.35, "linewidth": 2.5, "solid_capstyle": "butt"}
        axes.plot([100 * clean.low, 100 * clean.high], [y, y], **faint)
        axes.plot([x, x], [100 * hard.low, 100 * hard.high], **faint)
        axes.plot([x], [y], look.markers[name], color=colour, markersize=9, clip_on=False, zorder=3)
    crosses = [
        line
        for (clean, hard), x, y in zip(points.values(), xs, ys, strict=True)
        for line in (
            ((100 * clean.low, y), (100 * clean.high, y)),
            ((x, 100 * hard.low), (x, 100 * hard.high)),
        )
    ]
    _labels(axes, look, list(points), xs, ys, [*crosses, *itertools.pairwise(stairs)])
    return figure


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y upwards."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        up = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(0.0, across) * max(0.0, up)

    def outside(self, frame: "Box") -> float:
        """The area of this that lies outside `frame`."""
        return self.width * self.height - self.overlap(frame)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    lines: Sequence[Box] = (),
) -> list[Box]:
    """A place for the label of each point near it: on no point, no other label, and inside the frame.

    points, sizes: in pixels
    lines:         thin boxes that are better not written on, but may be
    Those in the thickest crowd choose first. Where there is no free place, the one that covers least.
    """
    marks = [Box(x - 6, y - 6, 12, 12) for x, y in points]
    crowd = [sum(math.dist(p, q) < 90 for q in points) for p in points]
    placed: dict[int, Box] = {}
    for i in sorted(range(len(points)), key=lambda i: -crowd[i]):
        (x, y), (w, h) = points[i], sizes[i]
        best: tuple[float, Box] | None = None
        for reach in (10, 16, 24, 34, 46, 60, 78, 100, 130, 165, 200):
            for place, (dx, dy) in enumerate(_DIRECTIONS):
                # The label's near edge or corner lies `reach` away.
                box = Box(x + dx * reach + (dx - 1) / 2 * w, y + dy * reach + (dy - 1) / 2 * h, w, h)
                spoilt = box.outside(frame) * 4 + sum(map(box.overlap, marks))
                spoilt += sum(3 * box.overlap(other) for other in placed.values())
                crossed = sum(box.overlap(line) > 0 for line in lines)
                cost = (spoilt > 0) * (1e4 + 50 * spoilt) + reach * (1 + 0.04 * place) + 22 * crossed
                if best is None or cost < best[0]:
                    best = cost, box
        assert best is not None
        placed[i] = best[1]
    return [placed[i] for i in range(len(points))]


# Right, left, above, below, then the corners; each as the direction from the point to the label's centre.
_DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7)]


def _labels(
    axes: Axes,
    look: Look,
    names: Sequence[str],
    xs: Sequence[float],
    ys: Sequence[float],
    lines: Sequence[tuple[Point, Point]],
) -> None:
    """Each point's name near it. lines: what is drawn straight across or up, in the axes' units."""
    scale = 72 / axes.figure.dpi
    window = axes.get_window_extent()
    frame = Box(window.x0 * scale, window.y0 * scale, window.width * scale, window.height * scale)
    places = [
        (float(x) * scale, float(y) * scale)
        for x, y in axes.transData.transform(list(zip(xs, ys, strict=True)))
    ]
    obstacles = []
    for line in lines:
        (left, low), (right, high) = axes.transData.transform(sorted(line)) * scale
        low, high = sorted((float(low), float(high)))
        obstacles.append(Box(float(left) - 1, low - 1, float(right - left) + 2, high - low + 2))
    sizes = [(LETTER * len(look.names[name]) + 2, LINE) for name in names]
    for name, (x, y), box in zip(names, places, place_labels(places, sizes, frame, obstacles), strict=True):
        # The text hangs on the side of the box that looks at the point: whatever font the page has, it stays there.
        centre = box.x + box.width / 2
        side = "left" if box.x >= x else "right" if box.x + box.width <= x else "center"
        anchor = {"left": box.x, "right": box.x + box.width, "center": centre}[side]
        middle = box.y + box.height / 2
        gap = math.hypot(max(box.x - x, 0, x - box.x - box.width), max(box.y - y, 0, y - box.y - box.height))
        if gap > 18:
            end = (min(max(x, box.x), box.x + box.width), min(max(y, box.y), box.y + box.height))
            inverse = axes.transData.inverted()
            one, two = (inverse.transform((px / scale, py / scale)) for px, py in ((x, y), end))
            axes.plot([one[0], two[0]], [one[1], two[1]], color=look.colours[name], linewidth=0.8, alpha=0.7)
        axes.annotate(
            look.names[name],
            (x, y),
            (anchor - x, middle - y),
            xycoords=("figure points", "figure points"),
            textcoords="offset points",
            ha=side,
            va="center",
            color=look.colours[name],
            fontweight="bold",
            annotation_clip=False,
        )


def _front(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Point]:
    """Draws the stairs under which everything is beaten by a method of the front; their corners."""
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
