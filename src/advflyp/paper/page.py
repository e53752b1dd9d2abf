"""The report of a whole comparison: every experiment of the plan with its tables, and the pictures of the methods."""

import math
from pathlib import Path

from advflyp.escape import for_html, for_markdown
from advflyp.files import check_files
from advflyp.model.load import load_model
from advflyp.paper.published import published_table
from advflyp.paper.study import Experiment, Study, read_study
from advflyp.report.figures.curves import against_pairs
from advflyp.report.figures.embedding import (
    FILE,
    Cloud,
    about_maps,
    cloud_plot,
    clouds,
    phi_plot,
    phi_table,
    read_clouds,
    write_clouds,
)
from advflyp.report.figures.examples import Example, examples
from advflyp.report.figures.plots import Look, svg
from advflyp.report.measure.grid import IN, OUT, means_table, methods_table, sanity_table, sides
from advflyp.report.measure.measured import Condition, Estimate, Results, competitors
from advflyp.report.measure.render import markdown
from advflyp.report.measure.tables import Table
from advflyp.report.pages import elements, prose, sections
from advflyp.wording import counted

FULL = "AdvFLYP_full"
TITLE = "The paper's experiments"


def paper_report(folder: Path, out: Path) -> Path:
    """Write `out`/index.html, results.md and tables/*.csv, *.tex from what `advflyp reproduce` left in `folder`.

    Where run folders with weights are there, the embeddings of Fig. 5 are computed once and stored in
    `folder`/embedding.json, and pictures show what the attack does before and after finetuning. Without weights the
    report is written from the results alone. Returns the path of index.html. ValueError where there is no plan, no
    results, or `out` cannot be written.
    """
    check_files(Path(out), sections.FILES)
    study = read_study(Path(folder))
    page = ComparisonPage(study, _clouds(study), _examples(study))
    sections.write(Path(out), page.files())
    return Path(out) / "index.html"


