"""The mini reproduction's headline: every method with several seeds, run by several processes on one device.

    python benchmarks/headline.py --out build/headline
    python benchmarks/headline.py --out build/headline --seeds 5 --seconds 400

A model of 3 million weights leaves most of a GPU idle, so several processes share it. They share the folder as several
`advflyp reproduce` do, and a second call resumes the first. It measures Tables 2, 4, 10 and 11: clean, PGD-10 and CW-10
at three radii on the ten mini sets. AutoAttack (Table 1) takes longer than all of that;
`advflyp reproduce --only table1` adds it to the same folder.
"""

import multiprocessing
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tyro
from figures import headline_table
from rich.console import Console
from timing import ROOT, Record, describe_machine

from advflyp.config import suggest
from advflyp.model.load import pick_device
from advflyp.paper.experiments import make_plan
from advflyp.paper.plan import Plan, read_begun
from advflyp.paper.steps import carry_out, is_done, steps_of
from advflyp.paper.study import read_study
from advflyp.report.measure.results import Results

EXPERIMENTS = ("table2", "table4", "table10", "table11")
KNOWN_RATES = ROOT / "docs/results/reproduce-mini/tuning.json"
# Beyond this number, processes on a single device wait for one another.
MOST = 12
# Grace period of a stopped process, in seconds.
GRACE = 10.0


@dataclass
class Arguments:
    """What to run."""

    out: Path
    """Folder for runs and results; `advflyp reproduce --scale mini --out` can continue it."""
    seeds: int = 3
    """Trainings of each method."""
    methods: tuple[str, ...] = ()
    """Only these runs of the plan, for example tecoa advflyp_full; by default all of the headline."""
    steps: int | None = None
    """Updates of each training; 100 by default."""
    limit: int | None = None
    """Images of each set; 60 by default."""
    search_rates: bool = False
    """Search the learning rates anew; by default those of docs/results/reproduce-mini are used."""
    processes: int | None = None
    """Number of processes; by default one per core, at most 12."""
    seconds: float | None = None
    """Stop the processes after this many seconds; the table then has what is finished."""
    device: str = "auto"
    """Only for the description of the machine: runs use CUDA if there is a device."""
    json: Path | None = None
    """File for the results."""


def headline_plan(arguments: Arguments) -> Plan:
    """The part of the reproduction's plan that the arguments name; ValueError for an unknown method."""
    plan = make_plan("mini", seeds=arguments.seeds, steps=arguments.steps).only(EXPERIMENTS)
    known = [run.name for run in plan.runs]
    for name in arguments.methods:
        if name not in known:
            raise ValueError(f"the headline has no method '{name}'{suggest(name, known)}")
    chosen = arguments.methods or known
    plan = replace(
        plan,
        runs=tuple(run for run in plan.runs if run.name in chosen),
        experiments=tuple(
            replace(
                e,
                runs=tuple(name for name in e.runs if name in chosen),
                measures=tuple(replace(m, limit=arguments.limit or m.limit) for m in e.measures),
            )
            for e in plan.experiments
        ),
    )
    return plan.settled(read_begun(arguments.out), pick_device("auto"))


def work(arguments: Arguments) -> None:
    """One process: steps of the plan that no other has taken."""
    plan = headline_plan(arguments)
    if carry_out(plan, plan, arguments.out, Console(width=120)):
        raise SystemExit(1)


def run_processes(arguments: Arguments) -> bool:
    """False if a process failed; one that is stopped because time is up has not."""
    count = arguments.processes or min(os.cpu_count() or 1, MOST)
    # With so small a model no operation is worth several threads.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(arguments,)) for _ in range(count)]
    begun = time.monotonic()
    for process in processes:
        process.start()
    for process in processes:
        left = None if arguments.seconds is None else begun + arguments.seconds - time.monotonic()
        process.join(None if left is None else max(0.0, left))
    failed = any(process.exitcode for process in processes)
    stop(processes)
    return not failed


def stop(processes: Sequence[BaseProcess]) -> None:
    """Stop the processes that still run; what they had finished is in the folder."""
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in running:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def progress(plan: Plan, folder: Path) -> dict[str, dict[str, int]]:
    """Method label → number of seeds "planned" and "finished"."""
    counts = {run.label: {"planned": 0, "finished": 0} for run in plan.runs}
    for step in steps_of(plan):
        counts[step.run.label]["planned"] += 1
        counts[step.run.label]["finished"] += is_done(step, folder)
    return counts


def read_rows(folder: Path, counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """A row for each method of `counts`: its label, its counts and, for each condition, the mean over all sets in %.

    Conditions are "clean", "PGD-10, ε = 1/255" and so on. Each is {"mean", "deviation", "seeds"} over the seeds
    measured on all sets; "deviation" is the sample standard deviation over seeds, None for a single seed.
    """
    study = read_study(folder)
    results = Results(study.cells, seeds=True)
    sets = study.experiments[0].sets
    rows = []
    for label in counts:
        found: dict[str, Any] = {}
        for condition in results.conditions:
            mean = results.mean(label, condition, sets)
            if mean is None:
                continue
            found[condition.title if condition.norm else "clean"] = {
                "mean": 100 * mean.value,
                "deviation": 100 * mean.deviation if mean.seeds > 1 else None,
                "seeds": mean.seeds,
            }
        rows.append({"method": label, **counts[label], "accuracy": found})
    return rows


def main() -> None:
    arguments = tyro.cli(Arguments)
    plan = headline_plan(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rates = arguments.out / KNOWN_RATES.name
    if not arguments.search_rates and not rates.exists():
        shutil.copy(KNOWN_RATES, rates)
    begun = time.monotonic()
    sound = run_processes(arguments)
    seconds = time.monotonic() - begun
    record = Record(
        "headline", arguments.json, arguments, describe_machine(str(pick_device(arguments.device)))
    )
    if not any((arguments.out / "results").glob("*.jsonl")):
        raise SystemExit(f"nothing was finished in {seconds:.0f} s")
    rows = read_rows(arguments.out, progress(plan, arguments.out))
    for row in rows:
        record.add(**row)
    print(headline_table(rows))
    finished, planned = (sum(row[key] for row in rows) for key in ("finished", "planned"))
    print(f"{finished} of {planned} runs finished in {seconds:.0f} s")
    if not sound:
        raise SystemExit("a process failed")


if __name__ == "__main__":
    main()
