"""The report of a whole comparison: every experiment of the plan with its tables, and the figures of the methods."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from advflyp.data.sets.labelled import set_names
from advflyp.escape import for_markdown
from advflyp.model.load import load_model
from advflyp.paper.efficiency import BASELINES, against_cost_points, efficiency_table
from advflyp.paper.proxies import tables as proxies
from advflyp.paper.proxies.coverage import FILE as COVERAGE_FILE
from advflyp.paper.proxies.coverage import Coverage, add_coverage
from advflyp.paper.proxies.numbers import Numbers, by_run
from advflyp.paper.proxies.plan import CELLS, LABELLED, PROXIES
from advflyp.paper.published import published_table
from advflyp.paper.study import Exhibit, Study, main_experiment, read_study
from advflyp.report.figures.embedding import (
    ABOUT_MAPS,
    FILE,
    TSNEResult,
    embed,
    phi_plot,
    phi_table,
    read_tsne,
    tsne_plot,
    write_tsne,
)
from advflyp.report.figures.examples import Example, examples
from advflyp.report.figures.number import against_number
from advflyp.report.figures.plots import Look, svg
from advflyp.report.figures.tradeoff import against_cost
from advflyp.report.measure.estimates import Condition, Estimate, competitors
from advflyp.report.measure.grid import IN, OUT, means_table, methods_table, sanity_table, sides
from advflyp.report.measure.render import markdown
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table
from advflyp.report.pages import prose, sections
from advflyp.report.pages.jinja import render
from advflyp.wording import counted
from advflyp.written import check_files

FULL = "AdvFLYP_full"
TITLE = "The paper's experiments"


def paper_report(folder: Path, out: Path) -> Path:
    """Write `out`/index.html, results.md and tables/*.csv, *.tex from what `advflyp reproduce` left in `folder`.

    If run folders with weights are present, the embeddings of Fig. 5 are computed once and stored in
    `folder`/embedding.json, and example images show the attack before and after finetuning. Without weights the
    report is written from the results alone.

    Returns:
        The path of index.html.

    Raises:
        ValueError: If there is no plan, there are no results, or `out` cannot be written.
    """
    check_files(Path(out), sections.FILES)
    page = ComparisonPage(read_study(Path(folder)))
    return sections.write_report_files(Path(out), page.tables, html=page.html(), markdown=page.markdown())


class ComparisonPage:
    """The content of the report."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.embedded = _tsne(study)
        self.main = main_experiment(study)
        self.examples = _examples(study, self.main)
        self.results = self.main.results(study)
        # Every method of the plan has one colour and shape throughout.
        self.labels = list(dict.fromkeys([*self.main.rows, *(r for e in study.experiments for r in e.rows)]))
        references = {label for experiment in study.experiments for label in experiment.unranked}
        self.look = Look.of(self.labels, references=references)
        # Experiments run in the plan's order, by importance; the report follows the paper's.
        planned = sorted(study.experiments, key=lambda experiment: experiment.place)
        self.rows = [row for row in self.main.rows if self.results.hashes[row]]
        self.ranked = [row for row in self.rows if row not in self.main.unranked]
        self.numbers = next(
            (Numbers.of(study, e, _coverage(study, e)) for e in study.experiments if e.id == PROXIES), None
        )
        self.shown = [c for c in (self.results.clean, _headline_attack(self.results)) if c]
        self.experiments = [e for e in planned if e.cells(study)]
        missing = [e.title for e in planned if e not in self.experiments]
        self.missing = f"No results yet: {'; '.join(missing)}." if missing else ""
        self.tables_of = {experiment.id: self._tables_of(experiment) for experiment in self.experiments}
        self.others = self._others()

    @property
    def tables(self) -> dict[str, Table]:
        """All tables, by the names of their files."""
        of_experiments = {
            _file_name(id) + end: table for id, own in self.tables_of.items() for end, table in own.items()
        }
        return of_experiments | self.others

    def markdown(self) -> str:
        """All tables, under the headings of their experiments."""
        parts = [f"# {TITLE}\n", for_markdown(self.headline()) + "\n"]
        for experiment in self.experiments:
            parts.append(f"## {for_markdown(experiment.title)}\n")
            parts += [for_markdown(note) + "\n" for note in self._notes(experiment)]
            parts += map(markdown, self.tables_of[experiment.id].values())
        parts += [for_markdown(self.missing) + "\n"] if self.missing else []
        return "\n".join([*parts, *map(markdown, self.others.values())])

    def html(self) -> str:
        """The whole page."""
        results, rows, shown = self.results, self.rows, self.shown
        look = self.look.of_some(rows)
        order = {label: place for place, label in enumerate(self.labels)}
        kept = sorted(self.study.runs, key=lambda run: (order.get(run.label, len(order)), run.seed))
        folders = {f"{run.label}, seed {run.seed}": run.folder for run in kept}
        recipes = {f"{run.label}, seed {run.seed}": run.recipe for run in kept}
        everything = Results(self.study.cells, seeds=True, largest=True)
        # The main experiment's methods and sets, under every attack and radius of any experiment.
        radii = sorted({c.eps for c in self.study.cells if c.norm})
        attacks = list(dict.fromkeys(c.attack for c in self.study.cells))
        every_radius = replace(self.main, rows=rows, attacks=attacks, eps=radii).results(self.study)
        trade = None
        if len(shown) == 2:
            trade = sections.tradeoffs(results, rows, shown[0], shown[1], self.look, self.main.unranked)
        tiles = self._tiles()
        return render(
            "comparison.html",
            title=TITLE,
            kicker=f"{TITLE}, {self.study.scale} scale",
            headline=self.headline(),
            tiles=tiles,
            look=look,
            scope=self._scope()
            + (" The figures above are the best method's mean over sets." if tiles else ""),
            tradeoffs=trade,
            set_by_set=sections.set_by_set(results, rows, shown, look) if rows else None,
            against_eps=sections.against_eps(every_radius, rows, shown, look) if rows else None,
            published=self.others.get("published"),
            experiments=list(map(self._experiment, self.experiments)),
            missing=self.missing,
            examples=sections.before_after(self.examples, ("original", FULL)),
            sanity=self.others.get("sanity"),
            training=sections.training(folders, recipes),
            sets_table=prose.sets_table(everything),
            meaning=prose.meaning(everything),
            made=prose.made(everything, folders),
        )

    def headline(self) -> str:
        """Which method leads under the main experiment's attack, also by kind of set; or the verdicts on proxies."""
        if not self.ranked and self.numbers and self.numbers.sets:
            return proxies.summary(self.numbers)
        if not self.shown:
            return "There are no results of the main experiment yet."
        condition = self.shown[-1]
        found = {name: self._leader(condition, sets) for name, sets in self._parts().items()}
        leaders = {name: who for name, who in found.items() if who}
        if "" not in leaders:
            return f"{counted(len(self.rows), 'method')}; no mean over all sets yet."
        label, value, ranked = leaders[""]
        where = "without attack" if condition.norm is None else f"under {condition.title}"
        text = f"Of {counted(ranked, 'method')} {label} has the highest accuracy {where}: {value.number} %"
        if IN in leaders and OUT in leaders:
            one, two = leaders[IN], leaders[OUT]
            text += (
                f"; on the sets in the proxy it is {one[0]} ({one[1].number} %), "
                f"on those out of it {two[0]} ({two[1].number} %)"
            )
        alone = replace(self.main, attacks=[condition.attack], eps=[condition.eps])
        return f"{text}. {alone.seeds_note(self.study)}".rstrip()

    def _parts(self) -> dict[str, list[str]]:
        return {"": self.main.sets, **sides(self.main.sets)}

    def _leader(self, condition: Condition, sets: list[str]) -> tuple[str, Estimate, int] | None:
        """The best method or methods, their mean, and how many were ranked."""
        known = {row: value for row in self.ranked if (value := self.results.mean(row, condition, sets))}
        if not known:
            return None
        ranked = competitors(known)
        best = max(ranked.values(), key=lambda value: value.value)
        # Figures that print alike share the lead, as in the tables.
        leading = [row for row, value in ranked.items() if value.number == best.number]
        return " and ".join(leading), best, len(ranked)

    def _tiles(self) -> list[dict[str, Any]]:
        tiles = []
        for condition in reversed(self.shown):
            where = "clean" if condition.norm is None else condition.title
            for side, sets in self._parts().items():
                if leader := self._leader(condition, sets):
                    label, value, _ = leader
                    name, below = f"{where}, {side or 'all sets'}", f"best: {label}, {value.interval}"
                    tiles.append({"name": name, "figures": [value.number], "unit": " %", "below": below})
        return tiles

    def _scope(self) -> str:
        """The scope of the page: how many experiments and seeds, and which model the trainings started from."""
        counts = {len(self.results.hashes[row]) for row in self.ranked}
        ends = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""
        trained = f", {ends} {'seed' if ends == '1' else 'seeds'} a method" if counts else ""
        names = {self.study.planned.get(row, {}).get("overrides", {}).get("model.name") for row in self.rows}
        started = f", all begun from {names.pop()}" if len(names) == 1 and None not in names else ""
        experiments, count = counted(len(self.experiments), "experiment"), len(self.study.cells)
        return (
            f"{experiments}, {counted(count, 'result')}. The main one: {self.main.title}{trained}{started}."
        )

    def _tables_of(self, experiment: Exhibit) -> dict[str, Table]:
        """The tables of an experiment, by the ends of their files' names; the whole one has none."""
        tables: dict[str, Table] = {}
        if BASELINES.get(experiment.id) in experiment.rows:
            tables["-levers"] = efficiency_table(self.study, experiment)
        if experiment.id == PROXIES and self.numbers:
            own = proxies.tables(self.numbers, experiment.sets)
            tables |= {f"-{end}": table for end, table in own.items()}
        elif len(experiment.sets) > 1:
            tables["-means"] = experiment_means(self.study, experiment)
        tables[""] = methods_table(
            experiment.results(self.study),
            experiment.conditions(self.study.cells),
            sets=experiment.sets,
            title=f"{experiment.title}: zero-shot accuracy in %",
            unranked=experiment.unranked,
        )
        if experiment.id == "figure5" and self.embedded:
            tables["-phi"] = phi_table(self.embedded, title=f"{experiment.title}: φ")
        return tables

    def _others(self) -> dict[str, Table]:
        """Tables that belong to no experiment."""
        tables: dict[str, Table] = {}
        if self.study.scale == "paper":
            tables["published"] = published_table(self.study.cells, set_names(["paper"]), self.embedded)
        if (sanity := sanity_table(Results(self.study.cells, seeds=True, largest=True))) is not None:
            tables["sanity"] = sanity
        return tables

    def _experiment(self, experiment: Exhibit) -> dict[str, Any]:
        tables = self.tables_of[experiment.id]
        of_proxies = self._of_proxies(tables) if experiment.id == PROXIES else None
        return {
            "title": experiment.title,
            "notes": self._notes(experiment),
            "spread": sections.spread_words(experiment.results(self.study)),
            "against_pairs": self._against_pairs(experiment) if experiment.id == "figure3" else None,
            "embedding": self._embedding() if experiment.id == "figure5" and self.embedded else None,
            "against_cost": self._against_cost(experiment) if experiment.id in BASELINES else None,
            "levers": tables.get("-levers"),
            "means": tables.get("-means"),
            "full": tables[""],
            "of_proxies": of_proxies,
            "is_open": not of_proxies and ("-means" not in tables or experiment.id in ("table1", "table2")),
        }

    def _of_proxies(self, tables: dict[str, Table]) -> dict[str, Any]:
        assert self.numbers is not None
        return {
            "tables": {end.removeprefix("-"): table for end, table in tables.items()},
            "summary": proxies.summary(self.numbers),
            "figures": proxies.figures(self.numbers),
        }

    def _against_pairs(self, experiment: Exhibit) -> list[Markup]:
        """A figure for each attack: a line for each batch size."""
        results = experiment.results(self.study)
        data = {row: self.study.data_of(row) for row in experiment.rows}
        known = {row: table for row, table in data.items() if "batch_size" in table}
        plots = []
        for condition in results.conditions:
            lines: dict[int, list[tuple[float, Estimate]]] = {}
            for row, table in known.items():
                value = results.drawn(results.mean(row, condition, experiment.sets))
                if value is not None:
                    pairs = float(table.get("limit") or math.inf)
                    lines.setdefault(int(table["batch_size"]), []).append((pairs, value))
            if lines:
                title = "clean images" if condition.norm is None else condition.title
                found = {f"batch {b:,}": sorted(lines[b], key=lambda p: p[0]) for b in sorted(lines)}
                look = Look.of(list(found))
                figure = against_number(found, look, what="image–text pairs", title=title, named=True)
                plots.append(svg(figure, f"accuracy against the number of image–text pairs, {title}"))
        return plots

    def _against_cost(self, experiment: Exhibit) -> sections.Drawing | None:
        points = against_cost_points(self.study, experiment)
        if not points:
            return None
        baseline = BASELINES[experiment.id]
        # "one step", "fast": there is no room for more beside a point.
        short = {row: row.removeprefix(f"{baseline}, ").removeprefix("AdvFLYP_") for row in points}
        look = replace(self.look.of_some(list(points)), names=short)
        return sections.drawing(
            lambda width: against_cost(points, look, width=width),
            "robust accuracy against the arithmetic of the finetuning",
        )

    def _embedding(self) -> dict[str, Any]:
        largest = max(angle for one in self.embedded for angle in one.phi)
        return {
            "angles": sections.drawing(
                lambda width: phi_plot(self.embedded, self.look, width=width), "φ of every image, by model"
            ),
            "table": phi_table(self.embedded, title=""),
            "maps": [
                svg(
                    tsne_plot(one, width=300, height=320, largest=largest),
                    f"t-SNE of {one.label}, φ = {one.mean_phi:.4f} rad",
                )
                for one in self.embedded
            ],
            "note": ABOUT_MAPS,
        }

    def _notes(self, experiment: Exhibit) -> list[str]:
        return [note for note in (experiment.note, experiment.seeds_note(self.study)) if note]


def experiment_means(study: Study, experiment: Exhibit) -> Table:
    """An experiment's means over sets: a row for each method, a column for each attack at each ε."""
    return means_table(
        experiment.results(study),
        experiment.conditions(study.cells),
        sets=experiment.sets,
        title=f"{experiment.title}: means over sets in %",
        unranked=experiment.unranked,
    )


def _headline_attack(results: Results) -> Condition | None:
    """PGD-10 if it was measured, as in the paper's figures; else the strongest attack."""
    pgd = [c for c in results.attacked if c.attack == "pgd10"]
    return min(pgd, key=lambda c: c.eps) if pgd else results.strongest()


def _file_name(id: str) -> str:
    """The name of an experiment's table, without its suffix."""
    letters = (letter if letter.isalnum() or letter in "-_." else "-" for letter in id)
    return "".join(letters).strip(".")


def _tsne(study: Study) -> list[TSNEResult]:
    """The embeddings of Fig. 5: as stored for these weights, else computed from them if all are present."""
    experiment = next((e for e in study.experiments if e.id == "figure5"), None)
    if experiment is None:
        return []
    measured = {(cell.model, cell.checkpoint_sha256) for cell in study.cells}
    stored = read_tsne(study.folder / FILE)
    if stored and all((one.label, one.checkpoint_sha256) in measured for one in stored):
        return stored
    models = {label: study.model_of(label) for label in experiment.rows}
    known = {label: model for label, model in models.items() if model is not None}
    if len(known) < len(models):
        return []
    found = embed(known, experiment.sets, eps=min(experiment.eps, default=1 / 255))
    write_tsne(study.folder / FILE, found)
    return found


def _coverage(study: Study, experiment: Exhibit) -> list[Coverage]:
    """The coverage for the experiment `proxies`: what is stored, and what can be added on this machine."""
    original = study.model_of(experiment.unranked[0]) if experiment.unranked else None
    if original is None:
        return []
    measured = by_run(study, experiment)
    trained = {
        (cell, seed) for cell in CELLS for name in LABELLED for seed in measured.get(cell.run(name), {})
    }
    order = sorted(trained, key=lambda one: (CELLS.index(one[0]), one[1]))
    sets = [name for name in experiment.sets if any(cell.set == name for cell in study.cells)]
    return add_coverage(study.folder / COVERAGE_FILE, str(original), order, sets)


def _examples(study: Study, main: Exhibit) -> list[Example]:
    """Images before and after AdvFLYP_full; none without its weights."""
    run = study.run_of(FULL)
    if run is None:
        return []
    original = load_model(run.recipe.get("model", {}).get("name", "mini"))
    return examples(original, load_model(run.folder), main.sets, eps=min(main.eps, default=1 / 255))
