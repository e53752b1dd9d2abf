"""Build the objects of a run from its recipe."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from rich.console import Console
from torch import nn

from advflyp import distributed
from advflyp.attack.base import Attack
from advflyp.config import read_toml
from advflyp.data.batch import Batch
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Pairs
from advflyp.data.sets.labelled import LabelledSet
from advflyp.data.training import DecodedLabelled, open_training
from advflyp.distributed import Ranks
from advflyp.evaluation.attacks import find_attack
from advflyp.method import find_method
from advflyp.method.base import Method
from advflyp.model.cast import WeightCasts, freeze_in_bf16, product_weights
from advflyp.model.clip import CLIP
from advflyp.model.graphs import Graphs, check_device
from advflyp.model.precision import PrecisionChoice, choose_precision
from advflyp.share import Share
from advflyp.training import sharding
from advflyp.training.checks import (
    check_attack,
    check_data,
    check_sizes,
    check_split,
    check_trains_only_the_model,
    without_effect,
    without_effect_here,
)
from advflyp.training.folder import RunFolder
from advflyp.training.memory import apply_memory_options, copied, images_at_once
from advflyp.training.meter import Meter
from advflyp.training.objects import NAMES, Objects
from advflyp.training.optim import make_optimizer, peak_rate
from advflyp.training.recipe import Recipe
from advflyp.training.signals import Signals
from advflyp.training.state import TrainState
from advflyp.training.texts import open_texts
from advflyp.training.unfreeze import unfreeze
from advflyp.training.update import Objective
from advflyp.wording import counted

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(kw_only=True)
class TrainingRun:
    """The objects of a run, and its state.

    Attributes:
        recipe: The resolved recipe, with the chosen precision in place of "auto".
        folder: Where the run is written.
        console: Where progress is shown, on rank 0; None is silent.
        accelerator: The device and the trackers.
        ranks: The ranks that share a batch.
        share: The rows of a batch that this rank has.
        precision: The chosen precision, and why.
        model: The model that is trained; under FSDP its image tower is sharded.
        unsharded: Under FSDP, a whole copy for evaluation and saving; else `model` itself. See `unsharded_model`.
        method: The losses.
        pairs: The training data.
        add_texts: Adds the text embeddings to a batch.
        objective: The method's losses, wrapped so that ranks exchange gradients.
        parameters: The trained parameters.
        optimizer: Updates `parameters`.
        total_steps: Updates of the whole run.
        validation_set: Decides the best weights; None makes the last ones the best.
        validation_attack: The attack on it.
        notes: Lines to print when the run begins.
        state: The run's progress.
        logged: Bytes of metrics.jsonl that belong to this run.
        meter: Measures what a step costs.
        signals: Whether a signal has come.
    """

    recipe: Recipe
    folder: RunFolder
    console: Console | None
    accelerator: "Accelerator"
    ranks: Ranks
    share: Share
    precision: PrecisionChoice
    model: CLIP
    unsharded: CLIP
    method: Method
    pairs: Pairs
    add_texts: Callable[[Batch], Batch]
    objective: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    total_steps: int
    validation_set: LabelledSet | None
    validation_attack: Attack
    notes: list[str]
    signals: Signals
    state: TrainState = field(default_factory=TrainState)
    logged: int = 0
    meter: Meter = field(default_factory=Meter)
    graphs: dict[CLIP, Graphs] = field(default_factory=dict[CLIP, Graphs])

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_sharded(self) -> bool:
        """Whether the image tower is split over the ranks (FSDP)."""
        return self.recipe.train.parallel == "fsdp"

    @cached_property
    def casts(self) -> WeightCasts:
        """bf16 copies of the model's weights, for the attack; none if the model is sharded or compiled."""
        plain = not self.recipe.train.compile and not self.is_sharded
        return WeightCasts(product_weights(self.model) if plain else [])

    def replaying(self, model: CLIP | None) -> AbstractContextManager[None]:
        """Within the block, `model` encodes images by replaying CUDA graphs, if the recipe says so.

        Not while operations are counted: those of a replay are not seen.
        """
        if model is None or not self.recipe.train.graphs or self.meter.is_counting:
            return nullcontext()
        return model.replaying(self.graphs.setdefault(model, Graphs(pads=False)))

    def unsharded_model(self) -> CLIP:
        """The model to evaluate and save: under FSDP, an unsharded copy; all ranks must call this together."""
        if self.is_sharded:
            self.unsharded.load_state_dict(sharding.whole(self.model.state_dict()))
        return self.unsharded

    def close(self) -> None:
        """Unlock the folder, finish the trackers and disconnect from the other ranks."""
        self.folder.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        # DDP's gradient buckets must not outlive the connection.
        self.objective = nn.Identity()
        self.ranks.close()


