"""Curves: accuracy against ε, the terms of a training loss and validation accuracy against the step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.report.figures.plots import INK, MODELS, MUTED, Look, figure_with_axes, spread, styled
from advflyp.report.measure.estimates import Estimate, trimmed
from advflyp.wording import counted

Line = list[tuple[float, float]]  # (step, value)
# Of a value that is drawn: the length of an axis is no number if it reaches the largest float.
LARGEST = 1e100
# With more models than this, their bands would cover each other.
FEW = 4


@styled()
def accuracy_against_eps(
    curves: Mapping[str, Sequence[tuple[float, Estimate]]],
    look: Look,
    *,
    width: int,
    height: int,
    title: str = "",
    ceiling: float = 100,
    norm: str = "linf",
    small: bool = False,
) -> Figure:
    """A line for each model, with its interval as a band if there are at most `FEW` models.

    Args:
        curves: Model → (ε in pixels, accuracy), ascending; the clean accuracy at 0.
        ceiling: End of the y axis in %, the same for figures shown together.
        small: One of many small figures: no axis titles, and no model names beside the lines' right ends.
    """
    unit = 255 if norm == "linf" else 1
    room = 7 * max(len(look.names[model]) for model in curves)
    # Long names would push the lines together on a phone; the page's key has them anyway.
    named = not small and room < width / 4
    right = 14 + (room if named else 0)
    left, bottom = (32, 24) if small else (54, 46)
    top = 30 if title else 12
    figure, axes = figure_with_axes(
        width, height, left=left, bottom=bottom, right=right, top=top, title=title
    )
    for model, points in curves.items():
        colour, x = look.colours[model], [eps * unit for eps, _ in points]
        if len(curves) <= FEW:
            low, high = ([100 * getattr(e, end) for _, e in points] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        y, size = [100 * e.value for _, e in points], 4.5 if small else 6
        axes.plot(
            x, y, color=colour, marker=look.markers[model], markersize=size, linewidth=2.2, clip_on=False
        )
    ticks = sorted({eps * unit for points in curves.values() for eps, _ in points})
    axes.set_xlim(0, max(ticks) or 1)
    axes.set_ylim(0, ceiling)
    axes.set_yticks(
        [0, ceiling / 2, ceiling] if small else np.arange(0, ceiling + 1, 20 if ceiling > 20 else 5)
    )
    axes.set_xticks(ticks, list(map(trimmed, ticks)))
    axes.grid(axis="y")
    if not small:
        axes.set_xlabel(
            "ε, largest change of a pixel (1/255)" if norm == "linf" else "ε, L2 length of the change"
        )
        axes.set_ylabel("accuracy (%)")
    if named:
        ends = [
            (100 * points[-1][1].value, look.names[model], look.colours[model])
            for model, points in curves.items()
        ]
        end_labels(axes, ends, max(ticks), 15 / (height - bottom - 30) * ceiling)
    return figure


def end_labels(
    axes: Axes, ends: Sequence[tuple[float, str, str]], x: float, gap: float, floor: float = 0
) -> None:
    """Write the names of lines beside their right ends, at least `gap` apart. ends: (y, name, colour)"""
    order = sorted(ends)
    for (_, name, colour), y in zip(order, spread([end[0] for end in order], gap, floor=floor), strict=True):
        axes.annotate(
            name,
            (x, y),
            (10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def training_lines(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """Curves from a run's metrics, by kind: "loss" (each term, and their sum as "total"), "validation" (0–1).

    Values that cannot be drawn, because they are not finite, are left out.
    """
    lines: dict[str, dict[str, Line]] = {"loss": {}, "validation": {}}
    for entry in metrics:
        if entry["kind"] == "train":
            kind = "loss"
            values = {key.removeprefix("loss/"): entry[key] for key in entry if key.startswith("loss/")}
            if len(values) > 1 and "loss" in entry:
                values = {"total": entry["loss"], **values}
        elif entry["kind"] == "validate":
            kind, values = "validation", {name: entry[name] for name in ("clean", "robust") if name in entry}
        else:
            continue
        for name, value in values.items():
            if abs(value) <= LARGEST:  # not if it is NaN, either
                lines[kind].setdefault(name, []).append((entry["step"], value))
    return lines


@styled()
def loss_curve(name: str, line: Line, *, width: int, height: int, steps: float) -> Figure:
    """One loss term against the step; its first and last values are written at its ends."""
    figure, axes = _over_steps(width, height, name, 16, steps)
    x, y = zip(*line, strict=True)
    axes.plot(x, y, color=INK, linewidth=1.8, marker="o" if len(x) < 3 else None, clip_on=False)
    axes.set_ylim(min(0.0, *y), max(y) * 1.12 if max(y) > 0 else 1)
    ends = f"{_loss(y[0])} → {_loss(y[-1])}"
    axes.set_title(ends, loc="right", pad=8, color=MUTED, fontweight="normal")
    return figure


@styled()
def validation_curve(lines: Mapping[str, Line], *, width: int, height: int, steps: float) -> Figure:
    """Clean and robust validation accuracy against the step."""
    figure, axes = _over_steps(width, height, "validation accuracy (%)", 92, steps)
    ends = []
    for name, line in lines.items():
        colour = INK if name == "clean" else MODELS[1]
        x, y = [step for step, _ in line], [100 * value for _, value in line]
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=5, clip_on=False)
        ends.append((y[-1], f"{name} {y[-1]:.1f}", colour))
    top = max(100 * value for line in lines.values() for _, value in line)
    axes.set_ylim(0, max(10.0, min(100.0, 10 * np.ceil(top / 9))))
    last = max(line[-1][0] for line in lines.values())
    end_labels(axes, ends, last, 15 / (height - 70) * axes.get_ylim()[1], floor=-math.inf)
    return figure


def _over_steps(width: int, height: int, title: str, right: float, steps: float) -> tuple[Figure, Axes]:
    figure, axes = figure_with_axes(width, height, left=40, bottom=40, right=right, top=30, title=title)
    steps = max(steps, 1)  # of a run that was validated before its first step and no more
    axes.set_xlim(0, steps)
    axes.set_xticks([0, steps], ["0", counted(round(steps), "step")])
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y")
    return figure, axes


def _loss(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
