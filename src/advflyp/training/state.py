"""Everything needed to resume a run: its progress, and the state of model, optimiser, data and random numbers."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from advflyp.data.pairs.samples import Skipped
from advflyp.data.pairs.stream import Position
from advflyp.training import sharding
from advflyp.training.checkpoint import delete_old, load_last, random_state, set_random_state
from advflyp.training.recipe import difference
from advflyp.wording import counted

if TYPE_CHECKING:
    from advflyp.training.build import TrainingRun


@dataclass
class TrainState:
    """A run's progress.

    Attributes:
        step: Updates made.
        epoch: Epochs finished.
        position: This rank's place in the epoch's data, in the data source's own terms; empty at the beginning.
        skipped: Samples that this rank's data has skipped, up to `position`.
        pairs_seen: Samples of all updates, on all ranks.
        best: Highest validation accuracy (0–1).
        before: Accuracies (0–1) of the model that the run began with.
        after: Accuracies of the best weights.
        attack_steps: Replaces the recipe's number of attack steps once one step is not enough; None before.
        flops: Floating-point operations of the updates, on all ranks.
        validations_without_gain: Counts towards `train.patience`.
        validated_at: Step of the last validation.
        finished: Whether nothing is left to do.
    """

    step: int = 0
    epoch: int = 0
    position: Position = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    pairs_seen: int = 0
    best: float | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    attack_steps: int | None = None
    flops: float = 0.0
    validations_without_gain: int = 0
    validated_at: int | None = None
    finished: bool = False


def state_dict(run: "TrainingRun", logged: int) -> dict[str, Any]:
    """Everything needed to resume a run; all ranks must call this together.

    Args:
        run: The run.
        logged: Bytes of metrics.jsonl that belong to it.
    """
    progress = vars(run.state).copy()
    skipped = progress.pop("skipped")
    # What differs between the ranks.
    own = {
        "position": progress.pop("position") or None,
        "dirt": {"counts": dict(skipped.counts), "examples": dict(skipped.examples)},
        "method": run.method.state_dict(),
        **random_state(run.device),
    }
    processes = run.ranks.all_gather_object(own)
    state = {
        "model": run.unsharded_model().state_dict(),
        "optimizer": sharding.whole(run.optimizer.state_dict()),
        "progress": progress,
        "processes": processes,
        "recipe": run.recipe.toml(),
        "data": run.pairs.contents,
        "logged": logged,
    }
    if run.method.original is not None:
        state["original"] = run.method.original.state_dict()
    return state


def load_state_dict(run: "TrainingRun", state: Mapping[str, Any]) -> None:
    """Restore what `state_dict` returned.

    Raises:
        ValueError: The state is that of another recipe, of other data, or of another number of ranks.
    """
    changed = difference(state["recipe"], run.recipe.toml())
    if changed:
        raise ValueError(f"the recipe differs from the one {run.folder.path} was started with: {changed}")
    # Checkpoints of older versions do not record it.
    then, now = state.get("data", run.pairs.contents), run.pairs.contents
    if then != now:
        raise ValueError(
            f"the data of {run.folder.path} held {then} when it was started and now holds {now}; restore it, or start "
            "another run"
        )
    ranks = state["processes"]
    if len(ranks) != run.ranks.size:
        raise ValueError(
            f"{run.folder.path} was started with {counted(len(ranks), 'rank')} and can only be resumed with as many, "
            f"not {run.ranks.size}: each has its own place in the data"
        )
    sharding.load_weights(run.model, state["model"])
    if run.method.original is not None:
        run.method.original.load_state_dict(state["original"])
    sharding.load_optimizer(run.optimizer, state["optimizer"])
    own = ranks[run.ranks.rank]
    skipped = Skipped(Counter(own["dirt"]["counts"]), dict(own["dirt"]["examples"]))
    run.state = TrainState(**state["progress"], position=own["position"] or {}, skipped=skipped)
    run.pairs.skipped = skipped
    run.method.load_state_dict(own.get("method", {}))  # checkpoints of older versions have none
    # Checkpoints of older versions do not record it: keep every line.
    run.logged = state.get("logged", sys.maxsize)
    set_random_state(own, run.device)


def resume_run(run: "TrainingRun") -> None:
    """Restore the last undamaged checkpoint in the run's folder; a run without any starts from the beginning."""
    if not run.ranks.broadcast_from_rank0(lambda: bool(run.folder.saved())):
        run.notes.append(f"{run.folder.path} has no checkpoint yet: the run starts from the beginning")
        return
    state, damaged = load_last(run.folder.checkpoints)
    run.ranks.wait_for_all()
    run.notes += [f"passed over: {reason}" for reason in damaged]
    load_state_dict(run, state)
    if run.ranks.rank == 0:  # a kill may have come between writing a checkpoint and deleting an old one
        delete_old(run.folder.checkpoints, run.state.step, keep=run.recipe.checkpoint.keep)
    if run.state.step:
        run.notes.append(f"resumed after step {run.state.step}")
