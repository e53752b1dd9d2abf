"""`advflyp report`: one self-contained index.html, and its tables as Markdown, CSV and LaTeX beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from advflyp.escape import for_markdown, for_terminal
from advflyp.evaluation.results import Cell, read_cells
from advflyp.evaluation.retrieval import RetrievalCell, read_retrieval
from advflyp.lvlm.results import AnswerCell, read_answer_cells
from advflyp.report.figures.examples import Example
from advflyp.report.figures.plots import Look
from advflyp.report.measure.answers import Answered, answer_examples, answers_tables
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.grid import methods_table, sanity_table
from advflyp.report.measure.recall import recall_tables
from advflyp.report.measure.render import markdown
from advflyp.report.measure.results import Results
from advflyp.report.measure.runs import read_recipe_tree
from advflyp.report.measure.tables import (
    Table,
    accuracy_table,
    check_models,
    comparison_table,
    models_table,
)
from advflyp.report.pages import prose, sections
from advflyp.report.pages.jinja import render
from advflyp.training.runlog import METRICS_FILE
from advflyp.written import check_files

RESULTS_FILE = "results.jsonl"
# Characters; more than the part of a record that says what it is.
MAX_BEGINNING = 1 << 20
WHAT = "name result files (*.jsonl) and run folders"

C = TypeVar("C", Cell, RetrievalCell, AnswerCell)
Pair = tuple[str, str] | None


def write_report(
    out: Path,
    *,
    title: str,
    cells: Sequence[Cell],
    pair: Pair = None,
    runs: Mapping[str, Path] | None = None,
    examples: Sequence[Example] = (),
    eps: float | None = None,
    seeds: bool = False,
    retrieval: Sequence[RetrievalCell] = (),
    stores: Sequence[Path] = (),
    answers: Sequence[AnswerCell] = (),
    answered: Sequence[Answered] = (),
) -> Path:
    """Write `out`/index.html, results.md and tables/*.csv, *.tex.

    Args:
        cells: Every measurement to show; models are told apart by their `model`.
        pair: The two models to compare, before and after, as the cells name them; without a pair all models are shown
            side by side.
        runs: Run folders whose training is shown, by the name to show.
        examples: Images before and after.
        eps: Radius of the headline, in pixels of [0, 1]; by default that of the examples, else that of the training
            attack, else the smallest one measured.
        seeds: Whether checkpoints of one name are training seeds of one method, shown as mean ± standard deviation.
        retrieval: Results of `advflyp retrieval`.
        stores: Result files of `cells`; changes get their intervals from the per-image outcomes stored beside them.
        answers: Results of `advflyp lvlm eval`.
        answered: Images with answers before and after the attack.

    Returns:
        The path of index.html.

    Raises:
        ValueError: If there are no results, or none for a model of `pair`, or `out` cannot be written.
    """
    runs = dict(runs or {})
    results = Results(cells, seeds=seeds, stores=stores)
    if not results.runs and not retrieval and not answers:
        raise ValueError("there are no results to report")
    check_models(results, *(pair or ()))
    html, text, tables = _contents(title, results, pair, runs, examples, eps, retrieval, answers, answered)
    return sections.write_report_files(Path(out), tables, html=html, markdown=text)


def _contents(
    title: str,
    results: Results,
    pair: Pair,
    runs: Mapping[str, Path],
    examples: Sequence[Example],
    eps: float | None,
    retrieval: Sequence[RetrievalCell],
    answers: Sequence[AnswerCell],
    answered: Sequence[Answered],
) -> tuple[str, str, dict[str, Table]]:
    """The page, results.md and the tables."""
    recipes = {name: read_recipe_tree(path) for name, path in runs.items()}
    models = [*(pair or ()), *(model for model in results.models if model not in (pair or ()))]
    radii = [eps, *(one.eps for one in examples[:1])]
    radii += [recipe.get("attack", {}).get("eps") for recipe in recipes.values()]
    shown = [c for c in (results.clean, _headline_attack(results, radii)) if c]
    look = Look.of(models, dict(zip(pair, ("before", "after"), strict=True)) if pair else {})
    if results.runs:
        headline = prose.headline(results, models, pair, shown)
    else:
        headline = _headline_of_others(retrieval, answers)
    main = _main_tables(results, models, pair, shown)
    single = {
        f"model-{number}-{_slug(model)}": accuracy_table(results, model)
        for number, model in enumerate(results.models, 1)
    }
    of_retrieval = _numbered("retrieval", recall_tables(retrieval))
    of_answers = _numbered("answers", answers_tables(answers))
    tables = main | single | of_retrieval | of_answers
    page = render(
        "report.html",
        title=title,
        kicker=title,
        headline=headline,
        look=look,
        main_tables=list(main.values()),
        model_tables=list(single.values()),
        retrieval_tables=list(of_retrieval.values()),
        answers_tables=list(of_answers.values()),
        answered=answered,
        training=sections.training(runs, recipes),
        **_accuracy(results, models, pair, shown, look, examples, runs),
    )
    head = f"# {for_markdown(title)}\n\n{for_markdown(headline)}\n\n"
    return page, head + "\n".join(map(markdown, tables.values())), tables


def _headline_of_others(retrieval: Sequence[RetrievalCell], answers: Sequence[AnswerCell]) -> str:
    """The headline of a report without accuracies."""
    kinds = {"Image–text retrieval": retrieval, "Captions and answers": answers}
    named = {kind: ", ".join(dict.fromkeys(cell.model for cell in cells)) for kind, cells in kinds.items()}
    return " ".join(f"{kind} of {models}." for kind, models in named.items() if models)


def _numbered(name: str, tables: Sequence[Table]) -> dict[str, Table]:
    return {f"{name}-{number}": table for number, table in enumerate(tables, 1)}


def report_from_paths(paths: Sequence[Path], out: Path, *, seeds: bool = False) -> Path:
    """The report of result files (*.jsonl) and run folders.

    If there are exactly two models and one protocol, they are compared, the first as "before".

    Args:
        seeds: Whether several checkpoints of one name are training seeds of one method.

    Raises:
        ValueError: If a path is neither, if no path holds results, or if a file to replace in `out` is not a
            report's.
    """
    check_files(Path(out), sections.FILES)
    stores: list[Path] = []
    runs: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            is_run, has_results = (path / METRICS_FILE).is_file(), (path / RESULTS_FILE).is_file()
            if not is_run and not has_results:
                raise ValueError(
                    f"{path} is not a run folder: it holds neither {METRICS_FILE} nor {RESULTS_FILE}; {WHAT}"
                )
            if is_run:
                runs[for_terminal(str(path))] = path
            if has_results:
                stores.append(path / RESULTS_FILE)
        elif path.is_file():
            stores.append(path)
        else:
            raise ValueError(f"there is no {path}; {WHAT}")
    # A file named twice counts once, under its first name, beside which its images are looked for.
    once: dict[Path, Path] = {}
    for store in stores:
        once.setdefault(store.resolve(), store)
    found = {store: _read(store) for store in once.values()}
    every = [cell for some in found.values() for cell in some]
    cells = [cell for cell in every if isinstance(cell, Cell)]
    retrieval = [cell for cell in every if isinstance(cell, RetrievalCell)]
    answers = {store: [one for one in some if isinstance(one, AnswerCell)] for store, some in found.items()}
    if not cells and not retrieval and not any(answers.values()):
        raise ValueError(
            f"no results in {', '.join(map(str, paths)) or 'nothing'}; make some with "
            "`advflyp eval MODEL --out results.jsonl`"
        )
    # Model names after `Results` has split those that two checkpoints share.
    results = Results(cells, seeds=seeds)
    is_pair = len(results.models) == 2 and not results.mixes_protocols
    return write_report(
        out,
        title="advflyp report",
        cells=cells,
        pair=(results.models[0], results.models[1]) if is_pair else None,
        runs=runs,
        seeds=seeds,
        retrieval=retrieval,
        stores=list(found),
        answers=[_named(cell) for some in answers.values() for cell in some],
        answered=answer_examples(answers),
    )


def _headline_attack(results: Results, radii: Sequence[float | None]) -> Condition | None:
    for eps in radii:
        if eps is not None and (condition := results.strongest(eps)):
            return condition
    return results.strongest()


def _main_tables(
    results: Results, models: Sequence[str], pair: Pair, shown: Sequence[Condition]
) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    if results.mean_sets and len(results.sets) > 1:
        tables["means"] = models_table(results)
    if len(models) > 2:
        tables["methods"] = methods_table(results)
    if pair:
        tables["before-after"] = comparison_table(results, *pair, shown)
    if (sanity := sanity_table(results)) is not None:
        tables["sanity"] = sanity
    return tables


def _accuracy(
    results: Results,
    models: Sequence[str],
    pair: Pair,
    shown: Sequence[Condition],
    look: Look,
    examples: Sequence[Example],
    runs: Mapping[str, Path],
) -> dict[str, Any]:
    """The sections on accuracies; all empty if none were measured."""
    if not results.runs:
        names = ("tradeoffs", "set_by_set", "against_eps", "examples", "meaning", "made", "tiles", "scope")
        return dict.fromkeys(names, "")
    is_many = len(models) > 2 and len(shown) == 2
    names = (f"before: {pair[0]}", f"after: {pair[1]}") if pair else ("before", "after")
    return {
        "tiles": _tiles(results, models, pair, shown),
        "scope": prose.scope(results) + prose.seen(results),
        "tradeoffs": sections.tradeoffs(results, models, shown[0], shown[1], look) if is_many else None,
        "set_by_set": sections.set_by_set(results, models, shown, look),
        "against_eps": sections.against_eps(results, models, shown, look),
        "examples": sections.before_after(examples, names),
        "sets_table": prose.sets_table(results),
        "prompts_table": prose.prompts_table(results),
        "meaning": prose.meaning(results),
        "made": prose.made(results, runs),
    }


def _tiles(
    results: Results, models: Sequence[str], pair: Pair, shown: Sequence[Condition]
) -> list[dict[str, Any]]:
    """A large figure for each condition: a single model's accuracy, or a pair's two accuracies and their change."""
    tiles = []
    for condition in reversed(shown):
        name = "on clean images" if condition.norm is None else f"under {condition.title}"
        values = [value for model in models if (value := results.mean(model, condition))]
        change = results.change(*pair, condition) if pair else None
        explained = change or next(iter(values), None)
        kind = "standard deviation" if explained and explained.seeds > 1 else "95 % interval"
        below = f"{kind} {values[0].interval} %" if values else ""
        if change:
            below = f"{change.number} points" + (f" ({kind} {change.interval})" if change.interval else "")
        if change or len(models) == 1 == len(values):
            figures = [value.number for value in values[: 2 if change else 1]]
            tiles.append({"name": name, "figures": figures, "unit": " %", "below": below})
    return tiles


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:]


def _named(cell: C) -> C:
    """The cell with names that every part of a report can show: a figure cannot be drawn with a lone surrogate."""
    texts = {name: for_terminal(value) for name, value in vars(cell).items() if isinstance(value, str)}
    return replace(cell, **texts)


def _read(path: Path) -> Sequence[Cell | RetrievalCell | AnswerCell]:
    """Read a result file of any kind."""
    try:
        with open(path, encoding="utf-8") as file:
            # Its beginning says what the file holds; without a limit, a file of a single line would fill memory.
            first = file.readline(MAX_BEGINNING)
        if '"image_to_text"' in first:
            return [_named(cell) for cell in read_retrieval(path)]
        if '"samples_sha256"' in first:
            # Unchanged: the names of their answer files are derived from these values.
            return read_answer_cells(path)
        return [_named(cell) for cell in read_cells(path)]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a result file (*.jsonl)") from None
