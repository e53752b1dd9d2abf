"""The training loop: batch → attack → losses → step → log → validate → save. Nothing here knows a method by name."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.data.pairs.samples import Skipped
from advflyp.data.sets.labelled import LabelledSet
from advflyp.errors import first_line
from advflyp.model.clip import CLIP
from advflyp.model.deviation import cosine_deviation
from advflyp.training.build import TrainingRun, build
from advflyp.training.checkpoint import save_checkpoint
from advflyp.training.failures import check_finite, explaining, finite_means, writing
from advflyp.training.objects import Objects
from advflyp.training.optim import peak_rate
from advflyp.training.recipe import leaves, read_recipe
from advflyp.training.runlog import AnyLog, RunLog, SilentLog
from advflyp.training.signals import Interrupted
from advflyp.training.state import resume_run, state_dict
from advflyp.training.update import Updated, update
from advflyp.training.validation import changes, keep_last, validate, validate_original

# Number of pairs of a batch on which φ is measured.
PHI_PAIRS = 32


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `train` returns.

    Attributes:
        out: The run folder; `load_model(out)` gives the best weights.
        steps: Updates made, resumed ones included.
        best: Best validation accuracy (0–1); None without validation.
        before: Accuracies (0–1) of the model that the run began with: "clean" and, under attack, "robust".
        after: The same accuracies of the best weights.
        finished: False where a signal ended the run early; `resume` continues it.
    """

    out: Path
    steps: int
    best: float | None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    finished: bool = True


