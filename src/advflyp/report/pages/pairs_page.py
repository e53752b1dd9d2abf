"""The pages of `advflyp data check` and `advflyp data overlap`: self-contained, light and dark."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from advflyp.data.tools.check import Checked
from advflyp.data.tools.overlap import Match, Overlap
from advflyp.report.figures.plots import MODELS, figure_with_axes, styled
from advflyp.report.measure.tables import Table, Value
from advflyp.report.pages.jinja import render
from advflyp.report.pages.sections import Drawing, drawing
from advflyp.wording import counted
from advflyp.written import write_files

PAGE, MATCHES = "index.html", "matches.jsonl"
BINS = 40  # of a histogram, at most


def check_page(found: Checked) -> str:
    """HTML of what `check` found."""
    skipped = found.seen - found.usable
    repeated = 100 * found.repeated / max(1, found.captions)
    tiles = [
        _tile(f"{found.usable:,}", "usable pairs", f"of {found.seen:,}"),
        _tile(f"{skipped:,}", "skipped", f"{100 * skipped / max(1, found.seen):.1f} %"),
        _tile(f"{_quantile(found.words, 0.5)}", "words a caption", f"median of {found.captions:,}"),
        _tile(f"{_quantile(found.sides, 0.5)}", "pixels, shorter side", "median"),
        _tile(f"{repeated:.1f} %", "captions that came before", f"{found.repeated:,}"),
    ]
    sections: list[dict[str, Any]] = [
        {"title": "Skipped samples", "table": skipped_table(found)}
        if skipped
        else {"title": "Skipped samples", "text": "None: every pair can be used."}
    ]
    if found.usable:
        cards = [((one.image,), " · ".join(one.captions), one.key) for one in found.sheet]
        sections += [
            {
                "title": "Length of the captions",
                "drawing": _histogram(found.words, "words of a caption", "captions"),
            },
            {
                "title": "Size of the images",
                "drawing": _histogram(found.sides, "shorter side in pixels", "images"),
            },
            {
                "title": f"{counted(len(cards), 'pair')}, drawn at random",
                "cards": sorted(cards, key=lambda card: card[2]),
            },
        ]
    return _page(f"Pairs of {found.name}", tiles, sections)


def overlap_page(found: Overlap) -> str:
    """HTML of what `overlap` found."""
    counts = Counter(match.set for match in found.matches)
    evaluated = f"of {sum(found.against.values()):,} evaluation images"
    tiles = [
        _tile(f"{len(found.keys):,}", "training pairs to look at", f"of {found.seen:,}"),
        _tile(f"{len(found.matches):,}", "near-duplicates", evaluated),
    ]
    rows: list[list[Value]] = [
        [
            name,
            f"{n:,}",
            f"{len(found.unreadable.get(name, {})):,}",
            f"{len({m.image for m in found.matches if m.set == name}):,}",
            f"{counts[name]:,}",
        ]
        for name, n in found.against.items()
    ]
    columns = ["evaluation set", "images", "unreadable", "resemble one in training", "pairs of images"]
    sections: list[dict[str, Any]] = [
        {"title": "Evaluation sets", "table": Table(title="", columns=columns, rows=rows)}
    ]
    if found.shown:
        title = f"{len(found.shown)} of them, training image left, evaluation image right"
        cards = [((one, other), _line(match), match.key) for one, other, match in found.shown]
        sections.append({"title": title, "cards": cards})
    return _page(f"{found.name} against {', '.join(found.against)}", tiles, sections)


def skipped_table(found: Checked) -> Table:
    """Reasons, counts, shares and an example of each."""
    rows: list[list[Value]] = [
        [
            reason,
            f"{count:,}",
            f"{100 * found.share_of(reason):.2f} %",
            found.skipped.examples.get(reason, ""),
        ]
        for reason, count in found.skipped.counts.most_common()
    ]
    columns = ["reason", "samples", "share", "for example"]
    return Table(title="Skipped samples", columns=columns, rows=rows, words=True)


def write_page(out: Path, html: str, matches: Sequence[Match] | None = None) -> Path:
    """Write `out`/index.html and a line for each match to `out`/matches.jsonl; the path of the page.

    Raises:
        ValueError: If one of the files exists and advflyp did not write it.
    """
    contents = {PAGE: html}
    if matches is not None:
        contents[MATCHES] = "".join(json.dumps(asdict(match)) + "\n" for match in matches)
    write_files(out, contents)
    return out / PAGE


def _page(title: str, tiles: list[dict[str, Any]], sections: list[dict[str, Any]]) -> str:
    return render(
        "pairs.html", title=title, kicker="advflyp data", headline=title, tiles=tiles, sections=sections
    )


def _tile(figure: str, name: str, below: str) -> dict[str, Any]:
    return {"name": name, "figures": [figure], "unit": "", "below": below}


def _line(match: Match) -> str:
    seen = f", cosine {match.cosine:.3f}" if match.cosine is not None else ""
    mirrored = " mirrored" if match.mirrored else ""
    return f"{match.set}/{match.image}: {match.bits} of 64 bits{mirrored}{seen}"


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least this share of the counts does not exceed; 0 without counts."""
    values, weights = list(counts), list(counts.values())
    return int(np.quantile(values, share, weights=weights, method="inverted_cdf")) if counts else 0


def _histogram(counts: Counter[int], what: str, of: str) -> Drawing:
    return drawing(partial(histogram, counts, what, of), f"{of} by {what}", widths=(760, 360))


@styled()
def histogram(counts: Counter[int], what: str, of: str, *, width: int) -> Figure:
    """Bars of equal width up to that of the 99th percentile, which also holds everything beyond."""
    first, last = min(counts), _quantile(counts, 0.99)
    step = max(1, -(-(last - first + 1) // BINS))
    heights: Counter[int] = Counter()
    for value, count in counts.items():
        heights[(min(value, last) - first) // step] += count
    left = 28 + 7 * len(f"{max(heights.values()):,}")
    figure, axes = figure_with_axes(width, 240, left=left, bottom=48, right=12, top=12)
    places = [first + step * (place + 0.5) - 0.5 for place in heights]
    axes.bar(places, list(heights.values()), width=0.88 * step, color=MODELS[1], linewidth=0)
    begin = first + step * max(heights)
    axes.set_xlabel(
        what if last == max(counts) else f"{what} (the last bar: {begin:,} and more, to {max(counts):,})"
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
