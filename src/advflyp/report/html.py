"""The report: one self-contained index.html, and its tables as results.md beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from advflyp.evaluation.results import Cell, read_cells
from advflyp.report import elements, prose
from advflyp.report.examples import Example, rule
from advflyp.report.plots import (
    Look,
    accuracy_against_eps,
    loss_curve,
    ordered_sets,
    per_set,
    svg,
    training_lines,
    validation_curve,
)
from advflyp.report.tables import (
    Condition,
    Estimate,
    Results,
    Table,
    accuracy_table,
    attack_title,
    check_models,
    comparison_table,
    escape_markdown,
    markdown,
    mean_change,
    models_table,
    radius,
)
from advflyp.runlog import METRICS_FILE, read_metrics

RESULTS_FILE = "results.jsonl"
WIDTHS = (900, 350)


def write_report(
    out: Path,
    *,
    title: str,
    cells: Sequence[Cell],
    before: str | None = None,
    after: str | None = None,
    runs: Mapping[str, Path] | None = None,
    examples: Sequence[Example] = (),
    eps: float | None = None,
) -> Path:
    """Write `out`/index.html and `out`/results.md; the path of index.html.

    cells:         every measurement to show; models are told apart by their `model`
    before, after: the two models to compare, as the cells name them; without them all models stand side by side
    runs:          run folders whose training is shown, by the name to show
    eps:           radius of the headline, in pixels of [0, 1]; by default that of the examples, else that of
                   the training attack, else the smallest one measured
    ValueError where there are no results, none of a model named, or `out` cannot be written.
    """
    pair = (before, after) if before is not None and after is not None else None
    page = Page(title, Results(cells), pair, dict(runs or {}), list(examples), eps)
    _write(Path(out), {"results.md": page.markdown(), "index.html": page.html()})
    return Path(out) / "index.html"


def report_from_paths(paths: Sequence[Path], out: Path) -> Path:
    """The report of result files (*.jsonl) and run folders; two models are compared, the first as "before".

    ValueError for a path that is neither, and where no path holds results.
    """
    cells: list[Cell] = []
    runs: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            is_run, has_results = (path / METRICS_FILE).is_file(), (path / RESULTS_FILE).is_file()
            if not is_run and not has_results:
                raise ValueError(
                    f"{path} is no run folder: it holds neither {METRICS_FILE} nor {RESULTS_FILE}; "
                    "name result files (*.jsonl) and run folders"
                )
            if is_run:
                runs[str(path)] = path
            if has_results:
                cells += _read(path / RESULTS_FILE)
        elif path.is_file():
            cells += _read(path)
        else:
            raise ValueError(f"there is no {path}; name result files (*.jsonl) and run folders")
    if not cells:
        raise ValueError(
            f"no results in {', '.join(map(str, paths)) or 'nothing'}; make some with "
            "`advflyp eval MODEL --out results.jsonl`"
        )
    models = Results(cells).models
    before, after = models if len(models) == 2 else (None, None)
    # Names as Results split them, should two checkpoints share one.
    return write_report(out, title="advflyp report", cells=cells, before=before, after=after, runs=runs)


class Page:
    """What the report says, section by section."""

    def __init__(
        self,
        title: str,
        results: Results,
        pair: tuple[str, str] | None,
        runs: dict[str, Path],
        examples: list[Example],
        eps: float | None,
    ) -> None:
        if not results.cells:
            raise ValueError("there are no results to report")
        check_models(results, *(pair or ()))
        self.title = title
        self.results = results
        self.pair = pair
        self.runs = runs
        self.examples = examples
        self.recipes = {name: prose.read_recipe_tree(path) for name, path in runs.items()}
        others = [model for model in results.models if model not in (pair or ())]
        self.models = [*(pair or ()), *others]
        names = dict(zip(pair, ("before", "after"), strict=True)) if pair else {}
        self.look = Look.of(self.models, names)
        self.shown = [c for c in (results.clean, self._headline_attack(eps)) if c]

    def _headline_attack(self, eps: float | None) -> Condition | None:
        trained = [recipe.get("attack", {}).get("eps") for recipe in self.recipes.values()]
        for candidate in (eps, *(example.eps for example in self.examples[:1]), *trained):
            if candidate is not None and (condition := self.results.strongest(candidate)):
                return condition
        return self.results.strongest()

    def html(self) -> str:
        """The whole page."""
        sections = [
            self._head(),
            self._per_set(),
            self._curves(),
            self._examples(),
            self._numbers(),
            self._training(),
            _section("What the numbers mean", prose.meaning(self.results)),
            _section("How it was made", prose.made(self.results, self.runs)),
        ]
        # No line break between a number and its sign.
        body = "\n".join(section for section in sections if section)
        body = body.replace(" %", "\u00a0%").replace("ε = ", "ε\u00a0=\u00a0")
        css = (files("advflyp") / "report" / "style.css").read_text()
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<meta name="description" content="{escape(self._headline())}">\n'
            f"<style>\n{css}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """The same tables for a README or an issue."""
        head = [f"# {escape_markdown(self.title)}", "", escape_markdown(self._headline()), ""]
        return "\n".join([*head, *map(markdown, self._tables())])

    def _headline(self) -> str:
        return prose.headline(self.results, self.models, self.pair, self.shown)

    def _head(self) -> str:
        tiles = []
        for condition in reversed(self.shown):
            name = "on clean images" if condition.norm is None else f"under {condition.title}"
            values = [self.results.mean(model, condition) for model in self.models]
            if self.pair and (change := mean_change(self.results, *self.pair, condition)):
                colours = [f'<span class="c{i}">{v.number}</span>' for i, v in enumerate(values[:2]) if v]
                figures = '<span class="arrow"> → </span>'.join(colours)
                tiles.append(
                    _tile(name, figures, f"{change.number} points (95 % interval {change.interval})")
                )
            elif len(values) == 1 and values[0]:
                tiles.append(_tile(name, values[0].number, f"95 % interval {values[0].interval} %"))
        return (
            f'<header>\n<p class="kicker">{escape(self.title)}</p>\n<h1>{escape(self._headline())}</h1>\n'
            f'<div class="tiles">{"".join(tiles)}</div>\n{elements.key(self.look)}\n'
            f'<p class="note">{escape(prose.scope(self.results))}</p>\n</header>'
        )

    def _per_set(self) -> str:
        draw = elements.picture(
            lambda width: per_set(self.results, self.shown, self.look, width=width),
            "accuracy of each model on each set, with intervals",
            widths=WIDTHS,
        )
        right = " At the right, the change in points." if len(self.models) == 2 else ""
        return _section(
            "Set by set",
            f"<p>Each mark is the accuracy on one set, the bar behind it its 95 % interval.{right}</p>{draw}",
        )

    def _curves(self) -> str:
        if len({c.eps for c in self.results.attacked}) < 2:
            return ""
        attacks = dict.fromkeys((c.attack, str(c.norm)) for c in self.results.attacked)
        return _section(
            "The stronger the attack",
            "<p>Accuracy against ε, the most a pixel may change. 0 is the clean picture; bands are 95 % "
            "intervals.</p>" + "".join(self._curve(attack, norm) for attack, norm in attacks),
        )

    def _curve(self, attack: str, norm: str) -> str:
        """The mean over sets, and a small picture for each set."""
        along = [c for c in self.results.conditions if c.norm is None or (c.attack, c.norm) == (attack, norm)]

        def lines(set_name: str | None) -> dict[str, list[tuple[float, Estimate]]]:
            found = {}
            for model in self.models:
                values = [
                    (c.eps, self.results.get(model, set_name, c) if set_name else self.results.mean(model, c))
                    for c in along
                ]
                found[model] = [(eps, value) for eps, value in values if value]
            return {model: points for model, points in found.items() if points}

        title = f"{attack_title(attack)}{' (L2)' if norm == 'l2' else ''}"
        parts = []
        mean = lines(None)
        if mean and len(self.results.sets) > 1:
            over = f"{title}, mean of {len(self.results.mean_sets)} sets"
            parts.append(
                elements.picture(
                    lambda width: accuracy_against_eps(
                        mean,
                        self.look,
                        width=width,
                        height=320,
                        title=over,
                        ceiling=_ceiling(mean),
                        norm=norm,
                        label=True,
                    ),
                    f"accuracy against ε: {over}",
                    widths=WIDTHS,
                )
            )
        curves = {name: lines(name) for name in ordered_sets(self.results, self.shown, self.look)}
        ceiling = max(_ceiling(found) for found in curves.values())
        small = [
            svg(
                accuracy_against_eps(
                    found,
                    self.look,
                    width=220,
                    height=150,
                    title=self.results.short[name],
                    ceiling=ceiling,
                    norm=norm,
                    axis_titles=False,
                ),
                f"accuracy against ε on {name}",
            )
            for name, found in curves.items()
        ]
        unit = "1/255" if norm == "linf" else "L2 length"
        note = f'<p class="note">{escape(title)} on each set. Across: ε ({unit}); up: accuracy (%).</p>'
        return "".join(parts) + note + elements.grid(small)

    def _examples(self) -> str:
        if not self.examples:
            return ""
        first = self.examples[0]
        names = (f"before: {self.pair[0]}", f"after: {self.pair[1]}") if self.pair else ("before", "after")
        before = sum(elements.still_right(example.before, example.label) for example in self.examples)
        after = sum(elements.still_right(example.after, example.label) for example in self.examples)
        intro = (
            f"<p>Left the clean picture, right what {escape(attack_title(first.attack))} at "
            f"ε = {radius(first.eps, first.norm)} makes of it against this very model, between them the change, "
            "amplified by the factor above it (middle grey is no change). Under each picture the three likeliest "
            f"classes.</p><p>Still right under attack: {before} of {len(self.examples)} before, {after} after.</p>"
            f'<p class="note">{escape(rule(first.seed))} Whose pictures they are is said under The sets.</p>'
        )
        cards = "".join(elements.example_card(example, names) for example in self.examples)
        return _section("What it looks like", f'{intro}<div class="examples">{cards}</div>')

    def _tables(self) -> list[Table]:
        """The main tables, then those of one model each."""
        return [*self._main_tables(), *(accuracy_table(self.results, model) for model in self.models)]

    def _main_tables(self) -> list[Table]:
        overview = (
            [models_table(self.results)] if self.results.mean_sets and len(self.results.sets) > 1 else []
        )
        return [*overview, *([comparison_table(self.results, *self.pair, self.shown)] if self.pair else [])]

    def _numbers(self) -> str:
        main = self._main_tables()
        body = [f"<h3>{escape(table.title)}</h3>{elements.table(table)}" for table in main]
        for table in self._tables()[len(main) :]:
            summary, inner = escape(f"{table.title}, every set and attack"), elements.table(table)
            is_open = " open" if len(self.models) == 1 else ""
            body.append(f"<details{is_open}><summary>{summary}</summary>{inner}</details>")
        sets = prose.sets_table(self.results)
        body.append(f"<h3>{escape(sets.title)}</h3>{elements.table(sets, words=True)}")
        prompts = prose.prompts_table(self.results)
        inner = elements.table(prompts, words=True)
        body.append(f"<details><summary>{escape(prompts.title)}</summary>{inner}</details>")
        return _section("The numbers", "".join(body))

    def _training(self) -> str:
        body = []
        for name, folder in self.runs.items():
            entries = read_metrics(folder)
            lines = training_lines(entries)
            size = {
                "width": 290,
                "height": 180,
                "steps": max((entry["step"] for entry in entries), default=0),
            }
            plots = [svg(loss_curve(term, ln, **size), f"loss {term}") for term, ln in lines["loss"].items()]
            if lines["validation"]:
                plots.append(svg(validation_curve(lines["validation"], **size), "validation accuracy"))
            if plots:
                summary = prose.run_summary(entries, self.recipes[name])
                body.append(
                    f"<h3>{escape(name)}</h3><p>{escape(summary)}</p>{elements.grid(plots, roomy=True)}"
                )
        note = (
            "<p>The terms of the loss, each weighted as it enters the sum, and the accuracy on the validation set, "
            "which decides the weights that are kept.</p>"
        )
        return _section("Training", note + "".join(body)) if body else ""


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{body}\n</section>"


def _tile(name: str, figures: str, below: str) -> str:
    return (
        f'<div class="tile"><b>{escape(name)}</b><span class="figures">{figures} %</span>'
        f"<small>{escape(below)}</small></div>"
    )


def _ceiling(curves: Mapping[str, Sequence[tuple[float, Estimate]]]) -> float:
    """The end of an accuracy axis: the next multiple of 20 %."""
    top = max((100 * value.high for points in curves.values() for _, value in points), default=0)
    return min(100.0, 20 * (top // 20 + 1))


def _read(path: Path) -> list[Cell]:
    try:
        return read_cells(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a result file (*.jsonl)") from None


def _write(out: Path, contents: Mapping[str, str]) -> None:
    """Each file appears complete or not at all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            draft = out / f".{name}.partial"
            draft.write_text(text, encoding="utf-8")
            draft.replace(out / name)
    except OSError as error:
        raise ValueError(f"cannot write the report to {out}: {error.strerror}") from None