class ComparisonPage:
    """What the report says, section by section."""

    def __init__(self, study: Study, embedded: list[Cloud], pictures: list[Example]) -> None:
        self.study = study
        self.embedded = embedded
        self.pictures = pictures
        self.main = main_experiment(study)
        self.results = self.main.results(study)
        # Every method of the plan has one colour and shape throughout.
        self.labels = list(dict.fromkeys([*self.main.rows, *(r for e in study.experiments for r in e.rows)]))
        references = {label for experiment in study.experiments for label in experiment.unranked}
        self.look = Look.of(self.labels, references=references)
        # The plan's order is that of importance, in which they are run.
        self.experiments = sorted(study.experiments, key=lambda experiment: experiment.place)
        self.rows = [row for row in self.main.rows if self.results.hashes[row]]
        robust = _headline_attack(self.results)
        self.shown = [c for c in (self.results.clean, robust) if c]
        self.tables = self._tables()

    def files(self) -> dict[str, str]:
        """Every file of the report by its name."""
        return {
            "results.md": self.markdown(),
            **sections.table_files(self.tables),
            "index.html": self.html(),
        }

    def markdown(self) -> str:
        """All tables, under the headings of their experiments."""
        parts = [f"# {TITLE}\n", for_markdown(self.headline()) + "\n"]
        for experiment in self.experiments:
            parts.append(f"## {for_markdown(experiment.title)}\n")
            parts += [for_markdown(note) + "\n" for note in self._notes(experiment)]
            own = [table for name, table in self.tables.items() if name in self._own(experiment)]
            parts += [markdown(table) for table in own] or ["No results yet.\n"]
        rest = {name for e in self.experiments for name in self._own(e)}
        parts += [markdown(table) for name, table in self.tables.items() if name not in rest]
        return "\n".join(parts)

    def html(self) -> str:
        """The whole page."""
        results, rows, shown = self.results, self.rows, self.shown
        glance = ""
        if len(shown) == 2:
            glance = sections.tradeoffs(results, rows, shown[0], shown[1], self.look, self.main.unranked)
        by_eps = self._all_radii()
        names = ("original", FULL)
        order = {label: place for place, label in enumerate(self.labels)}
        kept = sorted(
            (run for run in self.study.runs if run.folder is not None),
            key=lambda run: (order.get(run.label, len(order)), run.seed),
        )
        run_folders = {f"{run.label}, seed {run.seed}": run.folder for run in kept if run.folder is not None}
        recipes = {f"{run.label}, seed {run.seed}": run.recipe for run in kept}
        everything = Results(self.study.cells, seeds=True)
        return sections.document(
            TITLE,
            self.headline(),
            [
                self._head(),
                sections.section("Robust and accurate", glance),
                sections.section("Set by set", sections.set_by_set(results, rows, shown, self._drawn())),
                sections.section(
                    "The stronger the attack", sections.against_eps(by_eps, rows, shown, self._drawn())
                ),
                self._published(),
                *map(self._experiment, self.experiments),
                sections.section("What it looks like", sections.before_after(self.pictures, names)),
                self._sanity(),
                sections.section("Training", sections.training(run_folders, recipes, folded=True)),
                sections.section("The sets", elements.table(prose.sets_table(everything), words=True)),
                sections.section("What the numbers mean", prose.meaning(everything)),
                sections.section("How it was made", prose.made(everything, run_folders)),
            ],
        )

    def headline(self) -> str:
        """Which method leads under the main experiment's attack, and on which kind of sets."""
        if not self.shown:
            return "There are no results of the main experiment yet."
        condition = self.shown[-1]
        found = {name: self._leader(condition, sets) for name, sets in self._parts().items()}
        leaders = {name: who for name, who in found.items() if who}
        if "" not in leaders:
            return f"{counted(len(self.rows), 'method')}; no mean over all sets yet."
        label, value = leaders[""]
        where = "without attack" if condition.norm is None else f"under {condition.title}"
        methods = [row for row in self.rows if row not in self.main.unranked]
        text = f"Of {len(methods)} methods {label} has the highest accuracy {where}: {value.number} %"
        if IN in leaders and OUT in leaders:
            one, two = leaders[IN], leaders[OUT]
            text += (
                f"; on the sets in the proxy it is {one[0]} ({one[1].number} %), "
                f"on those out of it {two[0]} ({two[1].number} %)"
            )
        return text + "."

    def _parts(self) -> dict[str, list[str]]:
        return {"": self.main.sets, **sides(self.main.sets)}

    def _leader(self, condition: Condition, sets: list[str]) -> tuple[str, Estimate] | None:
        known = {
            row: value
            for row in self.rows
            if row not in self.main.unranked and (value := self.results.mean(row, condition, sets))
        }
        ranked = competitors(known)
        if not ranked:
            return None
        best = max(ranked.values(), key=lambda value: value.value)
        # Figures that print alike share the lead, as in the tables.
        return " and ".join(row for row, value in ranked.items() if value.number == best.number), best

    def _drawn(self) -> Look:
        return self.look.of_some(self.rows)

    def _head(self) -> str:
        tiles = []
        for condition in reversed(self.shown):
            for side, sets in self._parts().items():
                leader = self._leader(condition, sets)
                if leader:
                    where = "clean" if condition.norm is None else condition.title
                    name = f"{where}, {side or 'all sets'}"
                    spread = leader[1].interval
                    tiles.append(sections.tile(name, leader[1].number, f"best: {leader[0]}, {spread}"))
        count = len(self.study.cells)
        seeds = {len(self.results.hashes[row]) for row in self.rows if row not in self.main.unranked}
        trained = (
            f", {' to '.join(map(str, _ends(seeds)))} {'seed' if seeds == {1} else 'seeds'} a method"
            if seeds
            else ""
        )
        names = {self.study.planned.get(row, {}).get("overrides", {}).get("model.name") for row in self.rows}
        started = f", all begun from {names.pop()}" if len(names) == 1 and None not in names else ""
        scope = (
            f"{counted(len(self.experiments), 'experiment')}, {counted(count, 'result')}. The main one: "
            f"{self.main.title}{trained}{started}."
            + (" The figures above are the best method's mean over sets." if tiles else "")
        )
        return (
            f'<header>\n<p class="kicker">{TITLE}, {for_html(self.study.scale)} scale</p>\n'
            f"<h1>{for_html(self.headline())}</h1>\n"
            f'<div class="tiles many">{"".join(tiles)}</div>\n{elements.key(self._drawn())}\n'
            f'<p class="note">{for_html(scope)}</p>\n</header>'
        )

    def _all_radii(self) -> Results:
        """The main experiment's methods and sets under all attacks and radii that any experiment has."""
        rows, sets = set(self.rows), set(self.main.sets)
        cells = [cell for cell in self.study.cells if cell.model in rows and cell.set in sets]
        return Results(cells, seeds=True, models=self.rows)

    def _tables(self) -> dict[str, Table]:
        tables: dict[str, Table] = {}
        for experiment in self.experiments:
            results = experiment.results(self.study)
            if not results.cells:
                continue
            conditions = experiment.conditions(self.study.cells)
            full, means = _names(experiment)
            if len(experiment.sets) > 1:
                tables[means] = experiment_means(self.study, experiment)
            tables[full] = methods_table(
                results,
                conditions,
                sets=experiment.sets,
                title=f"{experiment.title}: zero-shot accuracy in %",
                unranked=experiment.unranked,
            )
            if experiment.kind == "figure5" and self.embedded:
                tables[f"{full}-phi"] = phi_table(self.embedded, title=f"{experiment.title}: φ")
        if self.study.scale == "paper":
            tables["published"] = published_table(self.study.cells, self.main.sets, self.embedded)
        sanity = sanity_table(Results(self.study.cells, seeds=True))
        if sanity is not None:
            tables["sanity"] = sanity
        return tables

    def _experiment(self, experiment: Experiment) -> str:
        full, means = _names(experiment)
        note = "".join(f"<p>{for_html(text)}</p>" for text in self._notes(experiment))
        body = ""
        if experiment.kind == "figure3":
            body += self._against_pairs(experiment)
        if experiment.kind == "figure5":
            body += self._embedding()
        if means in self.tables:
            body += elements.table(self.tables[means])
        if full in self.tables:
            table = self.tables[full]
            is_open = means not in self.tables or experiment.kind in ("table1", "table2")
            body += sections.fold("Every set", elements.table(table), is_open=is_open)
        return sections.section(for_html(experiment.title), note + (body or "<p>No results yet.</p>"))

    def _against_pairs(self, experiment: Experiment) -> str:
        results = experiment.results(self.study)
        data = {row: self.study.data_of(row) for row in experiment.rows}
        known = {row: table for row, table in data.items() if "batch_size" in table}
        pictures = []
        for condition in results.conditions:
            lines: dict[int, list[tuple[float, Estimate]]] = {}
            for row, table in known.items():
                value = results.drawn(results.mean(row, condition, experiment.sets))
                if value is not None:
                    pairs = float(table.get("limit") or math.inf)
                    lines.setdefault(int(table["batch_size"]), []).append((pairs, value))
            if lines:
                title = "clean images" if condition.norm is None else condition.title
                found = {batch: sorted(lines[batch], key=lambda p: p[0]) for batch in sorted(lines)}
                drawn = against_pairs(found, width=420, height=300, title=title)
                pictures.append(svg(drawn, f"accuracy against the number of image–text pairs, {title}"))
        if not pictures:
            return ""
        note = (
            '<p class="note">Mean over sets against the number of image–text pairs, a line for each batch size '
            f"({sections.spread_words(results)}).</p>"
        )
        return elements.grid(pictures, kind="pairs") + note

    def _embedding(self) -> str:
        if not self.embedded:
            return ""
        largest = max(angle for cloud in self.embedded for angle in cloud.phi)
        plots = [
            svg(
                cloud_plot(cloud, width=300, height=320, largest=largest),
                f"t-SNE of {cloud.label}, φ = {cloud.mean_phi:.4f} rad",
            )
            for cloud in self.embedded
        ]
        angles = elements.picture(
            lambda width: phi_plot(self.embedded, self.look, width=width),
            "φ of every picture, by model",
            widths=sections.WIDTHS,
        )
        return (
            angles
            + elements.table(phi_table(self.embedded, title=""))
            + elements.grid(plots, kind="roomy")
            + f'<p class="note">{for_html(about_maps(self.embedded))}</p>'
        )

    def _notes(self, experiment: Experiment) -> list[str]:
        return [note for note in (experiment.note, experiment.seeds_note(self.study)) if note]

    @staticmethod
    def _own(experiment: Experiment) -> list[str]:
        full, means = _names(experiment)
        return [f"{full}-phi", means, full]

    def _published(self) -> str:
        table = self.tables.get("published")
        return sections.section(table.title, elements.table(table)) if table else ""

    def _sanity(self) -> str:
        table = self.tables.get("sanity")
        if table is None:
            return ""
        body = elements.table(table, words=True) if table.rows else f"<p>{for_html(table.note)}</p>"
        return sections.section(table.title, body)


