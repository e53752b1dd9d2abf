"""The report's pictures: matplotlib figures, and their SVG in the colours of the page.

Sizes are in CSS pixels, one unit of the SVG each. Colours are those of the light theme; `svg` exchanges each
for a CSS variable, so that the same picture is legible on dark ground. Saved as PNG they stay light.
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from html import escape
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.report.tables import Condition, Estimate, Results, difference, signed

INK, MUTED, GRID = "#1b1e23", "#5f6872", "#dde1e6"
# Okabe and Ito's colours, darkened where they are too pale for text on white.
MODELS = ("#c04a00", "#0067a5", "#007a5a", "#a8508a", "#8a6500", "#4d4a9e")
MARKERS = "osD^v"  # not as many as colours: the pair of both is unique up to 30 models
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", **{c: f"--m{i}" for i, c in enumerate(MODELS)}}

DOT_STEP = 11  # between the dots of two models in one row

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "advflyp",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "round",
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Look:
    """How each model is drawn and called: `names` are the direct labels, short ones."""

    colours: dict[str, str]
    markers: dict[str, str]
    names: dict[str, str]

    @classmethod
    def of(cls, models: Sequence[str], names: Mapping[str, str] | None = None) -> "Look":
        """The first model is vermilion, the second blue; a single one is blue."""
        first = 1 if len(models) == 1 else 0
        return cls(
            {model: MODELS[(first + i) % len(MODELS)] for i, model in enumerate(models)},
            {model: MARKERS[(first + i) % len(MARKERS)] for i, model in enumerate(models)},
            {model: (names or {}).get(model, model) for model in models},
        )


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the report's settings, and leave everybody else's alone."""

    @wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return within


@styled
def per_set(results: Results, conditions: Sequence[Condition], look: Look, *, width: int) -> Figure:
    """A dot with its interval for each set and model, a panel for each condition, the mean on top.

    Panels stand side by side where there is room, else one above the other. With two models the change in
    points stands at the right.
    """
    models = list(look.colours)
    sets = ordered_sets(results, conditions, look)[::-1]
    ordinary = [
        (results.short[s], [[results.get(m, s, c) for m in models] for c in conditions]) for s in sets
    ]
    means = [[results.mean(m, c) for m in models] for c in conditions]
    rows: list[tuple[str, list[list[Estimate | None]]]] = list(ordinary)
    if len(results.sets) > 1 and any(value for panel in means for value in panel):
        rows.append((f"mean of {len(results.mean_sets)}", means))
    names = [name for name, _ in rows]
    wide = width >= 600
    across = len(conditions) if wide else 1
    down = 1 if wide else len(conditions)
    row_height = _row_height(len(models))
    left, right, top, bottom = 14 + 6.8 * max(map(len, names)), 52 if len(models) == 2 else 16, 34, 46
    gap = 36 if wide else 0
    panel = row_height * len(rows)
    height = down * (panel + top + bottom)
    figure = _figure(width, height)
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
        axes.spines["left"].set_visible(False)
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
    """The sets as pictures show them: where the last model is best under the last condition, first."""
    model = list(look.colours)[-1]
    return sorted(results.sets, key=lambda name: -_value(results.get(model, name, conditions[-1])))


