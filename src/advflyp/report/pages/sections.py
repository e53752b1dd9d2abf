"""Sections that the report of results and the report of a whole comparison share: HTML from results."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from advflyp.escape import for_html
from advflyp.files import write_files
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
from advflyp.report.measure.grid import sides
from advflyp.report.measure.measured import Condition, Estimate, Results, attack_title, competitors, radius
from advflyp.report.measure.render import as_csv, latex
from advflyp.report.measure.runs import run_summary
from advflyp.report.measure.tables import Table
from advflyp.report.pages import elements
from advflyp.training.runlog import read_metrics

WIDTHS = (900, 350)
# What a report may write into its folder, as `check_files` takes it.
FILES = ("index.html", "results.md", "tables/*.csv", "tables/*.tex")


def document(title: str, description: str, sections: Sequence[str]) -> str:
    """A whole page that needs nothing but itself."""
    # No line break between a number and its sign.
    body = "\n".join(section for section in sections if section)
    body = body.replace(" %", "\u00a0%").replace("ε = ", "ε\u00a0=\u00a0")
    css = (files("advflyp") / "report" / "style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{for_html(title)}</title>\n"
        f'<meta name="description" content="{for_html(description)}">\n'
        f"<style>\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    """A section of the page; nothing where there is nothing to say."""
    return f"<section>\n<h2>{heading}</h2>\n{body}\n</section>" if body else ""


def tile(name: str, figures: str, below: str) -> str:
    """A large figure with what it is above and how sure below; `figures` is HTML."""
    return (
        f'<div class="tile"><b>{for_html(name)}</b><span class="figures">{figures} %</span>'
        f"<small>{for_html(below)}</small></div>"
    )


def set_by_set(results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look) -> str:
    """Every set, a dot with its interval for each model; a picture for each set where models are many."""
    if len(models) > FEW and len(shown) == 2:
        return _dumbbells(results, models, (shown[0], shown[1]), look)
    draw = elements.picture(
        lambda width: per_set(results, shown, look, width=width),
        "accuracy of each model on each set, with intervals",
        widths=WIDTHS,
    )
    right = " At the right, the change in points." if len(models) == 2 else ""
    return f"<p>Each mark is the accuracy on one set, the bars behind are {spread_words(results)}.{right}</p>{draw}"


def _dumbbells(
    results: Results, models: Sequence[str], shown: tuple[Condition, Condition], look: Look
) -> str:
    clean, robust = shown
    groups: dict[str, Callable[[str, Condition], Estimate | None]] = {}
    split = sides(results.sets)
    if len(results.sets) > 1:
        groups[f"mean of {len(results.sets)} sets"] = lambda m, c: results.mean(m, c, results.sets)
    for side, names in split.items():
        groups[f"mean of {len(names)} {side}"] = lambda m, c, names=names: results.mean(m, c, names)
    known = {name: side for side, names in split.items() for name in names}
    for name in sorted(results.sets, key=lambda name: known.get(name, "")):
        title = results.short[name] + (f" ({known[name]})" if name in known else "")
        groups[title] = lambda m, c, name=name: results.get(m, name, c)
    rows = {
        title: [(m, results.drawn(get(m, clean)), results.drawn(get(m, robust))) for m in models]
        for title, get in groups.items()
    }
    rows = {title: found for title, found in rows.items() if any(a or b for _, a, b in found)}
    plots = [
        svg(
            dumbbells(
                sorted(found, key=lambda row: -(row[2].value if row[2] else -1)),
                look,
                width=300,
                title=title,
                ceiling=_ceiling(value for _, *two in found for value in two),
            ),
            f"clean and robust accuracy of each method: {title}",
        )
        for title, found in rows.items()
    ]
    return (
        f"<p>Hollow: accuracy on clean images; filled: under {for_html(robust.title)}; the bars behind are "
        f"{spread_words(results)}. The most robust method stands on top. Each picture has its own scale.</p>"
        + elements.grid(plots, kind="roomy")
    )


def tradeoffs(
    results: Results,
    models: Sequence[str],
    clean: Condition,
    robust: Condition,
    look: Look,
    references: Sequence[str] = (),
) -> str:
    """Every method a point: mean over all sets, and over those in and out of the proxy; nothing of fewer than two.

    references: models that are not trained, so that they may be on the front beside means of several trainings
    """
    parts: dict[str, Sequence[str]] = {"": results.sets, **sides(results.sets)}
    pictures = []
    left_out: dict[str, None] = {}
    for side, names in parts.items():
        means = {
            model: (one, two)
            for model in models
            if (one := results.mean(model, clean, names)) and (two := results.mean(model, robust, names))
        }
        if len(means) < 2:
            continue
        ranked = competitors({model: one for model, (one, _) in means.items() if model not in references})
        left_out |= {model: None for model in means if model not in (*ranked, *references)}
        points = {model: (results.drawn(one), results.drawn(two)) for model, (one, two) in means.items()}
        over = "one set" if len(names) == 1 else f"mean of {len(names)} sets"
        title = f"{side}, {over}" if side else over
        draw = partial(
            tradeoff,
            points,
            look,
            robust=robust.title,
            title=title[:1].upper() + title[1:],
            on_front=[*references, *ranked],
        )
        pictures.append(
            elements.picture(
                lambda width, draw=draw: draw(width=width, height=480 if width > 500 else 420),
                f"robust against clean accuracy, {title}",
                widths=WIDTHS,
            )
        )
    if not pictures:
        return ""
    fewer = f" (not among those: {for_html(', '.join(left_out))}, of fewer trainings)" if left_out else ""
    return (
        "<p>Up and right is better. The dashed stairs are the front: whatever lies in the grey below them is beaten "
        f"by a method on them, in clean and in robust accuracy{fewer}. Crosses are {spread_words(results)}. The axes "
        "are cut: they do not begin at zero.</p>" + "".join(pictures)
    )


def against_eps(results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look) -> str:
    """Accuracy against ε for each attack with two radii or more: the mean, and few models also set by set."""
    attacks: dict[tuple[str, str], set[float]] = {}
    for condition in results.attacked:
        attacks.setdefault((condition.attack, str(condition.norm)), set()).add(condition.eps)
    parts = [
        _curve(results, models, shown, look, *attack) for attack, radii in attacks.items() if len(radii) > 1
    ]
    if not parts:
        return ""
    bands = f"; bands are {spread_words(results)}" if len(models) <= FEW else ""
    return (
        f"<p>Accuracy against ε, the most a pixel may change. 0 is the clean picture{bands}.</p>"
        + "".join(parts)
    )


def _curve(
    results: Results, models: Sequence[str], shown: Sequence[Condition], look: Look, attack: str, norm: str
) -> str:
    """The mean over sets, and a small picture for each set."""
    along = [c for c in results.conditions if c.norm is None or (c.attack, c.norm) == (attack, norm)]

    def lines(
        get: Callable[[str, Condition], Estimate | None],
    ) -> dict[str, list[tuple[float, Estimate]]]:
        found = {
            model: [(c.eps, value) for c in along if (value := results.drawn(get(model, c))) is not None]
            for model in models
        }
        return {model: points for model, points in found.items() if points}

    title = f"{attack_title(attack)}{' (L2)' if norm == 'l2' else ''}"
    groups: dict[str, Sequence[str]] = {}
    if len(results.sets) > 1 and results.mean_sets:
        groups[f"mean of {len(results.mean_sets)} sets"] = results.mean_sets
        if len(models) > 2:
            groups |= {f"{side}, mean of {len(s)}": s for side, s in sides(results.mean_sets).items()}
    parts = []
    for over, names in groups.items():
        mean = lines(lambda m, c, names=names: results.mean(m, c, names))
        if not mean:
            continue
        draw = partial(
            accuracy_against_eps,
            mean,
            look,
            title=f"{title}, {over}",
            ceiling=_ceiling(value for points in mean.values() for _, value in points),
            norm=norm,
            label=True,
        )
        parts.append(
            elements.picture(
                lambda width, draw=draw: draw(width=width, height=320 if len(models) <= FEW else 400),
                f"accuracy against ε: {title}, {over}",
                widths=WIDTHS,
            )
        )
    if len(models) > FEW and parts:
        return "".join(parts)
    curves = {
        name: lines(lambda m, c, name=name: results.get(m, name, c))
        for name in ordered_sets(results, shown, look)
    }
    ceiling = _ceiling(v for found in curves.values() for points in found.values() for _, v in points)
    small = [
        svg(
            accuracy_against_eps(
                found,
                look,
                width=220,
                height=150,
                title=results.short[name],
                ceiling=ceiling,
                norm=norm,
                axis_titles=False,
            ),
            f"accuracy against ε on {name}",
        )
        for name, found in curves.items()
        if found
    ]
    unit = "1/255" if norm == "linf" else "L2 length"
    note = f'<p class="note">{for_html(title)} on each set. Across: ε ({unit}); up: accuracy (%).</p>'
    return "".join(parts) + note + elements.grid(small)


def before_after(examples: Sequence[Example], names: tuple[str, str]) -> str:
    """Pictures, what the attack makes of them, and what two models say."""
    if not examples:
        return ""
    first = examples[0]
    before = sum(elements.still_right(example.before, example.label) for example in examples)
    after = sum(elements.still_right(example.after, example.label) for example in examples)
    intro = (
        f"<p>Left the clean picture, right what {for_html(attack_title(first.attack))} at "
        f"ε = {radius(first.eps, first.norm)} makes of it against this very model, between them the change, "
        "amplified by the factor above it (middle grey is no change). Under each picture the three likeliest "
        f"classes.</p><p>Still right under attack: {before} of {len(examples)} before, {after} after.</p>"
        f'<p class="note">{for_html(rule(first.seed))} Whose pictures they are is said under The sets.</p>'
    )
    cards = "".join(elements.example_card(example, names) for example in examples)
    return f'{intro}<div class="examples">{cards}</div>'


def training(
    runs: Mapping[str, Path], recipes: Mapping[str, Mapping[str, Any]], *, folded: bool = False
) -> str:
    """Loss terms and validation accuracy of each run. folded: each under its name, to be opened."""
    body = []
    for name, folder in runs.items():
        entries = read_metrics(folder)
        lines = training_lines(entries)
        size = {"width": 290, "height": 180, "steps": max((entry["step"] for entry in entries), default=0)}
        plots = [
            svg(loss_curve(term, ln, **size), f"{name}: loss {term}") for term, ln in lines["loss"].items()
        ]
        if lines["validation"]:
            plots.append(svg(validation_curve(lines["validation"], **size), f"{name}: validation accuracy"))
        if plots:
            summary = f"<p>{for_html(run_summary(entries, recipes[name]))}</p>"
            grid = summary + elements.grid(plots, kind="roomy")
            body.append(fold(name, grid) if folded else f"<h3>{for_html(name)}</h3>{grid}")
    note = (
        "<p>The terms of the loss, each weighted as it enters the sum, and the accuracy on the validation set, "
        "which decides the weights that are kept.</p>"
    )
    return note + "".join(body) if body else ""


def fold(summary: str, inner: str, *, is_open: bool = False) -> str:
    """Something to be opened; `inner` is HTML."""
    return f"<details{' open' * is_open}><summary>{for_html(summary)}</summary>{inner}</details>"


def table(data: Table, *, words: bool = False) -> str:
    """A table under its title."""
    return f"<h3>{for_html(data.title)}</h3>{elements.table(data, words=words)}"


def table_files(tables: Mapping[str, Table]) -> dict[str, str]:
    """What is written beside the page: tables/NAME.csv and .tex of each."""
    result = {}
    for name, data in tables.items():
        result[f"tables/{name}.csv"] = as_csv(data)
        result[f"tables/{name}.tex"] = latex(data)
    return result


def write(out: Path, contents: Mapping[str, str]) -> None:
    """Each file appears complete or not at all; see `write_files`."""
    write_files(out, contents)


def spread_words(results: Results) -> str:
    """What the bars, bands and crosses of a picture are: of one kind (`Results.drawn`)."""
    if not results.replicated:
        return "95 % intervals"
    return "± one standard deviation over training seeds; what has one seed has none"


def _ceiling(values: Any) -> float:
    """The end of an accuracy axis: the next multiple of 20 %."""
    top = max((100 * value.high for value in values if value is not None), default=0)
    return min(100.0, 20 * (top // 20 + 1))
