"""Carrying out a plan: each step an ordinary search, training or evaluation in its own folder.

    runs/NAME-sSEED/           a training
    results/NAME-sSEED.jsonl   its result cells
    tuning.json                learning rates that were tried, with their scores

Finished steps are not repeated. Results are enough: a run whose results are complete may be deleted, and is not
trained again. Several processes may work on one folder; each takes steps that no other has taken.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from advflyp.data.sets.labelled import set_names
from advflyp.errors import Diverged, OutOfMemory, RunError
from advflyp.escape import for_rich
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.results import append_cell, read_cells
from advflyp.evaluation.samples import has_samples, read_samples, write_samples
from advflyp.evaluation.suite import evaluate
from advflyp.files import lock, try_lock, write_text
from advflyp.model.folder import LAST, weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.paper.plan import Measure, Plan, Run
from advflyp.paper.tuning import tuned_rate
from advflyp.recipes import CONFIGS
from advflyp.training.checkpoint import checkpoints
from advflyp.training.failures import is_out_of_memory
from advflyp.training.folder import CHECKPOINTS
from advflyp.training.loop import train
from advflyp.wording import counted

FINISHED = "finished"
NO_MEMORY = (
    "out of memory; use a device with more of it, or end what else uses it, then give the same command again"
)


@dataclass(frozen=True)
class Step:
    """One seed of one run under one measure; the run is trained first if need be."""

    run: Run
    seed: int
    measure: Measure

    @property
    def name(self) -> str:
        return f"{self.run.name}-s{self.seed}"

    @property
    def training(self) -> str:
        """The name of its run folder, which the run of the last weights shares with that of the best ones."""
        return f"{self.run.trained_as}-s{self.seed}"

    def __str__(self) -> str:
        m = self.measure
        radii = " ".join(f"{255 * eps:g}/255" for eps in m.eps)
        part = f", {counted(m.limit, 'image')} a set" if m.limit else ""
        return f"{self.name}: {' '.join(m.attacks)} at {radii} on {' '.join(m.sets)}{part}"


def steps_of(plan: Plan) -> list[Step]:
    """The steps by importance: runs of the headline first, then cheap attacks, then lower seeds."""
    headline = {name for e in plan.experiments if e.id in ("table1", "table2", "table4") for name in e.runs}
    found = [
        Step(run, seed, measure)
        for run in plan.runs
        for seed in plan.seeds_of(run)
        for measure in plan.measures(run)
        if seed == 0 or not measure.first_seed
    ]
    rank = {run.name: place for place, run in enumerate(plan.runs)}

    def importance(step: Step) -> tuple[Any, ...]:
        costly = "autoattack" in step.measure.attacks
        return step.run.name not in headline, costly, step.seed, rank[step.run.name]

    return sorted(found, key=importance)


def is_done(step: Step, folder: Path) -> bool:
    """Whether the result file has every cell of the step."""
    m = step.measure
    known = set()
    for cell in read_cells(folder / "results" / f"{step.name}.jsonl"):
        of = cell.subset["of"]
        if cell.subset.get("limit", of) == min(m.limit or of, of):
            known.add((cell.set, cell.attack, round(255 * cell.eps, 6)))
    wanted = {
        (name, attack, round(255 * eps, 6) if find_attack(attack).perturbs else 0.0)
        for name in set_names(list(m.sets))
        for attack in m.attacks
        for eps in m.eps
    }
    return wanted <= known


def recipe_file(plan: Plan, run: Run) -> Path:
    """The file of a run's recipe, at the plan's scale."""
    return CONFIGS / ("mini" if plan.scale == "mini" else "") / str(run.recipe)


def carry_out(plan: Plan, whole: Plan, folder: Path, console: Console) -> dict[str, str]:
    """Do all remaining steps of `plan`; returns {step: reason} for those that failed. `whole` is what gets reported.

    A failed step, such as a training that diverges or runs out of memory, does not stop the others; a signal or a full
    disk does. Steps that another process works on come last and are waited for.
    """
    whole.write(folder)
    pending = steps_of(plan)
    failed: dict[str, str] = {}
    while pending:
        held = [step for step in pending if not _try(plan, step, folder, console, failed, wait=False)]
        if len(held) == len(pending):
            # Other processes work on all of them: wait for one to end.
            _try(plan, held[0], folder, console, failed, wait=True)
            held = held[1:]
        pending = held
    return failed


def _try(
    plan: Plan, step: Step, folder: Path, console: Console, failed: dict[str, str], *, wait: bool
) -> bool:
    """Do the step; False if another process has its run."""
    if str(step) in failed or is_done(step, folder):
        return True
    path = folder / "locks" / step.training
    ours = lock(path, wait=math.inf) if wait else try_lock(path)
    if ours is None:
        return False
    with ours:
        if is_done(step, folder):
            return True
        console.print()
        console.print(for_rich(str(step), "bold"))
        try:
            _do(plan, step, folder, console)
        except ValueError as error:
            _fail([step], str(error), failed, console)
        except (Diverged, OutOfMemory) as error:
            # Its other measures would train it again, to the same end.
            same = [one for one in steps_of(plan) if one.training == step.training]
            reason = NO_MEMORY if isinstance(error, OutOfMemory) else str(error)
            _fail([one for one in same if not is_done(one, folder)], reason, failed, console)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _fail([step], NO_MEMORY, failed, console)
    return True


def _fail(steps: Sequence[Step], reason: str, failed: dict[str, str], console: Console) -> None:
    failed |= dict.fromkeys(map(str, steps), reason)
    console.print(for_rich(f"failed: {reason}"))


def _do(plan: Plan, step: Step, folder: Path, console: Console) -> None:
    model: str | Path = str(step.run.overrides["model.name"])
    if step.run.recipe:
        model = folder / "runs" / step.training
        _train(plan, step, model, folder, console)
        if step.run.overrides.get("checkpoint.last") and not step.run.best_of:
            model = model / LAST
    loaded = load_model(model, device=pick_device("auto"))
    store = folder / "results" / f"{step.name}.jsonl"
    sha256 = weights_sha256(loaded)
    if any(cell.checkpoint_sha256 != sha256 for cell in read_cells(store)):
        raise ValueError(
            f"{store} holds results of weights other than those in {model}; delete the file to measure everything again"
        )
    if step.run.best_of:
        _take_over(folder / "results" / f"{step.training}.jsonl", store, sha256, step.run.label)
    evaluate(
        loaded,
        step.measure.sets,
        step.measure.attacks,
        step.measure.eps,
        out=store,
        limit=step.measure.limit,
        precision=plan.precision,
        name=step.run.label,
        progress=lambda cell: console.print(
            for_rich(f"  {cell.set} {cell.attack} {255 * cell.eps:g}/255: {100 * cell.accuracy:.1f} %")
        ),
    )


def _take_over(measured: Path, store: Path, sha256: str, label: str) -> None:
    """Copy the cells of these weights: if the last weights are the best ones, they are not measured twice."""
    known = {cell.key() for cell in read_cells(store)}
    for cell in read_cells(measured):
        if cell.checkpoint_sha256 == sha256 and cell.key() not in known and has_samples(measured, cell):
            one, ours = read_samples(measured, cell), replace(cell, model=label)
            write_samples(
                store,
                ours,
                index=one.index,
                label=one.label,
                clean=one.clean,
                attacked=one.attacked,
                keys=None if None in one.key else one.key.tolist(),
            )
            append_cell(store, ours)


def _train(plan: Plan, step: Step, out: Path, folder: Path, console: Console) -> None:
    if (out / FINISHED).is_file():
        return
    resume = bool(checkpoints(out / CHECKPOINTS))
    # A training that was begun keeps its precision, which "auto" asks for; the plan's is that of the remaining work.
    overrides = step.run.overrides | {
        "train.seed": step.seed,
        "train.precision": "auto" if resume else plan.precision,
    }
    if plan.grid:
        source = plan.run(step.run.rate_of or step.run.trained_as)
        overrides["optim.lr"] = tuned_rate(
            source.name,
            recipe_file(plan, source),
            source.overrides | {"train.precision": plan.precision},
            plan.grid,
            folder,
            console,
        )
    result = train(recipe_file(plan, step.run), overrides, out=out, resume=resume, console=console)
    if not result.finished:
        raise RunError(f"a signal stopped the training of {step.training}; the same command continues it")
    write_text(out / FINISHED, "")
    # The weights are kept; the checkpoints, which only resuming needs, are not.
    shutil.rmtree(out / CHECKPOINTS)