@styled
def accuracy_against_eps(
    curves: Mapping[str, Sequence[tuple[float, Estimate]]],
    look: Look,
    *,
    width: int,
    height: int,
    title: str = "",
    ceiling: float = 100,
    norm: str = "linf",
    label: bool = False,
    axis_titles: bool = True,
) -> Figure:
    """A line with its 95 % band for each model.

    curves:  model → (ε in pixels, accuracy), ascending; the clean accuracy at 0
    ceiling: end of the y axis in %, the same for pictures that stand together
    label:   write the models' names beside the lines' right ends, where there is room
    """
    figure = _figure(width, height)
    unit = 255 if norm == "linf" else 1
    room = 7 * max(len(look.names[model]) for model in curves)
    # Long names would push the lines together on a phone; the page's key has them anyway.
    label = label and room < width / 4
    right = 14 + (room if label else 0)
    left, bottom = (54, 46) if axis_titles else (32, 24)
    axes = _axes(figure, left, bottom, right, 30 if title else 12)
    axes.set_title(title, pad=8)
    ends = []
    ticks = sorted({eps * unit for points in curves.values() for eps, _ in points})
    for model, points in curves.items():
        colour, x = look.colours[model], [eps * unit for eps, _ in points]
        axes.fill_between(
            x,
            [100 * e.low for _, e in points],
            [100 * e.high for _, e in points],
            color=colour,
            alpha=0.18,
            lw=0,
        )
        y = [100 * e.value for _, e in points]
        size = 6 if axis_titles else 4.5
        axes.plot(
            x, y, color=colour, marker=look.markers[model], markersize=size, linewidth=2.2, clip_on=False
        )
        ends.append((y[-1], model))
    axes.set_xlim(0, max(ticks) or 1)
    axes.set_ylim(0, ceiling)
    axes.set_yticks(
        np.arange(0, ceiling + 1, 20 if ceiling > 20 else 5) if axis_titles else [0, ceiling / 2, ceiling]
    )
    axes.set_xticks(ticks, [_number(tick) for tick in ticks])
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    if axis_titles:
        axes.set_xlabel(
            "ε, largest change of a pixel (1/255)" if norm == "linf" else "ε, L2 length of the change"
        )
        axes.set_ylabel("accuracy (%)")
    if label:
        gap = 15 / (height - bottom - 30) * ceiling
        for (_, model), y in zip(sorted(ends), _spread([end for end, _ in sorted(ends)], gap), strict=True):
            axes.annotate(
                look.names[model],
                (max(ticks), y),
                (10, 0),
                textcoords="offset points",
                va="center",
                color=look.colours[model],
                fontweight="bold",
                annotation_clip=False,
            )
    return figure


@dataclass
class Line:
    """One training curve: `x` in steps, `y` in the unit of its picture."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


def training_lines(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """The lines of a run's metrics by kind: "loss" (each term, the sum as "total"), "validation" (0–1)."""
    lines: dict[str, dict[str, Line]] = {"loss": {}, "validation": {}}

    def add(kind: str, name: str, x: float, y: float) -> None:
        line = lines[kind].setdefault(name, Line())
        line.x.append(x)
        line.y.append(y)

    for entry in metrics:
        if entry["kind"] == "train":
            terms = {key.removeprefix("loss/"): entry[key] for key in entry if key.startswith("loss/")}
            if len(terms) > 1:
                terms = {"total": entry["loss"], **terms}
            for name, value in terms.items():
                add("loss", name, entry["step"], value)
        elif entry["kind"] == "validate":
            for name in ("clean", "robust"):
                if name in entry:
                    add("validation", name, entry["step"], entry[name])
    return lines


@styled
def loss_curve(name: str, line: Line, *, width: int, height: int, steps: float) -> Figure:
    """One loss term against the step; its first and last values are written at its ends."""
    figure = _figure(width, height)
    axes = _axes(figure, 40, 40, 16, 30)
    axes.set_title(name, pad=8)
    axes.plot(
        line.x, line.y, color=INK, linewidth=1.8, marker="o" if len(line.x) < 3 else None, clip_on=False
    )
    axes.set_xlim(0, steps)
    top = max(line.y)
    axes.set_ylim(min(0.0, min(line.y)), top * 1.12 if top > 0 else 1)
    _step_axis(axes, steps)
    axes.locator_params(axis="y", nbins=4)
    axes.set_title(
        f"{_loss(line.y[0])} → {_loss(line.y[-1])}", loc="right", pad=8, color=MUTED, fontweight="normal"
    )
    return figure


