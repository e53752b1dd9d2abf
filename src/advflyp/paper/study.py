"""Reading the folder of a whole comparison: its plan, the results of every run, the runs themselves.

plan.json                 experiments: id, title, rows (labels of methods), unranked, sets, attacks, eps, note;
                          runs: name, label, recipe (null if nothing is trained), overrides of its keys
results/NAME-sSEED.jsonl  result cells of one run; `model` is the method's label, the same for every seed
runs/NAME-sSEED/          that run's folder, if it was kept
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from advflyp.config import convert, fill
from advflyp.data.sets.labelled import set_names
from advflyp.documents import read_json_object
from advflyp.evaluation.results import Cell, read_cells
from advflyp.model.folder import BEST
from advflyp.paper.plan import PLAN_FILE
from advflyp.paper.proxies.plan import PROXIES
from advflyp.plugins import is_import_path
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.results import Results
from advflyp.report.measure.runs import read_recipe_tree

RESULTS, RUNS = "results", "runs"


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One table or figure of the plan.

    Attributes:
        rows: Labels of the methods, in their order.
        sets: Names of sets, groups resolved.
        attacks: Names of attacks; each but "clean" is shown at each radius.
        eps: Radii in pixels of [0, 1].
        unranked: Labels shown as references, which are not ranked as best or second best.
    """

    id: str
    title: str
    rows: list[str]
    sets: list[str]
    attacks: list[str]
    eps: list[float]
    note: str = ""
    unranked: list[str] = field(default_factory=list)

    def conditions(self, cells: Iterable[Cell]) -> list[Condition]:
        """The conditions that the plan asks for, clean first; ε as in the cells, which may differ by rounding."""
        measured = {Condition.of(cell) for cell in cells if cell.norm is not None}
        found = [Condition("clean", None, 0.0)] if "clean" in self.attacks else []
        for attack in self.attacks:
            for eps in self.eps if attack != "clean" else []:
                near = [m for m in measured if m.attack == attack and math.isclose(m.eps, eps, rel_tol=1e-4)]
                found.append(min(near, key=str, default=Condition(attack, "linf", eps)))
        return found

    @property
    def place(self) -> tuple[int, int]:
        """Sort key for readers: tables by number, then figures, then everything else."""
        match = re.fullmatch(r"(table|figure)(\d+)(-.*)?", self.id)
        return (("table", "figure").index(match[1]), int(match[2])) if match else (2, 0)

    def results(self, study: "Study") -> Results:
        """Its own cells, the seeds of a method together; only seeds that all trained methods have.

        Otherwise a mean of three trainings would be compared with a single one. The originals are not trained. Methods
        that share no seed keep their own, as `seeds_note` says.
        """
        cells = self.cells(study)
        common = self._common_seeds(cells, study)
        kept = [
            cell
            for cell in cells
            if self._is_untrained(cell.model, study)
            or not (seeds := common[Condition.of(cell)])
            or study.seed_of[cell.checkpoint_sha256] in seeds
        ]
        # In the plan's order, not in that of the files.
        kept.sort(key=lambda cell: (self.rows.index(cell.model), self.sets.index(cell.set)))
        return Results(kept, seeds=True, largest=True, models=self.rows)

    def seeds_note(self, study: "Study") -> str:
        """A note on the seeds that the table uses, if its methods differ in them; else empty."""
        trained = [cell for cell in self.cells(study) if not self._is_untrained(cell.model, study)]
        common = self._common_seeds(self.cells(study), study)
        # Conditions that use the same seeds share a note.
        groups: dict[frozenset[int], list[Condition]] = {}
        for condition in self.conditions(study.cells):
            if condition in common:
                groups.setdefault(frozenset(common[condition]), []).append(condition)
        notes = []
        for seeds, conditions in groups.items():
            of = f"{'; '.join(c.title for c in conditions)}: " if len(groups) > 1 else ""
            measured = {study.seed_of[c.checkpoint_sha256] for c in trained if Condition.of(c) in conditions}
            if not seeds:
                notes.append(
                    f"{of}No seed is common to all of these methods: each mean is over the method's own seeds."
                )
            elif measured > seeds:
                listed = ", ".join(map(str, sorted(seeds)))
                named = f"seed {listed}" if len(seeds) == 1 else f"seeds {listed}"
                notes.append(f"{of}Only {named}, which all of these methods have; some have more.")
        return " ".join(notes)

    def cells(self, study: "Study") -> list[Cell]:
        """The cells that were measured for it."""
        wanted = self.conditions(study.cells)
        rows, sets = set(self.rows), set(self.sets)
        return [
            cell
            for cell in study.cells
            if cell.model in rows and cell.set in sets and Condition.of(cell) in wanted
        ]

    def _common_seeds(self, cells: Sequence[Cell], study: "Study") -> dict[Condition, set[int]]:
        """For each condition, the seeds that all trained methods have; empty if they share none.

        A method has a seed if it has every set that has any result there: to means an interrupted evaluation adds
        nothing. A method without any such seed has no mean, and does not keep the others from theirs.
        """
        sets: dict[Condition, set[str]] = {}
        found: dict[Condition, dict[str, dict[int, set[str]]]] = {}
        for cell in cells:
            condition = Condition.of(cell)
            sets.setdefault(condition, set()).add(cell.set)
            if not self._is_untrained(cell.model, study):
                seeds = found.setdefault(condition, {}).setdefault(cell.model, {})
                seeds.setdefault(study.seed_of[cell.checkpoint_sha256], set()).add(cell.set)
        common = {}
        for condition, by_row in found.items():
            whole = [
                {seed for seed, names in seeds.items() if names == sets[condition]}
                for seeds in by_row.values()
            ]
            # If nothing is whole, no method has a mean, and results are compared set by set.
            common[condition] = set.intersection(
                *(list(filter(None, whole)) or [set(seeds) for seeds in by_row.values()])
            )
        return common

    def _is_untrained(self, label: str, study: "Study") -> bool:
        planned = study.planned.get(label, {})
        return label in self.unranked or (bool(planned) and not planned.get("recipe"))


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one method, whose folder was kept."""

    label: str
    seed: int
    folder: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison: what was planned and what is there.

    Attributes:
        scale: "mini" or "paper", as the plan says.
        planned: The plan's runs, by label: {"recipe": file or None, "overrides": {"table.key": value}}.
        seed_of: The training seed of each checkpoint, by the hash of its weights.
    """

    folder: Path
    scale: str
    planned: dict[str, dict[str, Any]]
    experiments: list[Exhibit]
    cells: list[Cell]
    runs: list[SeedRun]
    seed_of: dict[str, int]

    def run_of(self, label: str) -> SeedRun | None:
        """The run of a method with the lowest seed of those whose folder has weights."""
        runs = [run for run in self.runs if run.label == label and (run.folder / BEST).is_dir()]
        return min(runs, key=lambda run: run.seed, default=None)

    def model_of(self, label: str) -> str | Path | None:
        """What `load_model` takes for a row: an untrained model's name, or a run folder with weights; else None."""
        planned = self.planned.get(label, {})
        if planned and not planned.get("recipe"):
            return str(planned.get("overrides", {}).get("model.name", label))
        run = self.run_of(label)
        return run.folder if run else None

    def data_of(self, label: str) -> dict[str, Any]:
        """The `data` table of a method's recipe, as far as plan and run folder tell."""
        recipe = next((run.recipe for run in self.runs if run.label == label and run.recipe), {})
        overrides = self.planned.get(label, {}).get("overrides", {})
        own = {
            key.removeprefix("data."): value for key, value in overrides.items() if key.startswith("data.")
        }
        return {**recipe.get("data", {}), **own}


