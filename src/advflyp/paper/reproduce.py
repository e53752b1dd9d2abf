"""`advflyp reproduce`: the paper's experiments, carried out and reported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from advflyp.console import SafeConsole
from advflyp.data.sets.catalogue import TABLE
from advflyp.data.sets.labelled import load_set, set_names
from advflyp.escape import for_rich
from advflyp.files import names_in
from advflyp.model.load import pick_device
from advflyp.model.precision import Precision, resolve
from advflyp.paper.cost import cost
from advflyp.paper.experiments import make_plan
from advflyp.paper.page import experiment_means, paper_report
from advflyp.paper.plan import PLAN_FILE, Plan, Scale, read_begun
from advflyp.paper.proxies.coverage import FILE as COVERAGE_FILE
from advflyp.paper.proxies.coverage import read_coverage
from advflyp.paper.proxies.numbers import Numbers
from advflyp.paper.proxies.plan import PROXIES
from advflyp.paper.proxies.tables import verdict_table
from advflyp.paper.published import published_table
from advflyp.paper.steps import carry_out
from advflyp.paper.study import main_experiment, read_study
from advflyp.report.console import as_rich
from advflyp.report.figures.embedding import FILE as TSNE_FILE
from advflyp.report.figures.embedding import read_tsne
from advflyp.report.pages.sections import FILES
from advflyp.wording import counted
from advflyp.written import check_files

OURS = {PLAN_FILE, "tuning.json", "tuning", "runs", "results", "locks", "report", TSNE_FILE, COVERAGE_FILE}


def reproduce(
    out: Path,
    *,
    scale: Scale = "mini",
    seeds: int = 1,
    steps: int | None = None,
    only: Sequence[str] = (),
    pairs: str | None = None,
    captioned: str | None = None,
    precision: Precision | None = None,
    dry_run: bool = False,
    report_only: bool = False,
    console: Console | None = None,
) -> dict[str, str]:
    """Carry out the plan in `out` (finished steps are kept), write `out`/report and print its tables.

    Args:
        precision: Precision of the remaining steps; by default that which the study began with; for a new study,
            whichever is faster on the device. A training that was begun goes on in its own.

    Returns:
        {step: reason} of the steps that failed.

    Raises:
        ValueError: For an unknown experiment, an impossible number, or a folder that holds something else.
    """
    console = console or SafeConsole(quiet=True)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    names = names_in(out)
    # We write the plan first: a folder without it is not ours.
    if strange := sorted(names - OURS if PLAN_FILE in names else names):
        raise ValueError(f"{out} holds other files ({strange[0]}); name a new folder with --out")
    check_files(out / "report", FILES)
    begun = read_begun(out)
    # A study that has this experiment keeps it in its plan, but carries it out only when asked to.
    proxies = PROXIES in {*only, *(experiment["id"] for experiment in begun.get("experiments", ()))}
    whole = make_plan(scale, seeds=seeds, steps=steps, pairs=pairs, captioned=captioned, proxies=proxies)
    if not report_only:
        whole.check_continues(begun)
    device = pick_device("auto")
    whole = replace(whole, precision=precision or "auto").settled(begun, device)
    wanted = only or [experiment.id for experiment in whole.experiments if experiment.id != PROXIES]
    plan = replace(whole.only(wanted), precision=resolve(precision or whole.precision, device))
    if dry_run:
        _print_cost(plan, out, console)
        return {}
    console.print(for_rich(f"precision {plan.precision}"))
    failed = {} if report_only else carry_out(plan, whole, out, console)
    page = paper_report(out, out / "report")
    _print_means(out, only, console)
    console.print(for_rich(f"every table and figure: {page}"))
    for step, reason in failed.items():
        console.print(for_rich(f"failed: {step}: {reason}"))
    return failed


def _print_means(out: Path, only: Sequence[str], console: Console) -> None:
    """Print means of the main experiment, or of those asked for; at paper scale also the published figures."""
    study = read_study(out)
    if study.scale == "paper":
        console.print(as_rich(published_table(study.cells, set_names(["paper"]), read_tsne(out / TSNE_FILE))))
    chosen = [e for e in study.experiments if e.id in only] if only else [main_experiment(study)]
    for experiment in sorted(chosen, key=lambda experiment: experiment.place):
        console.print()
        if experiment.id == PROXIES:
            numbers = Numbers.of(study, experiment, read_coverage(out / COVERAGE_FILE))
            console.print(as_rich(verdict_table(numbers)))
        else:
            console.print(as_rich(experiment_means(study, experiment)))


def _print_cost(plan: Plan, out: Path, console: Console) -> None:
    found = cost(plan, out, _images)
    unit = "processor-core hours" if plan.scale == "mini" else "accelerator hours"
    for step, one in found:
        line = f"{one.hours:8.2f} h {one.megabytes:8.0f} MB  {step}"
        console.print(for_rich(line), soft_wrap=True)
    hours, megabytes = sum(one.hours for _, one in found), sum(one.megabytes for _, one in found)
    console.print(
        for_rich(f"{counted(len(found), 'step')}, {hours:.1f} {unit}, {megabytes / 1000:.1f} GB (estimates)")
    )


def _images(name: str) -> int:
    """The number of images of a set: as the catalogue says, or counted for a mini set."""
    key = name.partition("@")[0]
    return TABLE[key].n if key in TABLE else len(load_set(name))