def build(
    recipe: Recipe,
    out: Path,
    *,
    objects: Objects = NAMES,
    resume: bool = False,
    console: Console | None = None,
) -> TrainingRun:
    """Open everything that a recipe names; nothing is written.

    Args:
        recipe: What to train.
        out: The run folder.
        objects: Objects to use in place of what the recipe names.
        resume: Whether the folder may hold a run.
        console: Where progress is shown.

    Raises:
        ValueError: The recipe, its data, its model or the folder cannot be used.
    """
    accelerator = distributed.start(recipe.train.device, recipe.log.trackers, out)
    ranks = distributed.join(recipe.data.batch_size, accelerator.device)
    console = console if ranks.rank == 0 else None
    folder = RunFolder(out)
    ranks.broadcast_from_rank0(lambda: folder.claim(resume))
    try:
        return _opened(recipe, folder, accelerator, ranks, console, objects, resume)
    except BaseException:
        # In a notebook, the traceback keeps the lock alive.
        folder.close()
        raise


def _opened(
    recipe: Recipe,
    folder: RunFolder,
    accelerator: "Accelerator",
    ranks: Ranks,
    console: Console | None,
    objects: Objects,
    resume: bool,
) -> TrainingRun:
    device = accelerator.device
    precision = ranks.broadcast_from_rank0(lambda: settle_precision(recipe, folder, device, resume))
    objects.check(recipe, folder, resume)
    recipe = _resolved(recipe, precision, objects)
    # Opened first, so that a mistake in it shows before a model is loaded.
    validation_set = objects.open_validation_set(recipe)
    torch.manual_seed(recipe.train.seed)  # fresh weights of a model/random
    model = objects.open_model(recipe, device)
    method = _open_method(recipe, precision, model, ranks)
    share = Share(recipe.data.batch_size, ranks.rank, ranks.size, recipe.data.drop_last)
    pairs = _open_pairs(recipe, objects, method, share, device)
    unsharded, parameters = _prepare(recipe, model, method, ranks, device)
    recipe = _in_parts(recipe, method, parameters, share, ranks)
    total_steps = min(recipe.train.epochs * len(pairs), recipe.train.max_steps or sys.maxsize)
    objective: nn.Module = Objective(method)
    if recipe.train.parallel != "fsdp":  # which exchanges gradients itself
        objective = distributed.replicated(objective, ranks, device)
    return TrainingRun(
        recipe=recipe,
        folder=folder,
        console=console,
        accelerator=accelerator,
        ranks=ranks,
        share=share,
        precision=precision,
        model=model,
        unsharded=unsharded,
        method=method,
        pairs=pairs,
        add_texts=open_texts(recipe, model, method, pairs, ranks),
        objective=objective,
        parameters=parameters,
        optimizer=make_optimizer(parameters, recipe.optim),
        total_steps=total_steps,
        validation_set=validation_set,
        validation_attack=find_attack(recipe.validate.attack),
        notes=[
            str(precision),
            *_remarks(validation_set, pairs),
            *_lower_rate(recipe, total_steps),
            *without_effect(recipe),
            *without_effect_here(recipe, method, pairs),
        ],
        signals=Signals(tell=console is not None),
    )


def settle_precision(
    recipe: Recipe, folder: RunFolder, device: torch.device, resume: bool
) -> PrecisionChoice:
    """Resolve the precision: on resume, "auto" is what the run was started with, else what suits the device."""
    asked = recipe.train.precision
    if not (resume and asked == "auto" and folder.recipe.is_file()):
        return choose_precision(asked, device)
    started = read_toml(folder.recipe).get("train", {}).get("precision", "auto")
    choice = choose_precision(started, device)
    return choice if started == "auto" else PrecisionChoice(choice.precision, "the run was started with it")


