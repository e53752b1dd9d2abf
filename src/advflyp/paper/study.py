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
        measured = {(c.attack, c.norm, c.eps) for c in cells if c.norm is not None}
        found = [Condition("clean", None, 0.0)] if "clean" in self.attacks else []
        for attack in self.attacks:
            for eps in self.eps if attack != "clean" else []:
                near = [m for m in measured if m[0] == attack and math.isclose(m[2], eps, rel_tol=1e-4)]
                found.append(Condition(*min(near, key=str)) if near else Condition(attack, "linf", eps))
        return found

    @property
    def place(self) -> tuple[int, int]:
        """Sort key for readers: tables by number, then figures, then everything else."""
        match = re.fullmatch(r"(table|figure)(\d+)(-.*)?", self.id)
        return (("table", "figure").index(match[1]), int(match[2])) if match else (2, 0)

    def results(self, study: "Study") -> Results:
        """Its own cells, the seeds of a method together; only seeds that all trained methods have.

        Otherwise a mean of three trainings would be compared with a single one. The originals are not trained.
        """
        kept = self._of_common_seeds(self.cells(study), study)
        # In the plan's order, not in that of the files.
        kept.sort(key=lambda cell: (self.rows.index(cell.model), self.sets.index(cell.set)))
        return Results(kept, seeds=True, models=self.rows)

    def seeds_note(self, study: "Study") -> str:
        """A note on the seeds that the table uses, if some of its methods have more; else empty."""
        measured = [cell for cell in self.cells(study) if not self._is_untrained(cell.model, study)]
        kept = self._of_common_seeds(measured, study)
        if len({cell.checkpoint_sha256 for cell in kept}) == len(
            {cell.checkpoint_sha256 for cell in measured}
        ):
            return ""
        seeds = sorted({study.seed_of[cell.checkpoint_sha256] for cell in kept})
        named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
        return f"Only {named}, which all of these methods have; some have more."

    def cells(self, study: "Study") -> list[Cell]:
        """The cells that were measured for it."""
        wanted = self.conditions(study.cells)
        rows, sets = set(self.rows), set(self.sets)
        return [
            cell
            for cell in study.cells
            if cell.model in rows
            and cell.set in sets
            and Condition(cell.attack, cell.norm, cell.eps) in wanted
        ]

    def _of_common_seeds(self, cells: Sequence[Cell], study: "Study") -> list[Cell]:
        """For each condition, the cells of seeds that all trained methods have; all cells if they share no seed."""
        found: dict[Condition, dict[str, set[int]]] = {}
        for cell in cells:
            if not self._is_untrained(cell.model, study):
                by_row = found.setdefault(Condition(cell.attack, cell.norm, cell.eps), {})
                by_row.setdefault(cell.model, set()).add(study.seed_of[cell.checkpoint_sha256])
        common = {condition: set.intersection(*by_row.values()) for condition, by_row in found.items()}
        return [
            cell
            for cell in cells
            if self._is_untrained(cell.model, study)
            or not (seeds := common[Condition(cell.attack, cell.norm, cell.eps)])
            or study.seed_of[cell.checkpoint_sha256] in seeds
        ]

    def _is_untrained(self, label: str, study: "Study") -> bool:
        planned = study.planned.get(label, {})
        return label in self.unranked or (bool(planned) and not planned.get("recipe"))


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One seed of one method, with its folder and recipe if the folder exists."""

    label: str
    seed: int
    folder: Path | None
    recipe: Mapping[str, Any]

    @property
    def original(self) -> str:
        """The model that the run started from."""
        return str(self.recipe.get("model", {}).get("name", "mini"))


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
        runs = [
            run for run in self.runs if run.label == label and run.folder and (run.folder / BEST).is_dir()
        ]
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
        run = folder / RUNS / name
        known = run if run.is_dir() else None
        runs += [
            SeedRun(label=label, seed=seed, folder=known, recipe=read_recipe_tree(run) if known else {})
            for label in dict.fromkeys(cell.model for cell in found)
        ]
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
