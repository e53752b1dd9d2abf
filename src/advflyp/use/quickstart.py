"""`advflyp quickstart`: the paper's claim in miniature, on real images, in a few minutes on a CPU."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from advflyp.config import read_toml
from advflyp.console import SafeConsole
from advflyp.errors import RunError
from advflyp.escape import for_rich
from advflyp.evaluation.results import Cell
from advflyp.evaluation.suite import evaluate
from advflyp.files import write_atomically
from advflyp.model.load import load_model
from advflyp.recipes import PACKAGE
from advflyp.report.console import before_after_table, evaluation_progress
from advflyp.report.figures.examples import examples
from advflyp.report.pages.report import write_report
from advflyp.report.pages.sections import FILES
from advflyp.training.build import build
from advflyp.training.checkpoint import checkpoints
from advflyp.training.folder import CHECKPOINTS, RECIPE_FILE, check_folder
from advflyp.training.loop import train
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import duration
from advflyp.training.update import update
from advflyp.wording import counted
from advflyp.written import check_files

RECIPE = "mini/advflyp_full"
# The paper's ε: at the mini recipes' 2/255, the same run loses 6 points of clean accuracy, and gains at most 2 points
# of robust accuracy. 60 steps at this learning rate do more than 100 at the recipe's. The last weights are kept:
# choosing the best of few steps on 200 images would be choosing by chance.
KEYS = {
    "attack.eps": "1/255",
    "attack.step_size": "1/255",
    "optim.lr": 8e-4,
    "validate.set": "none",
}
BEFORE, AFTER = "mini", "mini + AdvFLYP_full"
SETS = ("mini",)
EPS = 2 / 255
EPS_CURVE = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
IMAGES_PER_SET = 150
# The results of the original model come with its weights. `evaluate` reuses those that it would measure itself (so,
# for the same weights), and measures what is missing.
MEASURED = PACKAGE / "model/weights/mini/measured"
RESULTS = "results.jsonl"
STEPS, FEWEST_STEPS = 60, 20
# After training, the second evaluation takes about as long as this many steps, and the report this many seconds.
EVALUATION_STEPS, REPORT_SECONDS = 40, 20


def quickstart(out: str | Path, *, minutes: float = 5, console: Console | None = None) -> Path:
    """Evaluate the mini CLIP, finetune it with AdvFLYP_full, evaluate again, write `out`/report/index.html.

    Another call with the same folder resumes.

    Args:
        minutes: Time limit; on a slow machine the training is shortened to fit.

    Returns:
        The path of the report.

    Raises:
        ValueError: `out` is a file, or holds files that no quickstart wrote.
        RunError: A signal stopped the training.
    """
    begun = time.monotonic()
    out = Path(out)
    console = console or SafeConsole(quiet=True)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    run = out / "run"
    resume = bool(checkpoints(run / CHECKPOINTS))
    check_files(out / "report", FILES)
    check_folder(run, resume)
    if not (out / RESULTS).exists():
        _take_up_results(out)
    cells = _measure("mini", BEFORE, out, console)
    console.print()
    console.print(for_rich("finetuning with AdvFLYP_full: PGD-2 at ε=1/255 on the embedded image–text pairs"))
    if resume:
        steps = read_toml(run / RECIPE_FILE)["train"]["max_steps"]
    else:
        steps = _affordable(60 * minutes - (time.monotonic() - begun), console)
    result = train(RECIPE, KEYS | {"train.max_steps": steps}, out=run, resume=resume, console=console)
    if not result.finished:
        raise RunError("a signal stopped the training; the same command continues it")
    cells += _measure(run, AFTER, out, console)
    sets = list(dict.fromkeys(cell.set for cell in cells))
    shown = examples(load_model("mini"), load_model(run), sets, eps=EPS)
    report = write_report(
        out / "report",
        title="advflyp quickstart",
        cells=cells,
        pair=(BEFORE, AFTER),
        runs={AFTER: run},
        examples=shown,
        eps=EPS,
        stores=[out / RESULTS],
    )
    console.print(before_after_table(cells, BEFORE, AFTER, EPS, [out / RESULTS]))
    console.print()
    console.print(for_rich(f"results {out / RESULTS}   model {run}   report {report}"))
    return report


def _take_up_results(out: Path) -> None:
    # results.jsonl goes last: what it lists is measured again unless the files that belong to it are there.
    for path in sorted(MEASURED.rglob("*"), key=lambda path: path.name == RESULTS):
        if path.is_file():
            with write_atomically(out / path.relative_to(MEASURED)) as file:
                file.write(path.read_bytes())


def _affordable(seconds: float, console: Console) -> int:
    """How many steps fit into the remaining time, after measuring the pace."""
    pace = _seconds_per_step()
    steps = int((seconds - REPORT_SECONDS) / pace) - EVALUATION_STEPS
    chosen = min(STEPS, max(FEWEST_STEPS, steps))
    rest = duration((chosen + EVALUATION_STEPS) * pace + REPORT_SECONDS)
    console.print(
        for_rich(f"a step takes {pace:.2f} s here: {counted(chosen, 'step')}; all of it ends in about {rest}")
    )
    if chosen < STEPS:
        more = "so the effect is smaller; --minutes gives it more time"
        console.print(for_rich(f"the training is shortened from {STEPS} steps, {more}"))
    return chosen


def _seconds_per_step() -> float:
    """Measured on the second and third step of a real run; the first one warms up."""
    with TemporaryDirectory() as folder:
        run = build(read_recipe(RECIPE, KEYS), Path(folder))
        try:
            batches = run.pairs.epoch(0)
            update(run, next(batches))
            begun = time.monotonic()
            for _ in range(2):
                update(run, next(batches)).metrics["loss"].item()
            return (time.monotonic() - begun) / 2
        finally:
            run.close()


def _measure(model: str | Path, name: str, out: Path, console: Console) -> list[Cell]:
    console.print(for_rich(f"evaluating {name}"))
    with evaluation_progress(console) as watch:
        return evaluate(
            model,
            SETS,
            ["clean", "pgd10"],
            EPS_CURVE,
            out=out / RESULTS,
            limit=IMAGES_PER_SET,
            # On every machine, like the results that come with the weights.
            precision="fp32",
            name=name,
            watch=watch,
        )
