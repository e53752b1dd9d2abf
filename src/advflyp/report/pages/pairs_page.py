"""The pages of `advflyp data check` and `advflyp data overlap`: self-contained, light and dark."""

import base64
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from advflyp.data.tools.check import Checked
from advflyp.data.tools.overlap import Match, Overlap
from advflyp.escape import for_html
from advflyp.files import write_files
from advflyp.report.figures.plots import MODELS, axes_in, sheet, styled
from advflyp.report.measure.tables import Table, Value
from advflyp.report.pages.elements import picture, table
from advflyp.wording import counted

PAGE, MATCHES = "index.html", "matches.jsonl"
# Enough of a web caption to judge it by.
LETTERS = 160
LOCAL_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 1rem; margin: 1rem 0; }
.sheet figure { margin: 0; min-width: 0; }
.sheet img { display: block; width: 100%; height: 150px; object-fit: contain; background: var(--raised);
  border-radius: 8px; }
.sheet figcaption { font-size: .8rem; line-height: 1.4; margin-top: .35rem; overflow-wrap: anywhere; }
.sheet figcaption { color: var(--ink); }
.sheet small { font-size: .72rem; }
.sheet .two { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; }
"""


def check_page(found: Checked) -> str:
    """HTML of what `check` found."""
    left_out = found.seen - found.usable
    share = 100 * left_out / max(1, found.seen)
    tiles = [
        (f"{found.usable:,}", "usable pairs", f"of {found.seen:,}"),
        (f"{left_out:,}", "cannot be used", f"{share:.1f} %"),
        (f"{_median(found.words):g}", "words a caption", f"median of {found.captions:,}"),
        (f"{_median(found.sides):g}", "pixels, shorter side", "median"),
        (f"{100 * found.repeated / max(1, found.captions):.1f} %", "captions that came before", f"{found.repeated:,}"),
    ]  # fmt: skip
    parts = [_tiles(tiles)]
    parts.append("<h2>What cannot be used</h2>")
    parts.append(
        table(dirt_table(found), words=True) if left_out else "<p>Nothing: every pair can be used.</p>"
    )
    if found.usable:
        parts += [
            "<h2>Length of the captions</h2>",
            _histogram(found.words, "words of a caption", "captions", 40),
            "<h2>Size of the pictures</h2>",
            _histogram(found.sides, "shorter side in pixels", "pictures", 40),
            f"<h2>{counted(len(found.sheet), 'pair')}, drawn at random</h2>",
            _sheet(
                [
                    _card(_image(one.picture), " · ".join(one.captions), one.key)
                    for one in sorted(found.sheet, key=lambda one: one.key)
                ]
            ),
        ]
    return page(f"Pairs of {found.name}", parts)


def overlap_page(found: Overlap) -> str:
    """HTML of what `overlap` found."""
    counts = Counter(match.set for match in found.matches)
    tiles = [
        (f"{len(found.keys):,}", "training pairs to look at", f"of {found.seen:,}"),
        (
            f"{len(found.matches):,}",
            "near-duplicates",
            f"of {sum(found.against.values()):,} evaluation pictures",
        ),
    ]
    rows: list[list[Value]] = [
        [
            name,
            f"{n:,}",
            f"{len(found.unreadable.get(name, {})):,}",
            f"{len({m.picture for m in found.matches if m.set == name}):,}",
            f"{counts[name]:,}",
        ]
        for name, n in found.against.items()
    ]
    columns = ["evaluation set", "pictures", "unreadable", "resemble one in training", "pairs of pictures"]
    parts = [_tiles(tiles), table(Table(title="Sets", columns=columns, rows=rows))]
    if found.shown:
        how = "training picture left, evaluation picture right"
        parts.append(f"<h2>{len(found.shown)} of them, {how}</h2>")
        parts.append(
            _sheet(
                [
                    _card(f'<div class="two">{_image(one)}{_image(other)}</div>', _line(match), match.key)
                    for one, other, match in found.shown
                ]
            )
        )
    return page(f"{found.name} against {', '.join(found.against)}", parts)


def _line(match: Match) -> str:
    seen = f", cosine {match.cosine:.3f}" if match.cosine is not None else ""
    return (
        f"{match.set}/{match.picture}: {match.bits} of 64 bits{' mirrored' if match.mirrored else ''}{seen}"
    )


def dirt_table(found: Checked) -> Table:
    """Reasons, counts, shares and an example of each."""
    rows: list[list[Value]] = [
        [reason, f"{count:,}", f"{100 * found.share_of(reason):.2f} %", found.dirt.examples.get(reason, "")]
        for reason, count in found.dirt.counts.most_common()
    ]
    return Table(
        columns=["reason", "samples", "share", "for example"], rows=rows, title="What cannot be used"
    )


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page with the report's style."""
    style = (files("advflyp") / "report" / "style.css").read_text(encoding="utf-8") + LOCAL_STYLE
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{for_html(title)}</title><style>{style}</style></head>\n<body><p class=kicker>advflyp data</p>"
        f"<h1>{for_html(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def write_page(out: Path, html: str, matches: Sequence[Match] | None = None) -> Path:
    """Write `out`/index.html and a line for each match to `out`/matches.jsonl; the path of the page.

    ValueError where there is such a file that is not of a page like this.
    """
    contents = {PAGE: html}
    if matches is not None:
        contents[MATCHES] = "".join(json.dumps(asdict(match)) + "\n" for match in matches)
    write_files(out, contents)
    return out / PAGE


