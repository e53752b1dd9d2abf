"""The report's figures, drawn by matplotlib, and their SVG in the colours of the page.

Sizes are in CSS pixels, one SVG unit each. Colours are those of the light theme; `svg` replaces each with a CSS
variable, so that the figure is legible in the dark theme too. Figures saved as PNG stay light.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advflyp.escape import for_html

INK, MUTED, GRID = "#1b1e23", "#5f6872", "#dde1e6"
# Okabe and Ito's colours, darkened where they are too pale for text on white.
MODELS = ("#c04a00", "#0067a5", "#007a5a", "#a8508a", "#8a6500", "#4d4a9e", "#b0123c", "#4a7a00")
MARKERS = "osD^vPX"  # one fewer than colours: the pairs of both are unique for up to 56 models
REFERENCE = "h"  # of reference models, drawn in the text colour
# The markers as SVG paths in a square of ten units, for the key.
SHAPES = {
    "o": "M.6 5a4.4 4.4 0 1 0 8.8 0a4.4 4.4 0 1 0-8.8 0z",
    "s": "M1 1h8v8H1z",
    "D": "M5 0 10 5 5 10 0 5z",
    "^": "M5 .5 9.8 9.3 .2 9.3z",
    "v": "M5 9.5 .2 .7 9.8 .7z",
    "P": "M3.3 .4h3.4v2.9h2.9v3.4H6.7v2.9H3.3V6.7H.4V3.3h2.9z",
    "X": "M2.6.2 5 2.6 7.4.2l2.4 2.4L7.4 5l2.4 2.4-2.4 2.4L5 7.4 2.6 9.8.2 7.4 2.6 5 .2 2.6z",
    "h": "M5 .4 9 2.7v4.6L5 9.6 1 7.3V2.7z",
}
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", **{c: f"--m{i}" for i, c in enumerate(MODELS)}}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # A name with two dollar signs is not a formula.
    "text.parse_math": False,
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
    "axes.spines.left": False,
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
    """The colour, marker and label of each model; `names` holds the short labels drawn beside the data."""

    colours: dict[str, str]
    markers: dict[str, str]
    names: dict[str, str]

    @classmethod
    def of(
        cls, models: Sequence[str], names: Mapping[str, str] | None = None, references: Collection[str] = ()
    ) -> "Look":
        """The first model is vermilion, the second blue; a single one is blue.

        Args:
            names: Short names for labels, by model.
            references: Those of `models` that the others are compared with, such as the original; they share one look.
        """
        first = 1 if len(models) == 1 else 0
        colours, markers = dict.fromkeys(models, INK), dict.fromkeys(models, REFERENCE)
        for place, model in enumerate((m for m in models if m not in references), first):
            colours[model] = MODELS[place % len(MODELS)]
            markers[model] = MARKERS[place % len(MARKERS)]
        return cls(colours, markers, {model: (names or {}).get(model, model) for model in models})

    def css_class(self, model: str) -> str:
        """The CSS class of the page that has the model's colour."""
        colour = self.colours[model]
        return f"c{MODELS.index(colour)}" if colour in MODELS else "c-ink"

    def path(self, model: str) -> str:
        """The model's marker as an SVG path in a square of ten units."""
        return SHAPES[self.markers[model]]

    def of_some(self, models: Sequence[str]) -> "Look":
        """The same look, restricted to these models."""
        return Look(
            {model: self.colours[model] for model in models},
            {model: self.markers[model] for model in models},
            {model: self.names[model] for model in models},
        )


@contextmanager
def styled() -> Iterator[None]:
    """Apply the report's matplotlib settings to a block or, as a decorator, to a function."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text in the SVG, and the browser has the glyphs.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def svg(figure: Figure, description: str) -> Markup:
    """The figure as an inline <svg> element that takes its colours from the page's CSS variables.

    Args:
        description: What a screen reader says.
    """
    stream = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    with styled():
        figure.savefig(stream, format="svg", metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert view is not None
    head = (
        f'<svg class="plot" viewBox="{view[0][9:-1]}" style="max-width: {float(view[1]):.0f}px" role="img" '
        f'aria-label="{for_html(description)}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    # Coordinates need no more digits than a screen shows; numbers in the text keep theirs.
    drawn = re.sub(
        r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text[text.index(">") + 1 :]
    )
    text = head + drawn
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # The page's font.
    text = re.sub(r"""font:( [^;"]*?)?([\d.]+px) [^;"]*""", r"font:\1\2 var(--font)", text)
    text = re.sub(r"""font-family: [^;"]*;?""", "", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = _own_ids(text)
    return Markup(re.sub(r"\n\s*", "\n", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)).strip())


def _own_ids(text: str) -> str:
    """Make ids unique on the page: referenced ids get a prefix, the others are removed."""
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(re.findall(r"""(?:url\(|href=")#([\w.-]+)""", text))
    text = re.sub(r' id="([\w.-]+)"', lambda m: f' id="p{prefix}-{m[1]}"' if m[1] in used else "", text)
    return re.sub(r"""(url\(|href=")#""", rf"\1#p{prefix}-", text)


def sheet(width: float, height: float) -> Figure:
    """An empty figure, in CSS pixels."""
    # matplotlib writes 72 SVG units to the inch, so that one unit is one CSS pixel.
    return Figure(figsize=(width / 72, height / 72))


def figure_with_axes(
    width: float, height: float, *, left: float, bottom: float, right: float, top: float, title: str = ""
) -> tuple[Figure, Axes]:
    """A figure and its only axes, with their margins in pixels."""
    figure = sheet(width, height)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.set_title(title, pad=8)
    return figure, axes


def fitting(names: Sequence[str], room: float, letter: float) -> list[str]:
    """Names that are no wider than `room` pixels, at `letter` pixels a letter; of a longer one the end remains."""
    most = max(2, int(room / letter))
    return [name if len(name) <= most else f"…{name[1 - most :]}" for name in names]


def spread(values: Sequence[float], gap: float, floor: float = -math.inf) -> list[float]:
    """Ascending places near ascending `values`, at least `gap` apart, so that labels do not overlap.

    Args:
        gap: Least distance between two places.
        floor: No place is below it.
    """
    places: list[float] = []
    for value in values:
        places.append(value if not places else max(value, places[-1] + gap))
    excess = (sum(places) - sum(values)) / max(1, len(values))
    if places and places[0] - excess < floor:
        excess = places[0] - floor
    return [place - excess for place in places]
