"""`advflyp report`: one self-contained index.html, and its tables as Markdown, CSV and LaTeX beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from advflyp.escape import for_html, for_markdown, for_terminal
from advflyp.evaluation.results import Cell, read_cells
from advflyp.evaluation.retrieval import RetrievalCell, read_retrieval
from advflyp.files import check_files
from advflyp.report.figures.examples import Example
from advflyp.report.figures.plots import Look
from advflyp.report.measure.grid import methods_table, sanity_table
from advflyp.report.measure.measured import Condition, ReplicatedChange, Results
from advflyp.report.measure.recall import recall_tables
from advflyp.report.measure.render import markdown
from advflyp.report.measure.runs import read_recipe_tree
from advflyp.report.measure.tables import (
    Table,
    accuracy_table,
    check_models,
    comparison_table,
    models_table,
)
from advflyp.report.pages import elements, prose, sections
from advflyp.training.runlog import METRICS_FILE

RESULTS_FILE = "results.jsonl"

C = TypeVar("C", Cell, RetrievalCell)


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
    seeds: bool = False,
    retrieval: Sequence[RetrievalCell] = (),
    stores: Sequence[Path] = (),
) -> Path:
    """Write `out`/index.html, results.md and tables/*.csv, *.tex; the path of index.html.

    cells:         every measurement to show; models are told apart by their `model`
    before, after: the two models to compare, as the cells name them; without them all models stand side by side
    runs:          run folders whose training is shown, by the name to show
    eps:           radius of the headline, in pixels of [0, 1]; by default that of the examples, else that of
                   the training attack, else the smallest one measured
    seeds:         several checkpoints of one name are training seeds of one method: mean ± standard deviation
    retrieval:     results of `advflyp retrieval`
    stores:        files of `cells`, beside which is stored what became of each image: changes get intervals from that
    ValueError where there are no results, none of a model named, or `out` cannot be written.
    """
    pair = (before, after) if before is not None and after is not None else None
    results = Results(cells, seeds=seeds, stores=stores)
    page = Page(title, results, pair, dict(runs or {}), list(examples), eps, list(retrieval))
    sections.write(Path(out), page.files())
    return Path(out) / "index.html"


def report_from_paths(paths: Sequence[Path], out: Path, *, seeds: bool = False) -> Path:
    """The report of result files (*.jsonl) and run folders; two models are compared, the first as "before",
    where all results follow one protocol.

    seeds: several checkpoints of one name are training seeds of one method
    ValueError for a path that is neither, where no path holds results, and for files in `out` that are not a report's.
    """
    check_files(Path(out), sections.FILES)
    stores: list[Path] = []
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
                runs[for_terminal(str(path))] = path
            if has_results:
                stores.append(path / RESULTS_FILE)
        elif path.is_file():
            stores.append(path)
        else:
            raise ValueError(f"there is no {path}; name result files (*.jsonl) and run folders")
    found = [_read(store) for store in stores]
    cells = [cell for some, _ in found for cell in some]
    retrieval = [cell for _, some in found for cell in some]
    if not cells and not retrieval:
        raise ValueError(
            f"no results in {', '.join(map(str, paths)) or 'nothing'}; make some with "
            "`advflyp eval MODEL --out results.jsonl`"
        )
    # Names as Results splits them, should two checkpoints share one.
    results = Results(cells, seeds=seeds)
    is_pair = len(results.models) == 2 and not results.mixes_protocols
    before, after = results.models if is_pair else (None, None)
    return write_report(
        out,
        title="advflyp report",
        cells=cells,
        before=before,
        after=after,
        runs=runs,
        seeds=seeds,
        retrieval=retrieval,
        stores=stores,
    )


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
        retrieval: list[RetrievalCell],
    ) -> None:
        if not results.cells and not retrieval:
            raise ValueError("there are no results to report")
        check_models(results, *(pair or ()))
        self.title = title
        self.results = results
        self.pair = pair
        self.runs = runs
        self.examples = examples
        self.retrieval = retrieval
        self.recipes = {name: read_recipe_tree(path) for name, path in runs.items()}
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
        retrieval = "".join(map(sections.table, self._retrieval().values()))
        return sections.document(
            self.title,
            self._headline(),
            [
                self._head(),
                *(self._accuracy() if self.results.cells else []),
                sections.section("Retrieval", retrieval),
                sections.section("Training", sections.training(self.runs, self.recipes)),
                *(self._explained() if self.results.cells else []),
            ],
        )

    def _accuracy(self) -> list[str]:
        results, models, look = self.results, self.models, self.look
        trade = ""
        if len(models) > 2 and len(self.shown) == 2:
            trade = sections.tradeoffs(results, models, self.shown[0], self.shown[1], look)
        names = (f"before: {self.pair[0]}", f"after: {self.pair[1]}") if self.pair else ("before", "after")
        return [
            sections.section("Robust and accurate", trade),
            sections.section("Set by set", sections.set_by_set(results, models, self.shown, look)),
            sections.section(
                "The stronger the attack", sections.against_eps(results, models, self.shown, look)
            ),
            sections.section("What it looks like", sections.before_after(self.examples, names)),
            self._numbers(),
        ]

    def _explained(self) -> list[str]:
        return [
            sections.section("What the numbers mean", prose.meaning(self.results)),
            sections.section("How it was made", prose.made(self.results, self.runs)),
        ]

    def files(self) -> dict[str, str]:
        """Every file of the report by its name."""
        head = [f"# {for_markdown(self.title)}", "", for_markdown(self._headline()), ""]
        tables = self.tables()
        return {
            "results.md": "\n".join([*head, *map(markdown, tables.values())]),
            **sections.table_files(tables),
            "index.html": self.html(),
        }

    def tables(self) -> dict[str, Table]:
        """All tables by the names of their files: the main ones, those of one model each, retrieval."""
        single = {
            f"model-{number}-{_slug(model)}": accuracy_table(self.results, model)
            for number, model in enumerate(self.results.models, 1)
        }
        return {**self._main_tables(), **single, **self._retrieval()}

    def _main_tables(self) -> dict[str, Table]:
        tables: dict[str, Table] = {}
        if self.results.mean_sets and len(self.results.sets) > 1:
            tables["means"] = models_table(self.results)
        if len(self.models) > 2:
            tables["methods"] = methods_table(self.results)
        if self.pair:
            tables["before-after"] = comparison_table(self.results, *self.pair, self.shown)
        sanity = sanity_table(self.results)
        if sanity is not None:
            tables["sanity"] = sanity
        return tables

    def _retrieval(self) -> dict[str, Table]:
        tables = recall_tables(self.retrieval)
        return {f"retrieval-{number}": table for number, table in enumerate(tables, 1)}

    def _headline(self) -> str:
        if not self.results.cells:
            names = dict.fromkeys(cell.model for cell in self.retrieval)
            return f"Image–text retrieval of {', '.join(names)}."
        return prose.headline(self.results, self.models, self.pair, self.shown)

    def _head(self) -> str:
        tiles = []
        for condition in reversed(self.shown):
            name = "on clean images" if condition.norm is None else f"under {condition.title}"
            values = [self.results.mean(model, condition) for model in self.models]
            if self.pair and (change := self.results.change(*self.pair, condition)):
                colours = [f'<span class="c{i}">{v.number}</span>' for i, v in enumerate(values[:2]) if v]
                figures = '<span class="arrow"> → </span>'.join(colours)
                kind = "standard deviation" if isinstance(change, ReplicatedChange) else "95 % interval"
                spread = f" ({kind} {change.interval})" if change.interval else ""
                tiles.append(sections.tile(name, figures, f"{change.number} points{spread}"))
            elif len(values) == 1 and values[0]:
                tiles.append(sections.tile(name, values[0].number, f"95 % interval {values[0].interval} %"))
        scope = prose.scope(self.results) + prose.seen(self.results) if self.results.cells else ""
        return (
            f'<header>\n<p class="kicker">{for_html(self.title)}</p>\n<h1>{for_html(self._headline())}</h1>\n'
            f'<div class="tiles">{"".join(tiles)}</div>\n{elements.key(self.look) if self.models else ""}\n'
            f'<p class="note">{for_html(scope)}</p>\n</header>'
        )

    def _numbers(self) -> str:
        body = [sections.table(table) for table in self._main_tables().values()]
        for model in self.results.models:
            table = accuracy_table(self.results, model)
            body.append(
                sections.fold(
                    f"{table.title}, every set and attack",
                    elements.table(table),
                    is_open=len(self.models) == 1,
                )
            )
        body.append(sections.table(prose.sets_table(self.results), words=True))
        prompts = prose.prompts_table(self.results)
        body.append(sections.fold(prompts.title, elements.table(prompts, words=True)))
        return sections.section("The numbers", "".join(body))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:]


def _named(cells: list[C]) -> list[C]:
    """With names that every part of a report can show: a figure cannot be drawn with half a character in it."""
    return [
        replace(
            cell,
            **{name: for_terminal(value) for name, value in vars(cell).items() if isinstance(value, str)},
        )
        for cell in cells
    ]


def _read(path: Path) -> tuple[list[Cell], list[RetrievalCell]]:
    """Whichever of the two kinds of results a file holds."""
    try:
        with open(path, encoding="utf-8") as file:
            is_retrieval = '"image_to_text"' in file.readline()
        return ([], _named(read_retrieval(path))) if is_retrieval else (_named(read_cells(path)), [])
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a result file (*.jsonl)") from None
