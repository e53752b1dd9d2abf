"""A plan of experiments: runs, what is measured on them, and the tables and figures made from that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from advflyp.config import convert, suggest
from advflyp.documents import read_json_object
from advflyp.files import write_text
from advflyp.model.precision import Precision, check_precision, resolve

Scale = Literal["mini", "paper"]
PLAN_FILE = "plan.json"
RADII = (1 / 255, 2 / 255, 4 / 255)
ORIGINAL = "original"
OTHER = "-other"  # ends the names of runs on the second backbone


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model of the comparison.

    Attributes:
        name: Stem of its folders' names.
        label: The name of its rows in tables.
        recipe: File below configs/ (mini/ at mini scale); None is the pretrained model itself.
        overrides: Recipe keys on top.
        rate_of: The run whose learning rate it takes; None searches its own.
        most_seeds: The most seeds to train, however many the plan has.
        best_of: The run whose best-validation weights are measured, while that run itself stands for its last weights;
            nothing further is trained.
    """

    name: str
    label: str
    recipe: str | None
    overrides: dict[str, Any] = field(default_factory=dict)
    rate_of: str | None = None
    most_seeds: int | None = None
    best_of: str | None = None

    @property
    def trained_as(self) -> str:
        """The stem of the folders that its trainings are in."""
        return self.best_of or self.name


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Attacks at radii on sets.

    Attributes:
        limit: Images of each set, class-balanced; by default all.
        first_seed: Whether only the first seed is measured, because all would cost too much.
    """

    sets: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...] = RADII
    limit: int | None = None
    first_seed: bool = False

    def covers(self, other: "Measure") -> bool:
        """Whether this measures all that `other` does."""
        same = replace(self, attacks=other.attacks, eps=other.eps) == other
        return same and {*other.attacks} <= {*self.attacks} and {*other.eps} <= {*self.eps}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or a figure.

    Attributes:
        runs: Names of runs.
        attacks: The attacks that it shows.
        eps: The radii that it shows, in pixels of [0, 1].
        measures: What has to be measured for it; a run that several experiments share is measured once for all.
    """

    id: str
    title: str
    runs: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    measures: tuple[Measure, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to run, the most important first.

    Attributes:
        precision: Precision of training and of the search for adversarial images, which are evaluated in float32;
            "auto" is resolved when the study begins, so that all of it has one precision.
        grid: Learning rates to try for each method; empty keeps those of the recipes.
    """

    scale: Scale
    seeds: int
    steps: int | None
    precision: Precision
    grid: tuple[float, ...]
    runs: tuple[Run, ...]
    experiments: tuple[Experiment, ...]

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)

    def only(self, wanted: Sequence[str]) -> "Plan":
        """The part that these experiments need; ValueError for an unknown one."""
        known = [experiment.id for experiment in self.experiments]
        for name in wanted:
            if name not in known:
                raise ValueError(f"the plan has no experiment '{name}'{suggest(name, known)}")
        chosen = tuple(e for e in self.experiments if e.id in wanted)
        needed = {name for experiment in chosen for name in experiment.runs}
        # The learning-rate search needs these runs' recipes; no chosen experiment measures them, so they are not run.
        needed |= {run.rate_of for run in self.runs if run.name in needed and run.rate_of}
        return replace(self, experiments=chosen, runs=tuple(r for r in self.runs if r.name in needed))

    def measures(self, run: Run) -> list[Measure]:
        """The measures of a run, each once, cheap ones first."""
        found = dict.fromkeys(m for e in self.experiments if run.name in e.runs for m in e.measures)
        needed = [m for m in found if not any(other.covers(m) for other in found if other != m)]
        return sorted(needed, key=lambda m: "autoattack" in m.attacks)

    def seeds_of(self, run: Run) -> range:
        """The seeds of a run's trainings; a model that is not trained has one."""
        if not run.recipe:
            return range(1)
        return range(min(self.seeds, run.most_seeds or self.seeds))

    def settled(self, begun: Mapping[str, Any], device: str | torch.device) -> "Plan":
        """The plan in the precision that the study began with, or else its own; "auto" is resolved for `device`."""
        return replace(self, precision=resolve(begun.get("precision", self.precision), device))

    def check_continues(self, begun: Mapping[str, Any]) -> None:
        """ValueError if the study began with other trainings under the same names, whose results count as these."""
        known = {run["name"]: run["overrides"] for run in begun.get("runs", ())}
        for run in self.runs:
            ours = json.loads(json.dumps(run.overrides))
            theirs = known.get(run.name, ours)
            for key in sorted(ours.keys() | theirs.keys()):
                if (new := ours.get(key)) != (old := theirs.get(key)):
                    raise ValueError(
                        f"this study began with {key} = {old} for {run.label}, not {new}; repeat the options that it "
                        "began with (--steps, --pairs, --captioned), or name a new folder with --out"
                    )

    def write(self, folder: Path) -> None:
        """Write `folder`/plan.json, which tells the report what belongs together."""
        labels = {run.name: run.label for run in self.runs}
        experiments = [
            {
                "id": e.id,
                "title": e.title,
                "rows": [labels[name] for name in e.runs],
                "unranked": [labels[name] for name in e.runs if name.startswith(ORIGINAL)],
                "sets": list(dict.fromkeys(name for m in e.measures for name in m.sets)),
                "attacks": e.attacks,
                "eps": e.eps,
                "note": e.note,
                "measures": [asdict(m) for m in e.measures],
            }
            for e in self.experiments
        ]
        tree = asdict(self) | {"experiments": experiments}
        write_text(folder / PLAN_FILE, json.dumps(tree, indent=1) + "\n")


def read_begun(folder: Path) -> dict[str, Any]:
    """The plan that the study in `folder` began with, as JSON; {} for a new study, ValueError for another file."""
    path = folder / PLAN_FILE
    if not path.is_file():
        return {}
    plan = read_json_object(path)
    try:
        for run in plan["runs"]:
            convert(run["name"], str, "name")
            convert(run["overrides"], dict[str, Any], "overrides")
        for experiment in plan["experiments"]:
            convert(experiment["id"], str, "id")
        check_precision(plan["precision"], "precision")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a plan of `advflyp reproduce` ({error}); name a new folder with --out"
        ) from None
    return plan
