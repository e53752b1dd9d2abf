"""`advflyp validate`: do all that a run does before its first step, and estimate the memory of that step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.training.build import TrainingRun, build
from advflyp.training.memory import STATES
from advflyp.training.recipe import read_recipe
from advflyp.training.update import Adversarial, find_adversarial, resized
from advflyp.wording import counted

# Rows of a batch on which activation memory is measured.
ROWS = 2


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was found out about a recipe.

    Attributes:
        notes: Precision, remarks on the data, and the learning rate if it is lowered.
        batches: Batches in an epoch.
        steps: Steps of the whole run.
        skipped: Samples skipped up to the end of the first batch, in words; empty if there are none.
        weights: Bytes of the weights, of their frozen copy if there is one, of the gradients and of the optimiser's
            state.
        activations: Bytes that the losses of a batch keep for the backward pass, estimated from `ROWS` rows.
    """

    notes: list[str]
    batches: int
    steps: int
    skipped: str
    weights: int
    activations: int

    def lines(self) -> list[str]:
        """The report, as lines for a terminal."""
        return [
            *self.notes,
            f"{counted(self.batches, 'batch')} in an epoch, {counted(self.steps, 'step')}; the first batch decodes"
            + (f" (skipped: {self.skipped})" if self.skipped else ""),
            f"memory of a step, estimated: {(self.weights + self.activations) / 1e9:.2f} GB "
            f"(weights and optimiser {self.weights / 1e9:.2f}, activations {self.activations / 1e9:.2f})",
            "the recipe can be trained",
        ]


def dry_run(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> DryRun:
    """Open everything that a recipe names, read its first batch, attack some of its rows and compute their losses.

    Args:
        recipe: As for `train`.
        overrides: As for `train`.

    Raises:
        ValueError: What `train` would raise before its first step.
    """
    with TemporaryDirectory() as folder:
        run = build(read_recipe(recipe, overrides or {}), Path(folder) / "run")
        try:
            batch = next(run.pairs.epoch(0), None)
            if batch is None:
                raise ValueError(
                    f"too few samples of {run.recipe.data.train} can be used for one batch of "
                    f"{run.recipe.data.batch_size}: {run.pairs.skipped.describe()}; lower data.batch_size"
                )
            if run.validation_set is not None:
                run.validation_set.image(0)
            return DryRun(
                notes=run.notes,
                batches=len(run.pairs),
                steps=run.total_steps,
                skipped=run.pairs.skipped.describe() if run.pairs.skipped.counts else "",
                weights=_bytes_of_weights(run),
                activations=_bytes_of_activations(run, batch),
            )
        finally:
            run.close()


def _bytes_of_weights(run: TrainingRun) -> int:
    every = sum(p.nbytes for p in run.model.parameters())
    trained = sum(p.nbytes for p in run.parameters)
    return every * (1 + run.method.needs_original) + trained * (1 + STATES[run.recipe.optim.name])


def _bytes_of_activations(run: TrainingRun, batch: Batch) -> int:
    rows = len(batch.images)
    some = min(rows, ROWS)
    images = resized(run, batch.images[:some].to(run.model.device).to(run.model.dtype))
    cut = {"captions": batch.captions[:some], "labels": batch.labels[:some]}
    tokens = None if batch.tokens is None else batch.tokens[:some]
    part = run.add_texts(replace(batch, images=images, tokens=tokens, **cut))
    found = find_adversarial(run, part) if run.recipe.attack.steps > 0 else Adversarial(images=images)
    kept: dict[int, int] = {}
    constant = {p.untyped_storage().data_ptr() for p in run.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constant:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = run.objective(images, found.images, part)
    assert losses  # keeps the graph alive until here, so that no two of its tensors share an address
    at_once = min(rows, run.model.micro_batch or rows)
    return sum(kept.values()) * at_once // some