def experiment_means(study: Study, experiment: Experiment) -> Table:
    """Its means over sets: a row for each method, a column for each attack at each ε."""
    return means_table(
        experiment.results(study),
        experiment.conditions(study.cells),
        sets=experiment.sets,
        title=f"{experiment.title}: means over sets in %",
        unranked=experiment.unranked,
    )


def main_experiment(study: Study) -> Experiment:
    """Table 1 with the clean accuracies of Table 2, or the first experiment under attack of two methods or more."""
    ranked = [e for e in study.experiments if len(e.rows) > 1 and e.kind != "figure3"] or study.experiments
    attacked = [e for e in ranked if any(attack != "clean" for attack in e.attacks)] or ranked
    if not attacked:
        raise ValueError(f"the plan in {study.folder} has no experiments")
    first = next((e for e in attacked if e.kind == "table1"), attacked[0])
    attacks = list(dict.fromkeys(["clean", *first.attacks]))
    return Experiment(**{**vars(first), "attacks": attacks})


def _headline_attack(results: Results) -> Condition | None:
    """PGD-10 where it was measured, as in the paper's figures; else the strongest attack."""
    pgd = [c for c in results.attacked if c.attack == "pgd10"]
    return min(pgd, key=lambda c: c.eps) if pgd else results.strongest()