def _resolved(recipe: Recipe, precision: PrecisionChoice, objects: Objects) -> Recipe:
    """The recipe that run folder and checkpoints record: with the chosen precision, not "auto", and the objects."""
    recipe = objects.recorded(replace(recipe, train=replace(recipe.train, precision=precision.precision)))
    if objects.pairs is None:
        check_data(recipe)
    return recipe


def _open_method(recipe: Recipe, precision: PrecisionChoice, model: CLIP, ranks: Ranks) -> Method:
    """The method that trains the model."""
    if recipe.train.graphs:
        check_device(model.device, "train.graphs")
    model.precision = precision.precision
    apply_memory_options(model, recipe.train)
    method = find_method(recipe.method_name)[0](recipe.method, model)
    method.ranks = ranks
    check_trains_only_the_model(recipe, method)
    check_attack(recipe, method)
    check_sizes(recipe, method, model)
    return method


def _open_pairs(
    recipe: Recipe, objects: Objects, method: Method, share: Share, device: torch.device
) -> Pairs:
    data, tokenizer = recipe.data, method.model.tokenizer
    # In a thread the tokenizer would compete with training for the GIL. open_clip's can be sent to a process.
    elsewhere = data.loader == "process" and isinstance(tokenizer, SimpleTokenizer | HFTokenizer)
    return open_training(
        data,
        method.trains_on,
        ImageReader(method.model.config["preprocess_cfg"], data.resize, data.interpolation),
        seed=recipe.train.seed,
        device=device,
        share=share,
        tokenizer=tokenizer if elsewhere and method.trains_on == "pairs" else None,
        data=objects.pairs,
    )


def _prepare(
    recipe: Recipe, model: CLIP, method: Method, ranks: Ranks, device: torch.device
) -> tuple[CLIP, list[nn.Parameter]]:
    """Copy the frozen original if needed, unfreeze what is trained, and shard the tower under FSDP.

    Returns:
        The model to evaluate and save, and the trained parameters.
    """
    if method.needs_original:
        method.original = copied(model, recipe.train).requires_grad_(False)
        freeze_in_bf16(method.original)
    parameters = unfreeze(model, recipe.train.unfreeze)
    if not parameters:
        raise ValueError(
            f"nothing of {model.name} can be trained: none of its parameters requires a gradient; call "
            "model.requires_grad_(True)"
        )
    if recipe.train.parallel != "fsdp":
        return model, parameters
    check_split(recipe, ranks)
    unsharded = copied(model, recipe.train)
    ranks.wait_for_all()
    sharding.shard(model.visual, device, ranks.size)
    return unsharded, [p for p in model.parameters() if p.requires_grad]


def _in_parts(
    recipe: Recipe, method: Method, parameters: list[nn.Parameter], share: Share, ranks: Ranks
) -> Recipe:
    """Resolve `micro_batch = "auto"`, in the recipe and the models, to as many images as fit on every rank."""
    if recipe.train.micro_batch != "auto":
        return recipe
    fits = ranks.all_gather_object(images_at_once(method, parameters, share.size, recipe.optim.name))
    least = min((count for count in fits if count is not None), default=None)
    for model in (method.model, method.original):
        if model is not None:
            model.micro_batch = least
    return replace(recipe, train=replace(recipe.train, micro_batch=least))


def _remarks(validation_set: LabelledSet | None, pairs: Pairs) -> list[str]:
    trained = pairs.labelled if isinstance(pairs, DecodedLabelled) else None
    used = [one for one in (validation_set, trained) if one is not None]
    return list(dict.fromkeys(remark for one in used for remark in one.remarks))


def _lower_rate(recipe: Recipe, total_steps: int) -> list[str]:
    config = recipe.optim
    peak = peak_rate(config, total_steps)
    if config.lr_steps is None or peak >= config.lr:
        return []
    return [
        f"learning rate {peak:.3g}: {config.lr:g} is for {counted(config.lr_steps, 'step')}, and this run has "
        f"{total_steps}; --optim.lr sets another"
    ]