@styled
def validation_curve(lines: Mapping[str, Line], *, width: int, height: int, steps: float) -> Figure:
    """Clean and robust validation accuracy against the step."""
    figure = _figure(width, height)
    axes = _axes(figure, 40, 40, 92, 30)
    axes.set_title("validation accuracy (%)", pad=8)
    looks = {"clean": (INK, "-"), "robust": (MODELS[1], "-")}
    ends = []
    for name, line in lines.items():
        colour, dash = looks[name]
        y = [100 * value for value in line.y]
        axes.plot(line.x, y, dash, color=colour, linewidth=1.8, marker="o", markersize=5, clip_on=False)
        ends.append((y[-1], line.x[-1], name))
    top = max(100 * value for line in lines.values() for value in line.y)
    axes.set_ylim(0, max(10.0, min(100.0, 10 * np.ceil(top / 9))))
    axes.set_xlim(0, steps)
    _step_axis(axes, steps)
    axes.locator_params(axis="y", nbins=4)
    gap = 15 / (height - 70) * axes.get_ylim()[1]
    for (y, x, name), place in zip(sorted(ends), _spread([end[0] for end in sorted(ends)], gap), strict=True):
        axes.annotate(
            f"{name} {y:.1f}",
            (x, place),
            (9, 0),
            textcoords="offset points",
            va="center",
            color=looks[name][0],
            fontweight="bold",
            annotation_clip=False,
        )
    return figure


def svg(figure: Figure, description: str) -> str:
    """The picture as an inline <svg> element that takes its colours from the page's CSS variables.

    description: what a screen reader says
    """
    stream = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert view is not None
    head = (
        f'<svg class="plot" viewBox="{view[0][9:-1]}" style="max-width: {float(view[1]):.0f}px" role="img" '
        f'aria-label="{escape(description)}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    text = head + text[text.index(">") + 1 :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # The page's font, and no more digits than a screen shows.
    text = re.sub(r"""font:( [^;"]*?)?([\d.]+px) [^;"]*""", r"font:\1\2 var(--font)", text)
    text = re.sub(r"""font-family: [^;"]*;?""", "", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = _own_ids(text)
    return re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)).strip()


def _own_ids(text: str) -> str:
    """Ids that nothing else on the page has: those referred to get a prefix, the others go."""
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(re.findall(r"""(?:url\(|href=")#([\w.-]+)""", text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="p{prefix}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r"""(url\(|href=")#""", rf"\1#p{prefix}-", text)


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
        if value is None:
            continue
        colour, y = look.colours[model], level + offset
        axes.plot([100 * value.low, 100 * value.high], [y, y], color=colour, alpha=0.4, linewidth=4)
        axes.plot(
            [100 * value.value],
            [y],
            look.markers[model],
            color=colour,
            markersize=8 if bold else 6.5,
            clip_on=False,
        )
    if len(values) == 2 and values[0] is not None and values[1] is not None:
        change = difference(values[0], values[1])
        axes.annotate(
            signed(100 * change.value),
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


def _row_height(models: int) -> float:
    return 13 + DOT_STEP * models


def _figure(width: float, height: float) -> Figure:
    # SVG units are points, 72 to the inch: one unit is to be one CSS pixel.
    return Figure(figsize=(width / 72, height / 72))


def _axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with margins in pixels."""
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    return figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )


def _step_axis(axes: Axes, steps: float) -> None:
    axes.set_xticks([0, steps], ["0", f"{steps:,.0f} steps"])
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending places near ascending `values`, at least `gap` apart, so that labels do not overlap."""
    places: list[float] = []
    for value in values:
        places.append(value if not places else max(value, places[-1] + gap))
    excess = (sum(places) - sum(values)) / max(1, len(values))
    return [place - excess for place in places]


def _value(estimate: Estimate | None) -> float:
    return -1.0 if estimate is None else estimate.value


def _loss(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
