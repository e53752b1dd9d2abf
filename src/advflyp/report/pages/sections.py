"""The sections that several pages share, as data for their templates: figures drawn, numbers arranged."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure

from advflyp.report.figures.curves import (
    FEW,
    accuracy_against_eps,
    loss_curve,
    training_lines,
    validation_curve,
)
from advflyp.report.figures.dots import dumbbells, ordered_sets, per_set
from advflyp.report.figures.examples import Example, rule
from advflyp.report.figures.plots import Look, svg
from advflyp.report.figures.tradeoff import tradeoff
from advflyp.report.measure.estimates import Condition, Estimate, attack_title, competitors
from advflyp.report.measure.grid import sides
from advflyp.report.measure.render import as_csv, latex
from advflyp.report.measure.results import Results
from advflyp.report.measure.runs import run_summary
from advflyp.report.measure.tables import Table
from advflyp.training.runlog import read_metrics
from advflyp.written import write_files

WIDTHS = (900, 350)
# What a report may write into its folder, as `check_files` takes it.
FILES = ("index.html", "results.md", "tables/*.csv", "tables/*.tex")

View = dict[str, Any]
Get = Callable[[str, Condition], Estimate | None]
Curves = dict[str, list[tuple[float, Estimate]]]


class Drawing(NamedTuple):
    """A figure as SVG for a desktop and for a phone."""

    wide: Markup
    narrow: Markup


def drawing(draw: Callable[..., Figure], description: str, widths: tuple[int, int] = WIDTHS) -> Drawing:
    """Draw a figure, a function of its width in pixels, in both widths."""
    return Drawing(*(svg(draw(width=width), description) for width in widths))


def write_report_files(out: Path, tables: Mapping[str, Table], *, html: str, markdown: str) -> Path:
    """Write `out`/index.html, results.md and tables/NAME.csv and .tex, replacing an earlier report."""
    files = {"results.md": markdown}
    for name, table in tables.items():
        files[f"tables/{name}.csv"] = as_csv(table)
        files[f"tables/{name}.tex"] = latex(table)
    write_files(out, files | {"index.html": html}, instead_of=FILES)
    return out / "index.html"


def spread_words(results: Results) -> str:
    """What the bars, bands and crosses of a figure mean; all are of one kind (`Results.drawn`)."""
    if not results.replicated:
        return "95 % intervals"
    return "± one standard deviation over training seeds (none for a single seed)"


def means_over(sets: Sequence[str]) -> dict[str, list[str]]:
    """Title → sets: all of them, and those in and out of the proxy if that is known."""
    return {
        (f"{side}, " if side else "")
        + ("one set" if len(names) == 1 else f"mean of {len(names)} sets"): names
        for side, names in {"": list(sets), **sides(sets)}.items()
    }


def set_by_set(results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look) -> View:
    """For each set, a dot with its interval for each model; with many models, a figure for each set."""
    view: View = {"spread": spread_words(results), "small": [], "two": len(models) == 2}
    if len(models) > FEW and len(shown) == 2:
        return view | {
            "robust": shown[1].title,
            "small": _dumbbells(results, models, shown[0], shown[1], look),
        }
    draw = partial(per_set, results, shown, look)
    return view | {"drawing": drawing(draw, "accuracy of each model on each set, with intervals")}


def _dumbbells(
    results: Results, models: Sequence[str], clean: Condition, robust: Condition, look: Look
) -> list[Markup]:
    groups: dict[str, Get] = {}
    if len(results.sets) > 1:
        for title, names in means_over(results.sets).items():
            groups[title] = lambda m, c, names=names: results.mean(m, c, names)
    side_of = {name: side for side, names in sides(results.sets).items() for name in names}
    for name in sorted(results.sets, key=lambda name: side_of.get(name, "")):
        title = results.short[name] + (f" ({side_of[name]})" if name in side_of else "")
        groups[title] = lambda m, c, name=name: results.get(m, name, c)
    plots = []
    for title, get in groups.items():
        rows = [(m, results.drawn(get(m, clean)), results.drawn(get(m, robust))) for m in models]
        if not any(a or b for _, a, b in rows):
            continue
        rows.sort(key=lambda row: -(row[2].value if row[2] else -1))
        top = _ceiling(value for _, *two in rows for value in two)
        figure = dumbbells(rows, look, width=300, title=title, ceiling=top)
        plots.append(svg(figure, f"clean and robust accuracy of each method: {title}"))
    return plots


def tradeoffs(
    results: Results,
    models: Sequence[str],
    clean: Condition,
    robust: Condition,
    look: Look,
    references: Sequence[str] = (),
) -> View | None:
    """A point for each method: means over all sets, and over those in and out of the proxy; None below two.

    Args:
        clean: Condition of the x axis.
        robust: Condition of the y axis.
        references: Untrained models, which may be on the Pareto front beside means over several seeds.
    """
    drawings = []
    unranked: dict[str, None] = {}
    for title, names in means_over(results.sets).items():
        means = {
            model: (one, two)
            for model in models
            if (one := results.mean(model, clean, names)) and (two := results.mean(model, robust, names))
        }
        if len(means) < 2:
            continue
        ranked = competitors({model: one for model, (one, _) in means.items() if model not in references})
        unranked |= {model: None for model in means if model not in (*ranked, *references)}
        draw = partial(
            tradeoff,
            {model: (results.drawn(one), results.drawn(two)) for model, (one, two) in means.items()},
            look,
            robust=robust.title,
            title=title[:1].upper() + title[1:],
            on_front=[*references, *ranked],
        )
        drawings.append(drawing(draw, f"robust against clean accuracy, {title}"))
    if not drawings:
        return None
    return {"drawings": drawings, "unranked": list(unranked), "spread": spread_words(results)}


def against_eps(
    results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look
) -> View | None:
    """Accuracy against ε for each attack with two radii or more: the mean and, for few models, every set."""
    radii: dict[tuple[str, str], set[float]] = {}
    for condition in results.attacked:
        radii.setdefault((condition.attack, str(condition.norm)), set()).add(condition.eps)
    curves = [
        _curves(results, models, shown, look, *attack) for attack, found in radii.items() if len(found) > 1
    ]
    if not curves:
        return None
    return {"curves": curves, "bands": len(models) <= FEW, "spread": spread_words(results)}


def _curves(
    results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look, attack: str, norm: str
) -> View:
    along = [c for c in results.conditions if c.norm is None or (c.attack, c.norm) == (attack, norm)]
    title = f"{attack_title(attack)}{' (L2)' if norm == 'l2' else ''}"

    def lines(get: Get) -> Curves:
        found = {
            model: [(c.eps, value) for c in along if (value := results.drawn(get(model, c))) is not None]
            for model in models
        }
        return {model: points for model, points in found.items() if points}

    groups = means_over(results.mean_sets) if len(results.sets) > 1 and results.mean_sets else {}
    means = []
    for over, names in list(groups.items())[: None if len(models) > 2 else 1]:
        if found := lines(lambda m, c, names=names: results.mean(m, c, names)):
            height = 320 if len(found) <= FEW else 400
            how: View = {"title": f"{title}, {over}", "norm": norm, "ceiling": _top(found)}
            draw = partial(accuracy_against_eps, found, look, height=height, **how)
            means.append(drawing(draw, f"accuracy against ε, {title}, {over}"))
    small: dict[str, Curves] = {}
    if len(models) <= FEW or not means:
        small = {
            name: found
            for name in ordered_sets(results, shown, look)
            if (found := lines(lambda m, c, name=name: results.get(m, name, c)))
        }
    top = max(map(_top, small.values()), default=0)
    size: View = {"width": 220, "height": 150, "norm": norm, "ceiling": top, "small": True}
    plots = [
        svg(
            accuracy_against_eps(found, look, title=results.short[name], **size),
            f"accuracy against ε on {name}",
        )
        for name, found in small.items()
    ]
    return {"title": title, "norm": norm, "means": means, "small": plots}


def _top(curves: Curves) -> float:
    return _ceiling(value for line in curves.values() for _, value in line)


def before_after(found: Sequence[Example], names: tuple[str, str]) -> View | None:
    """Images, what the attack makes of them, and what two models say; None without examples."""
    if not found:
        return None
    first = found[0]
    return {
        "examples": found,
        "names": names,
        "attack": Condition.of(first).title,
        "right": [
            sum(getattr(one, side).is_right(one.label) for one in found) for side in ("before", "after")
        ],
        "rule": rule(first.seed),
    }


def training(runs: Mapping[str, Path], recipes: Mapping[str, Mapping[str, Any]]) -> list[View]:
    """Loss terms and validation accuracy of each run that has any."""
    found = []
    for name, folder in runs.items():
        entries = read_metrics(folder)
        lines = training_lines(entries)
        size = {"width": 290, "height": 180, "steps": max((entry["step"] for entry in entries), default=0)}
        plots = [
            svg(loss_curve(term, line, **size), f"{name}: loss {term}")
            for term, line in lines["loss"].items()
        ]
        if lines["validation"]:
            plots.append(svg(validation_curve(lines["validation"], **size), f"{name}: validation accuracy"))
        if plots:
            found.append({"name": name, "summary": run_summary(entries, recipes[name]), "plots": plots})
    return found


def _ceiling(values: Iterable[Estimate | None]) -> float:
    """The end of an accuracy axis: the next multiple of 20 %."""
    top = max((100 * value.high for value in values if value is not None), default=0)
    return min(100.0, 20 * (top // 20 + 1))
