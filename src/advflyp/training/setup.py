"""What has to be right before a run begins: the folder, the data for the method, what of the model is trained."""

import os
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from advflyp.config import read_toml
from advflyp.data.training import readings
from advflyp.distributed import Ranks
from advflyp.files import names_in
from advflyp.method import METHODS, find_method
from advflyp.method.base import FromEmbeddings, Method
from advflyp.model.clip import CLIP
from advflyp.model.load import BEST, check_replaceable
from advflyp.model.precision import PrecisionChoice, choose_precision
from advflyp.model.resolution import positions_at
from advflyp.training.checkpoint import checkpoints, step_of
from advflyp.training.ending import LOCK_FILE
from advflyp.training.recipe import Recipe, TrainConfig
from advflyp.training.runlog import METRICS_FILE

RECIPE_FILE = "recipe.toml"
CHECKPOINTS = "checkpoints"


def check_folder(out: Path, resume: bool) -> None:
    """ValueError before anything is loaded or written, if `out` cannot take this run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the run")
    saved = checkpoints(out / CHECKPOINTS)
    metrics = out / METRICS_FILE
    check_replaceable(out / BEST)
    # The first checkpoint is written before the first line.
    if resume and not saved and ((out / BEST).exists() or (metrics.exists() and metrics.stat().st_size)):
        raise ValueError(
            f"{out} holds the results of a run whose checkpoints are gone, so that it cannot be continued; put "
            f"{out / CHECKPOINTS} back, or name another folder"
        )
    # A run that ended before its first step, for want of data or memory, has nothing to lose: it may begin again.
    if not resume and (any(map(step_of, saved)) or (out / BEST).exists()):
        raise ValueError(f"{out} holds another run; continue it with --resume or name another folder")
    # What a run leaves that died before its first checkpoint may be overwritten. The lock is the first of it.
    ours = {RECIPE_FILE, METRICS_FILE, CHECKPOINTS, LOCK_FILE, "tensorboard"}
    names = names_in(out)
    if not saved and (names - ours - {BEST} or (names and LOCK_FILE not in names)):
        raise ValueError(f"{out} is not empty; name a new folder for the run")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"no permission to write to {parent}; name another folder for the run")


def check_data(recipe: Recipe) -> None:
    """ValueError, before anything is loaded or written, for data of the kind that the method cannot use."""
    train, wanted = recipe.data.train, find_method(recipe.method_name)[0].trains_on
    found = readings(train)
    if wanted == "images" or not found or wanted in found:
        return
    others = [name for name, (other, _) in METHODS.items() if other.trains_on in (*found, "images")]
    has, lacks = (
        ("labelled pictures", "image–text pairs") if wanted == "pairs" else ("pairs", "labelled ones")
    )
    instead = "mini" if wanted == "pairs" else "mini/proxy"
    raise ValueError(
        f"method.name = '{recipe.method_name}' trains on {lacks}, and data.train = '{train}' holds {has}; "
        f"name other data, such as {instead}, or one of the methods {', '.join(sorted(others))}"
    )


def check_attack(recipe: Recipe, method: Method) -> None:
    """ValueError where the attack does not go with the method or with how the step is computed."""
    attack, name = recipe.attack, recipe.method_name
    if attack.steps and attack.start == "zero" and method.flat_at_clean:
        raise ValueError(
            f"attack.start = 'zero' does not go with method.name = '{name}', whose loss has no gradient at the clean "
            "images; use 'random'"
        )
    if not attack.share_clean_forward:
        return
    if not (isinstance(method, FromEmbeddings) and method.shares_clean):
        raise ValueError(
            f"attack.share_clean_forward: method.name = '{name}', as it is set, needs no clean forward pass that could "
            "be shared; leave it out"
        )
    train = recipe.train
    others = {
        "train.compile": train.compile,
        "train.parallel = 'fsdp'": train.parallel == "fsdp",
        "train.batch_norm = 'update'": train.batch_norm == "update",
    }
    for key, there in others.items():
        if there:
            raise ValueError(f"attack.share_clean_forward does not go with {key}; leave one of them out")


def check_sizes(recipe: Recipe, method: Method, model: CLIP) -> None:
    """ValueError where the method or the model cannot take the images of `data.schedule`."""
    for side, _ in recipe.data.schedule or ():
        if (side, side) == model.image_size:
            continue
        if not method.any_size:
            raise ValueError(
                f"data.schedule: method.name = '{recipe.method_name}' takes images of the model's own size only"
            )
        if recipe.train.parallel == "fsdp":
            raise ValueError("data.schedule does not go with train.parallel = 'fsdp'; use 'ddp'")
        positions_at(model.visual, (side, side), model.name)


def settle_precision(recipe: Recipe, out: Path, device: torch.device, resume: bool) -> PrecisionChoice:
    """What "auto" means for this run: what it was started with, on whatever machine, or the device's best."""
    asked, begun = recipe.train.precision, out / RECIPE_FILE
    if not (resume and asked == "auto" and begun.is_file()):
        return choose_precision(asked, device)
    started = read_toml(begun).get("train", {}).get("precision", "auto")
    choice = choose_precision(started, device)
    return choice if started == "auto" else PrecisionChoice(choice.precision, "the run was started with it")


def check_split(recipe: Recipe, ranks: Ranks) -> None:
    """ValueError where a tower cannot be split over the processes."""
    if ranks.size == 1:
        raise ValueError(
            "train.parallel = 'fsdp' splits a tower over several processes, and this is one alone; start it with "
            "torchrun --nproc-per-node N -m advflyp train …"
        )
    if recipe.train.unfreeze != "vision":
        raise ValueError(
            "train.parallel = 'fsdp' splits the image tower only; set train.unfreeze = 'vision', or use 'ddp'"
        )


def unfreeze(model: CLIP, what: str) -> list[nn.Parameter]:
    """Let gradients reach the named part only; the parameters to be trained."""
    chosen = []
    for name, parameter in model.net.named_parameters():
        is_vision, is_scale = name.startswith("visual."), name in ("logit_scale", "logit_bias")
        wanted = is_vision or (what == "all") or (what == "vision+text" and not is_scale)
        # A parameter the architecture itself keeps constant (fixed position tables) stays so.
        parameter.requires_grad_(wanted and parameter.requires_grad)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def economise(model: CLIP, config: TrainConfig) -> None:
    """How the tower computes: in parts, with recomputed activations, compiled. ValueError where it cannot."""
    model.micro_batch = config.micro_batch
    if config.activation_checkpointing:
        blocks = model.net.visual
        blocks.set_grad_checkpointing(True)
        flags = [getattr(m, "grad_checkpointing", False) for m in blocks.modules()]
        if not any(flags):
            raise ValueError(
                f"train.activation_checkpointing: the image tower of {model.name} has no blocks to recompute; use "
                "train.micro_batch"
            )
    if config.compile:
        model.visual.compile()


def copied(model: CLIP, config: TrainConfig) -> CLIP:
    """A copy that computes as the model does after `economise`: a deep copy leaves the compiled call behind."""
    copy = deepcopy(model)
    if config.compile:
        copy.visual.compile()
    return copy