def read_study(folder: Path) -> Study:
    """Read everything in the folder but weights; a ValueError says what is missing or broken."""
    path = folder / PLAN_FILE
    try:
        plan = read_json_object(path)
        listed = convert(plan["experiments"], list[dict[str, Any]], "experiments")
        experiments = [_experiment(entry) for entry in listed]
        planned = _planned(plan.get("runs", []))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; name the folder that `advflyp reproduce` wrote") from None
    except KeyError as missing:
        raise ValueError(f"{path} is not a plan of `advflyp reproduce`: it lacks {missing}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a plan of `advflyp reproduce`: {error}") from None
    cells: list[Cell] = []
    runs: list[SeedRun] = []
    seed_of: dict[str, int] = {}
    for file in sorted((folder / RESULTS).glob("*.jsonl"), key=_by_seed):
        found, (seed, name) = read_cells(file), _by_seed(file)
        cells += found
        seed_of |= {cell.checkpoint_sha256: seed for cell in found}
        if (run := folder / RUNS / name).is_dir():
            recipe = read_recipe_tree(run)
            labels = dict.fromkeys(cell.model for cell in found)
            runs += [SeedRun(label=label, seed=seed, folder=run, recipe=recipe) for label in labels]
    if not cells:
        raise ValueError(f"there are no results in {folder / RESULTS}; make them with `advflyp reproduce`")
    return Study(
        folder=folder,
        scale=str(plan.get("scale", "mini")),
        planned=planned,
        experiments=experiments,
        cells=cells,
        runs=runs,
        seed_of=seed_of,
    )


def main_experiment(study: Study) -> Exhibit:
    """Table 1 with the clean accuracies of Table 2; if it has no results, the first experiment that has some.

    Experiments under attack and with two methods or more are preferred.
    """
    ranked = [
        e for e in study.experiments if len(e.rows) > 1 and e.id not in ("figure3", PROXIES)
    ] or study.experiments
    attacked = [e for e in ranked if any(attack != "clean" for attack in e.attacks)] or ranked
    if not attacked:
        raise ValueError(f"the plan in {study.folder} has no experiments")
    there = [e for e in attacked if any(cell.model not in e.unranked for cell in e.cells(study))] or attacked
    first = next((e for e in there if e.id == "table1"), there[0])
    attacks = list(dict.fromkeys(["clean", *first.attacks]))
    return replace(first, attacks=attacks)


def _experiment(entry: Mapping[str, Any]) -> Exhibit:
    # A plan has further keys, such as what to measure.
    found = fill(Exhibit, {one.name: entry[one.name] for one in fields(Exhibit) if one.name in entry})
    return replace(found, rows=list(dict.fromkeys(found.rows)), sets=_sets(found.sets))


def _planned(runs: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in convert(runs, list[dict[str, Any]], "runs"):
        overrides = convert(run.get("overrides", {}), dict[str, Any], "overrides")
        found[str(run["label"])] = {**run, "overrides": overrides}
    return found


def _sets(names: list[str]) -> list[str]:
    """Resolve groups; a name unknown on this machine is kept, as its results may still be there."""
    result: list[str] = []
    for name in names:
        if is_import_path(name):
            raise ValueError(f"sets has '{name}': a plan names data, not code")
        try:
            result += set_names([name])
        except ValueError:
            result.append(name)
    return list(dict.fromkeys(result))


def _by_seed(path: Path) -> tuple[int, str]:
    match = re.search(r"-s(\d+)$", path.stem)
    return int(match[1]) if match else 0, path.stem