def _names(experiment: Experiment) -> tuple[str, str]:
    """What the files of its tables are called."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in experiment.id).strip(
        "."
    )
    return name, f"{name}-means"


def _clouds(study: Study) -> list[Cloud]:
    """Those of Fig. 5: what is stored of these weights, else made from the weights, if all are there."""
    experiment = next((e for e in study.experiments if e.kind == "figure5"), None)
    if experiment is None:
        return []
    measured = {(cell.model, cell.checkpoint_sha256) for cell in study.cells}
    stored = read_clouds(study.folder / FILE)
    if stored and all((cloud.label, cloud.checkpoint_sha256) in measured for cloud in stored):
        return stored
    models = {label: study.model_of(label) for label in experiment.rows}
    known = {label: model for label, model in models.items() if model is not None}
    if len(known) < len(models):
        return []
    found = clouds(known, experiment.sets, eps=min(experiment.eps, default=1 / 255))
    write_clouds(study.folder / FILE, found)
    return found


def _examples(study: Study) -> list[Example]:
    """Before and after AdvFLYP_full, where its weights are there."""
    main = main_experiment(study)
    run = study.run_of(FULL)
    if run is None or run.folder is None:
        return []
    return examples(
        load_model(run.original), load_model(run.folder), main.sets, eps=min(main.eps, default=1 / 255)
    )


def _ends(values: set[int]) -> list[int]:
    return sorted({min(values), max(values)})
