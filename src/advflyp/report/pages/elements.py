"""Pieces of the report's page: tables, pictures, example cards. Every text from outside is escaped here."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from advflyp.escape import for_html
from advflyp.report.figures.examples import Example, View, amplification, perturbation
from advflyp.report.figures.plots import MODELS, Look, svg
from advflyp.report.measure.measured import Change, ReplicatedChange, attack_title, radius
from advflyp.report.measure.render import FLAG
from advflyp.report.measure.tables import Table, Value

# With more of them a number's interval stands below it, or the table would not fit beside the text.
MOST_COLUMNS = 8
SHAPES = {
    "o": '<circle cx="5" cy="5" r="4.4"/>',
    "s": '<rect x="1" y="1" width="8" height="8"/>',
    "D": '<path d="M5 0 10 5 5 10 0 5z"/>',
    "^": '<path d="M5 .5 9.8 9.3 .2 9.3z"/>',
    "v": '<path d="M5 9.5 .2 .7 9.8 .7z"/>',
    "P": '<path d="M3.3 .4h3.4v2.9h2.9v3.4H6.7v2.9H3.3V6.7H.4V3.3h2.9z"/>',
    "X": '<path d="M2.6.2 5 2.6 7.4.2l2.4 2.4L7.4 5l2.4 2.4-2.4 2.4L5 7.4 2.6 9.8.2 7.4 2.6 5 .2 2.6z"/>',
    "h": '<path d="M5 .4 9 2.7v4.6L5 9.6 1 7.3V2.7z"/>',
}


def table(data: Table, *, words: bool = False) -> str:
    """A table that scrolls sideways where it does not fit. words: text columns, left-aligned and wrapped."""
    ranks = data.ranks()

    def row(values: Sequence[Value], place: int = -1) -> str:
        cells = (
            f"<td{_class(column, ranks.get((place, number)))}>{_cell(value)}</td>"
            for number, (value, column) in enumerate(zip(values, data.columns, strict=True))
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = "".join(
        f"<th{_class(column)}>{'<br>'.join(for_html(line) for line in column.splitlines())}</th>"
        for column in data.columns
    )
    groups = "".join(
        f"<th{f' colspan={count}' if count > 1 else ''}{' class=group' if title else ''}>{for_html(title)}</th>"
        for title, count in data.groups
    )
    body = ""
    for title, start, rows in data.parts():
        if title:
            # Across all columns: it is not to make the first one as wide as it is.
            body += f'<tr class="block"><td colspan="{len(data.columns)}"><span>{for_html(title)}</span></td></tr>\n'
        body += "".join(f"{row(values, start + place)}\n" for place, values in enumerate(rows))
    foot = f"<tfoot>{row(data.footer)}</tfoot>" if data.footer else ""
    kind = ' class="words"' if words else ' class="dense"' if len(data.columns) > MOST_COLUMNS else ""
    lines = "<br>".join(map(for_html, data.note.splitlines()))
    note = f'<p class="note">{lines}</p>' if lines else ""
    above = f"<tr>{groups}</tr>" if groups else ""
    return (
        f'<div class="scroll"><table{kind}>\n<thead>{above}<tr>{head}</tr></thead>\n<tbody>{body}</tbody>{foot}'
        f"</table></div>{note}"
    )


def key(look: Look) -> str:
    """Which colour and shape is which model."""
    items = []
    for model, colour in look.colours.items():
        short = look.names[model]
        name = f"<b>{for_html(short)}</b>" + (f" {for_html(model)}" if short != model else "")
        mark = f'<svg viewBox="0 0 10 10" fill="currentColor" aria-hidden="true">{SHAPES[look.markers[model]]}</svg>'
        kind = MODELS.index(colour) if colour in MODELS else "-ink"
        items.append(f'<li><span class="c{kind}">{mark}</span>{name}</li>')
    return f'<ul class="key">{"".join(items)}</ul>'


def picture(draw: Callable[[int], Figure], description: str, *, widths: tuple[int, int]) -> str:
    """A plot drawn twice, for a desktop and for a phone; the page shows the one that fits."""
    variants = zip(("wide", "narrow"), widths, strict=True)
    inner = "".join(f'<div class="{name}">{svg(draw(width), description)}</div>' for name, width in variants)
    return f"<figure>{inner}</figure>"


def grid(plots: Sequence[str], *, kind: Literal["", "roomy", "pairs"] = "") -> str:
    """Plots side by side, as many as fit. kind: how wide they are, from about 205, 260, 380 pixels on."""
    return f'<div class="{f"grid {kind}".strip()}">{"".join(plots)}</div>'


def example_card(example: Example, names: tuple[str, str]) -> str:
    """One picture: what each model says of it, and of the adversarial image made against that model."""
    parts = [
        f'<article class="example"><h3>{for_html(example.label)}</h3>',
        f"<small>{for_html(example.set)}, picture {example.index}</small>",
    ]
    attack = f"{attack_title(example.attack)}, ε = {radius(example.eps, example.norm)}"
    for name, view in zip(names, (example.before, example.after), strict=True):
        label = for_html(example.label)
        clean = _figure("clean", image(view.clean, f"{label}, clean"))
        seen = view.clean, view.adversarial, example.threat
        factor = f"change ×{amplification(*seen):.0f}"
        change = _figure(factor, image(perturbation(*seen), "the perturbation, amplified"))
        attacked = _figure("attacked", image(view.adversarial, f"{label}, after {for_html(attack)}"))
        parts.append(
            f'<h4>{for_html(name)}</h4><div class="views">'
            f'<div><div class="pictures">{clean}{change}</div>{_guesses(view.top_clean, example.label)}</div>'
            f'<div><div class="pictures">{attacked}</div>{_guesses(view.top_adversarial, example.label)}</div></div>'
        )
    return "".join(parts) + "</article>"


def image(pixels: Tensor, description: str) -> str:
    """(3, H, W) pixels in [0, 1] as an inline picture: lossless where small, else a light JPEG.

    description: already escaped
    """
    values = (pixels.detach().cpu() * 255).round().byte().permute(1, 2, 0).contiguous()
    stream = io.BytesIO()
    kind = "png" if max(values.shape[:2]) <= 96 else "jpeg"
    Image.fromarray(values.numpy()).save(
        stream, kind, **({"optimize": True} if kind == "png" else {"quality": 88})
    )
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{values.shape[1]}" height="{values.shape[0]}" '
        f'alt="{description}">'
    )


def still_right(view: View, label: str) -> bool:
    """Whether the model still says `label` of the adversarial image."""
    return view.top_adversarial[0][0] == label


def _figure(caption: str, picture: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _guesses(top: Sequence[tuple[str, float]], label: str) -> str:
    right = top[0][0] == label
    items = "".join(
        f'<li{_right(name == label)} style="--p: {100 * p:.0f}%" title="{for_html(name)}">'
        f"<span>{for_html(name)}</span><span>{100 * p:.0f} %</span></li>"
        for name, p in top
    )
    word = (
        '<span class="verdict right">✓ right</span>'
        if right
        else '<span class="verdict wrong">✗ wrong</span>'
    )
    return f'{word}<ol class="guess">{items}</ol>'


def _right(flag: bool) -> str:
    return ' class="right"' if flag else ""


def _cell(value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return "<br>".join(map(for_html, value.split("\n")))
    joint = " " if isinstance(value, Change | ReplicatedChange) else ""
    flag = f'<b class="flag" title="gradients look masked">{FLAG}</b>' if value.flagged else ""
    return f'<span class="v">{value.number}</span>{flag}{joint}<span class="ci">{value.interval}</span>'


def _class(column: str, rank: int | None = None) -> str:
    names = ["after"] if column.endswith("\nchange") else []
    names += {1: ["best"], 2: ["second"]}.get(rank or 0, [])
    return f' class="{" ".join(names)}"' if names else ""
