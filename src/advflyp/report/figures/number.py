"""Accuracy against the number of training images, and accuracy by kind of training data."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.report.figures.curves import end_labels
from advflyp.report.figures.plots import GRID, MUTED, Look, figure_with_axes, styled
from advflyp.report.measure.estimates import Estimate

# Offset between the marks of two methods: a factor on the log axis, and a share of the distance between two kinds.
FACTOR, DODGE = 1.045, 0.13
WIDTH, HEIGHT = 420, 300


@styled()
def against_number(
    lines: Mapping[str, Sequence[tuple[float, Estimate]]],
    look: Look,
    *,
    what: str,
    title: str,
    named: bool = False,
) -> Figure:
    """Accuracy against the number of training samples on a log scale: a line with intervals for each method.

    Args:
        lines: Method → (number, accuracy), ascending; an infinite number stands for all the data and is drawn last.
        what: The label of the x axis.
        named: Whether to write the methods' names, which must be short, beside the lines' right ends.
    """
    right = 92 if named else 16
    figure, axes = figure_with_axes(WIDTH, HEIGHT, left=54, bottom=46, right=right, top=30, title=title)
    axes.set_xscale("log")
    numbers = sorted({number for line in lines.values() for number, _ in line})
    everything = 4 * max(filter(math.isfinite, numbers), default=1)
    ends = []
    for place, (method, line) in enumerate(lines.items()):
        # Side by side, else one interval would hide another.
        factor, colour = FACTOR ** (place - (len(lines) - 1) / 2), look.colours[method]
        x = [factor * min(number, everything) for number, _ in line]
        y = [100 * value.value for _, value in line]
        for at, (_, value) in zip(x, line, strict=True):
            _bar(axes, at, value, colour)
        axes.plot(x, y, f"{look.markers[method]}-", color=colour, linewidth=2, markersize=6.5)
        ends.append((y[-1], look.names[method], colour))
    ticks = [min(number, everything) for number in numbers]
    axes.set_xticks(ticks, [f"{number:,.0f}" if math.isfinite(number) else "all" for number in numbers])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axes.set_xlabel(what)
    axes.set_ylabel("accuracy (%)")
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=6)
    if named:
        low, high = axes.get_ylim()
        gap = 15 / (HEIGHT - 76) * (high - low)
        end_labels(axes, ends, axes.get_xlim()[1], gap, floor=-math.inf)
    return figure


@styled()
def by_kind(
    points: Mapping[str, Mapping[str, Estimate]],
    look: Look,
    *,
    title: str,
    reference: tuple[str, Estimate] | None = None,
) -> Figure:
    """A mark with its interval for each method and kind of data.

    Args:
        points: Kind → method → accuracy, or a difference of accuracies, for which the axis is in points.
        reference: A method whose data is the same for all kinds, drawn as a horizontal line with a band.
    """
    figure, axes = figure_with_axes(WIDTH, HEIGHT, left=54, bottom=46, right=16, top=30, title=title)
    methods = list(dict.fromkeys(method for of_kind in points.values() for method in of_kind))
    for place, of_kind in enumerate(points.values()):
        for method, value in of_kind.items():
            x = place + DODGE * (methods.index(method) - (len(methods) - 1) / 2)
            _bar(axes, x, value, look.colours[method])
            y = 100 * value.value
            axes.plot([x], [y], look.markers[method], color=look.colours[method], markersize=8)
    if reference is not None:
        method, value = reference
        axes.axhspan(100 * value.low, 100 * value.high, color=look.colours[method], alpha=0.15, lw=0)
        axes.axhline(100 * value.value, color=look.colours[method], linewidth=2)
    differs = any(value.is_change for of_kind in points.values() for value in of_kind.values())
    if differs:
        axes.axhline(0, color=MUTED, linewidth=1.4)
    for place in range(1, len(points)):
        axes.axvline(place - 0.5, color=GRID, linewidth=1)
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.set_xticks(range(len(points)), list(points))
    axes.set_ylabel("difference (points)" if differs else "accuracy (%)")
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=6)
    return figure


def _bar(axes: Axes, x: float, value: Estimate, colour: str) -> None:
    """Draw the interval of `value`; nothing if it has none."""
    axes.plot([x, x], [100 * value.low, 100 * value.high], color=colour, alpha=0.35, linewidth=4)