def train(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    model: CLIP | str | Path | None = None,
    pairs: Any = None,
    validation_set: LabelledSet | str | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run a recipe; `out` receives the resolved recipe, metrics, checkpoints and the best weights.

    Under torchrun or another launcher, all ranks make the same call and share every batch. SIGTERM, SIGUSR1 and
    SIGINT (Ctrl-C) end the run after the current step, with a checkpoint; SIGINT then raises KeyboardInterrupt. A
    SIGINT that follows another signal raises it at once.

    Args:
        recipe: A TOML file, or the name of a recipe that comes with the package: "mini/advflyp_full".
        overrides: {"optim.lr": 1e-4, …}.
        out: The run folder.
        model: The model to start from, or its name, in place of `model.name`; an object is not modified.
        pairs: What to train on, in place of `data.train`: a name, a torch `Dataset` or list of (image, caption), or a
            `LabelledSet` for methods that train on labels.
        validation_set: The labelled set that decides the best weights, or its name, in place of `validate.set`.
        resume: Continue the run in `out` from its last undamaged checkpoint, or from the start if it has none yet. A
            run that was given objects needs the same ones again.
        console: Where progress is shown; None is silent.

    Raises:
        ValueError: The recipe, its data, its model or the folder cannot be used.
        RunError: The run failed and cannot go on.
    """
    overrides = overrides or {}
    names, objects = _given(overrides, model, pairs, validation_set)
    resolved = read_recipe(recipe, {**overrides, **names})
    _check_autocast()
    # The run seeds torch's generators; the caller's go on where they were.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    # A run needs gradients, also inside the caller's torch.no_grad() or torch.inference_mode().
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        run = build(resolved, Path(out), objects=objects, resume=resume, console=console)
        try:
            if resume:
                resume_run(run)
            return fit(run)
        finally:
            run.close()


def _given(
    overrides: Mapping[str, Any], model: Any, pairs: Any, validation_set: Any
) -> tuple[dict[str, str], Objects]:
    """What `train` is given in place of what the recipe names: recipe keys with other names, and objects."""
    for argument, value, kind in (("model", model, CLIP), ("validation_set", validation_set, LabelledSet)):
        if not isinstance(value, str | Path | kind | None):
            made = "CLIP.from_open_clip(…)" if kind is CLIP else "LabelledSet(dataset, classes, templates)"
            raise ValueError(
                f"train(…, {argument}=…) takes a name or an advflyp.{kind.__name__}, not a {type(value).__name__}; "
                f"make one with advflyp.{made}"
            )
    given = {"model.name": model, "data.train": pairs, "validate.set": validation_set}
    if twice := [key for key, value in given.items() if value is not None and key in overrides]:
        raise ValueError(
            f"{twice[0]} is given as an override and as an argument of train; leave one of them out"
        )
    names = {key: str(value) for key, value in given.items() if isinstance(value, str | Path)}
    objects = Objects(
        model=model if isinstance(model, CLIP) else None,
        pairs=None if isinstance(pairs, str | Path) else pairs,
        validation_set=validation_set if isinstance(validation_set, LabelledSet) else None,
    )
    return names, objects


def _check_autocast() -> None:
    """ValueError inside an autocast: torch would keep the first step's weights, cast once, for all steps."""
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        raise ValueError(
            "call train outside of torch.autocast: train.precision states the precision of a run"
        )


def fit(run: TrainingRun) -> RunResult:
    """Train to the end, to the point where validation stops improving, or to a signal."""
    state, signals = run.state, run.signals
    run.ranks.broadcast_from_rank0(lambda: run.folder.begin(f"# {run.precision}\n{run.recipe.toml()}"))
    interrupted = False
    with _deterministic(run), signals.heard(), explaining(run), _open_log(run) as log:
        for note in run.notes:
            log.say(note)
        try:
            _loop(run, log)
        except Interrupted:
            interrupted = True
            write_checkpoint(run, log)
            log.say(
                f"{signals.name or 'another rank'} ended the run after step {state.step}; continue it with --resume"
            )
    if interrupted and signals.name == "SIGINT":
        raise KeyboardInterrupt
    return RunResult(
        out=run.folder.path,
        steps=state.step,
        best=state.best,
        before=state.before,
        after=state.after,
        finished=not interrupted,
    )


def _loop(run: TrainingRun, log: AnyLog) -> None:
    recipe, state = run.recipe, run.state
    if state.step == 0:
        # So that there is something to resume from, and a full disk is noticed at once.
        write_checkpoint(run, log)
        validate_original(run, log)
    while not state.finished:
        # A signal may have come between a step and its validation.
        _validate_if_due(run, log)
        for batch in _batches(run):
            updated = _take_step(run, batch, log)
            is_last = state.step == run.total_steps
            if state.step % recipe.log.every == 0 or is_last:
                _write_line(run, updated, log)
            if not is_last:
                _validate_if_due(run, log)
                if state.step % recipe.checkpoint.every == 0 and not state.finished:
                    write_checkpoint(run, log)
        _end_epoch(run, log)
    if recipe.checkpoint.last:
        keep_last(run)
    for line in changes(state.before, state.after, recipe, peak_rate(recipe.optim, run.total_steps)):
        log.say(line)


def _batches(run: TrainingRun) -> Iterator[Batch]:
    """The remaining batches of the epoch, while every rank has one; `Interrupted` if any rank received a signal."""
    state, ranks = run.state, run.ranks
    source = run.pairs.epoch(state.epoch, state.position or None)
    while state.step < run.total_steps and not state.finished:
        with run.meter.waiting():
            batch = next(source, None)
        rows = 0 if batch is None else len(batch.images)
        more, stop = ranks.go_on(rows == run.share.size, bool(run.signals))
        if stop:
            raise Interrupted
        if not (more or share_last_batch(run, rows)):
            return
        assert batch is not None
        yield batch


def share_last_batch(run: TrainingRun, rows: int) -> bool:
    """Whether the rest of an epoch makes a batch with rows on every rank; if so, `run.ranks` records their numbers."""
    if run.recipe.data.drop_last:
        return False
    sizes = run.ranks.all_gather_object(rows)
    if min(sizes) == 0:
        return False
    run.ranks.split(sizes)
    return True


def _take_step(run: TrainingRun, batch: Batch, log: AnyLog) -> Updated:
    """Make one update, and record it in the run's state and log."""
    state, skipped = run.state, run.pairs.skipped
    pairs = run.ranks.rows(len(batch.images))
    updated = update(run, batch)
    run.meter.add(updated.metrics, pairs)
    state.flops += run.meter.flops_of_last * run.ranks.size
    state.step += 1
    state.position = batch.position
    state.pairs_seen += pairs
    run.ranks.split()  # the next batch is a full one
    log.advance(state.step)
    for reason in skipped.examples.keys() - state.skipped.examples.keys():
        log.say(f"skipped: {reason}, such as {skipped.examples[reason]}")
    state.skipped = skipped
    return updated


def _validate_if_due(run: TrainingRun, log: AnyLog) -> None:
    every = run.recipe.validate.every
    if every is not None and run.state.step and run.state.step % every == 0:
        validate(run, log)


def _end_epoch(run: TrainingRun, log: AnyLog) -> None:
    state, recipe = run.state, run.recipe
    if not (state.position or state.finished):
        raise ValueError(
            f"no batch of {recipe.data.batch_size} usable samples in {recipe.data.train}: "
            f"{run.pairs.skipped.describe()}"
        )
    epochs = state.epoch + 1
    last = state.step == run.total_steps or epochs == recipe.train.epochs
    if not state.finished and (last or epochs % (recipe.validate.epochs or 1) == 0):
        validate(run, log)
    # Not before: if a signal ends the validation, the run resumes at `position`, and skips these once more.
    state.skipped = run.pairs.skipped
    _report_skipped(run, log)
    state.epoch = epochs
    state.position = {}
    state.finished = state.finished or last
    if state.finished or state.epoch % (recipe.checkpoint.epochs or 1) == 0:
        write_checkpoint(run, log)


def _report_skipped(run: TrainingRun, log: AnyLog) -> None:
    """Log the samples that all ranks have skipped so far, if any."""
    state, skipped = run.state, Skipped.joined(run.ranks.all_gather_object(run.state.skipped))
    if skipped.counts:
        about = {"skipped": dict(skipped.counts), "examples": skipped.examples}
        log.write("data", state.step, epoch=state.epoch, **about)
        log.say(f"unusable samples so far: {skipped.describe()}")


def _write_line(run: TrainingRun, updated: Updated, log: AnyLog) -> None:
    """Log the metrics of the steps since the last line; `Diverged` if a loss or gradient is not finite."""
    state = run.state
    metrics = run.meter.line(finite_means(run), run.device, run.precision.precision)
    if run.recipe.attack.steps > 0:
        metrics["phi"] = _phi(run.model, updated.batch.images, updated.images_adv)
    about: dict[str, float] = {"of": run.total_steps, "epoch": state.epoch, "seen": state.pairs_seen}
    if state.flops:
        about["pflops"] = state.flops / 1e15
    # The attack's gain is not finite if the loss began at 0.
    metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
    log.write("train", state.step, **about, lr=run.optimizer.param_groups[0]["lr"], **metrics)
    log.advance(state.step, f"loss {metrics['loss']:.3f}  {metrics['pairs_per_second']:.0f} images/s")


@torch.no_grad()
def _phi(model: CLIP, images: Tensor, images_adv: Tensor) -> float:
    """φ (Eq. 14) on some images of the batch, in radians."""
    clean, adversarial = (model.encode_image(some[:PHI_PAIRS]) for some in (images, images_adv))
    return round(cosine_deviation(clean, adversarial).mean().item(), 5)


def write_checkpoint(run: TrainingRun, log: AnyLog) -> None:
    """Write a checkpoint; all ranks must call this together."""
    check_finite(run)
    state = state_dict(run, log.sync())
    if run.ranks.rank == 0:
        with writing(run.folder.checkpoints, run.folder.last_good):
            save_checkpoint(run.folder.checkpoints, run.state.step, state, keep=run.recipe.checkpoint.keep)


def _open_log(run: TrainingRun) -> AnyLog:
    if run.ranks.rank != 0:
        return SilentLog()
    tracked = bool(run.recipe.log.trackers)
    if tracked:
        _start_trackers(run)
    return RunLog(
        run.folder.path,
        run.total_steps,
        resume_step=run.state.step,
        kept=run.logged,
        console=run.console,
        tracker=run.accelerator if tracked else None,
    )


def _start_trackers(run: TrainingRun) -> None:
    log = run.recipe.log
    values = {
        key: value if isinstance(value, int | float) else str(value)
        for key, value in leaves(run.recipe.tree()).items()
    }
    # A fixed name, whatever the project is called, so that a restarted run recognises the folder as its own.
    run.accelerator.project_configuration.logging_dir = str(run.folder.path / "tensorboard")
    # As in metrics.jsonl, what an interrupted run wrote after its checkpoint is dropped.
    purged = {"tensorboard": {"purge_step": run.state.step + 1}}
    try:
        run.accelerator.init_trackers(log.project, values, purged)
    except Exception as error:  # wandb, too, has errors of its own, such as for a missing login
        # One that has not started cannot be finished.
        run.accelerator.trackers.clear()
        if isinstance(error, OSError):
            raise
        names = " or ".join(log.trackers)
        raise ValueError(
            f"log.trackers: {names} cannot start ({first_line(error)}); leave it out, or correct that"
        ) from error


@contextmanager
def _deterministic(run: TrainingRun) -> Iterator[None]:
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if run.recipe.train.deterministic:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