def _tiles(tiles: Sequence[tuple[str, str, str]]) -> str:
    inner = "".join(
        f'<div class="tile"><span class="figures">{for_html(value)}</span><b>{for_html(name)}</b>'
        f"<small>{for_html(note)}</small></div>"
        for value, name, note in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _sheet(cards: Sequence[str]) -> str:
    return f'<div class="sheet">{"".join(cards)}</div>'


def _card(pictures: str, text: str, key: str) -> str:
    short = text if len(text) <= LETTERS else text[:LETTERS] + "…"
    return f"<figure>{pictures}<figcaption>{for_html(short)}<br><small>{for_html(key)}</small></figcaption></figure>"


def _image(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="" loading="lazy">'


def _median(counts: Counter[int]) -> float:
    left = sum(counts.values()) / 2
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return 0


def _histogram(counts: Counter[int], what: str, of: str, bins: int) -> str:
    def draw(width: int) -> Figure:
        return histogram(counts, what, of, bins, width)

    return picture(draw, f"{of} by {what}", widths=(760, 360))


@styled
def histogram(counts: Counter[int], what: str, of: str, bins: int, width: int) -> Figure:
    """Bars of equal width up to the 99th percentile; the last one holds all that is beyond."""
    total, below = sum(counts.values()), 0
    last = max(counts)
    for value in sorted(counts):
        below += counts[value]
        if below >= 0.99 * total:
            last = value
            break
    first = min(counts)
    step = max(1, -(-(last - first + 1) // bins))
    heights: Counter[int] = Counter()
    for value, count in counts.items():
        heights[(min(value, last) - first) // step] += count
    figure = sheet(width, 240)
    axes = axes_in(figure, 28 + 7 * len(f"{max(heights.values()):,}"), 48, 12, 12)
    places = [first + step * (place + 0.5) - 0.5 for place in heights]
    axes.bar(places, list(heights.values()), width=0.88 * step, color=MODELS[1], linewidth=0)
    axes.set_xlabel(
        what if last == max(counts) else f"{what} (the last bar: {last} and more, to {max(counts):,})"
    )
    axes.set_ylabel(of)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="y", integer=True, nbins=5)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlim(
        first - 0.5 - 0.3 * step, places[-1] + step if len(places) == 1 else max(places) + 0.8 * step
    )
    return figure
