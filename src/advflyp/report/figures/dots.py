"""Accuracy set by set: dots with intervals for a few models, dumbbells for many."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.report.figures.plots import INK, MUTED, Look, figure_with_axes, fitting, sheet, styled
from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.results import Results

DOT_STEP = 11  # between the dots of two models in one row
LETTER = 6.9  # mean width of a letter, in pixels


@styled()
def per_set(results: Results, conditions: Sequence[Condition], look: Look, *, width: int) -> Figure:
    """A dot with its interval for each set and model, a panel for each condition, the mean on top.

    Panels are side by side if the width allows, otherwise stacked. With two models, the change in points is at
    the right.
    """
    models = list(look.colours)
    sets = ordered_sets(results, conditions, look)[::-1]
    rows: list[tuple[str, list[list[Estimate | None]]]] = [
        (results.short[s], [[results.drawn(results.get(m, s, c)) for m in models] for c in conditions])
        for s in sets
    ]
    means = [[results.drawn(results.mean(m, c)) for m in models] for c in conditions]
    if len(results.sets) > 1 and any(value for panel in means for value in panel):
        rows.append((f"mean of {len(results.mean_sets)}", means))
    wide = width >= 600
    # A user's set is called by its path.
    names = fitting([name for name, _ in rows], 0.4 * width, LETTER)
    across = len(conditions) if wide else 1
    down = 1 if wide else len(conditions)
    row_height = _row_height(len(models))
    left, right, top, bottom = 14 + LETTER * max(map(len, names)), 52 if len(models) == 2 else 16, 34, 46
    gap = 36 if wide else 0
    panel = row_height * len(rows)
    height = down * (panel + top + bottom)
    figure = sheet(width, height)
    inner = (width - left - gap * (across - 1)) / across
    for place, condition in enumerate(conditions):
        x = left + place * (inner + gap) if wide else left
        y = bottom if wide else height - (place + 1) * (panel + top + bottom) + bottom
        axes = figure.add_axes((x / width, y / height, (inner - right) / width, panel / height))
        axes.set_title("clean images" if condition.norm is None else condition.title, pad=10)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_xlabel("accuracy (%)")
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_yticks(range(len(rows)), names if place == 0 or not wide else [""] * len(rows))
        axes.grid(axis="x")
        axes.tick_params(axis="y", pad=8)
        if len(models) == 2:
            axes.annotate(
                "change", (1, 1), (46, 13), "axes fraction", "offset points", ha="right", color=MUTED
            )
        if len(rows) > len(sets):
            axes.axhline(len(sets) - 0.5, color=MUTED, linewidth=1)
            axes.get_yticklabels()[-1].set(fontweight="bold", color=INK)
        for level, (_, panels) in enumerate(rows):
            _dots(axes, level, panels[place], models, look, bold=level == len(sets))
    return figure


def ordered_sets(results: Results, conditions: Sequence[Condition], look: Look) -> list[str]:
    """The sets in the order of the figures: by descending accuracy of the last model under the last condition."""
    model = list(look.colours)[-1]
    return sorted(results.sets, key=lambda name: -_value(results.get(model, name, conditions[-1])))


def _dots(
    axes: Axes,
    level: int,
    values: Sequence[Estimate | None],
    models: Sequence[str],
    look: Look,
    *,
    bold: bool,
) -> None:
    step = DOT_STEP / _row_height(len(models))
    offsets = [step * ((len(models) - 1) / 2 - place) for place in range(len(models))]
    for model, value, offset in zip(models, values, offsets, strict=True):
        if value is not None:
            _mark(axes, value, level + offset, look, model, markersize=8 if bold else 6.5)
    if len(values) == 2 and values[0] is not None and values[1] is not None:
        axes.annotate(
            Estimate(values[1].value - values[0].value, is_change=True).number,
            (1, level),
            (46, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            color=INK if bold else MUTED,
            fontweight="bold" if bold else "normal",
            fontsize=11.5,
        )


def _mark(axes: Axes, value: Estimate, y: float, look: Look, model: str, **how: Any) -> None:
    """Draw a model's mark with its horizontal interval."""
    colour = look.colours[model]
    if value.low < value.high:
        axes.plot([100 * value.low, 100 * value.high], [y, y], color=colour, alpha=0.4, linewidth=4)
    axes.plot([100 * value.value], [y], look.markers[model], color=colour, clip_on=False, **how)


def _row_height(models: int) -> float:
    return 13 + DOT_STEP * models


def _value(estimate: Estimate | None) -> float:
    return -1.0 if estimate is None else estimate.value


@styled()
def dumbbells(
    rows: Sequence[tuple[str, Estimate | None, Estimate | None]],
    look: Look,
    *,
    width: int,
    title: str,
    ceiling: float = 100,
) -> Figure:
    """One set, many methods: a row for each, with its clean (hollow) and robust (filled) accuracy joined by a line.

    Args:
        rows: (method, clean, robust), the first on top.
        ceiling: End of the axis in %, the same for figures shown together.
    """
    names = fitting([look.names[name] for name, _, _ in rows], 0.5 * width, LETTER)
    left, right, top, bottom = 12 + LETTER * max(map(len, names)), 14, 30, 42
    height = top + bottom + 19 * len(rows)
    figure, axes = figure_with_axes(width, height, left=left, bottom=bottom, right=right, top=top)
    axes.set_title(title, pad=9, x=-left / (width - left - right) + 0.01)
    axes.set_xlim(0, ceiling)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), names)
    axes.grid(axis="x")
    axes.set_xlabel("accuracy (%)")
    axes.locator_params(axis="x", nbins=5, integer=True)
    for y, (name, clean, robust) in enumerate(rows):
        colour = look.colours[name]
        if clean and robust:
            axes.plot(
                [100 * robust.value, 100 * clean.value], [y, y], color=colour, alpha=0.35, linewidth=1.5
            )
        for value, face in ((clean, "none"), (robust, colour)):
            if value is not None:
                _mark(axes, value, y, look, name, mfc=face, mew=1.6, markersize=6.5)
    return figure
