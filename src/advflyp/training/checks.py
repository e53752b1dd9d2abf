"""Checks before a run begins: data, attack, image sizes and FSDP must suit the method and the model."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # type: ignore[reportPrivateUsage]

from advflyp.data.pairs.pairs import Pairs
from advflyp.data.training import LabelledBatches, readings, unused_keys
from advflyp.distributed import Ranks
from advflyp.method import METHODS, find_method
from advflyp.method.base import FromEmbeddings, Method
from advflyp.model.clip import CLIP
from advflyp.model.resolution import positions_at
from advflyp.training.recipe import Recipe


def check_data(recipe: Recipe) -> None:
    """ValueError, before anything is loaded or written, for data of a kind that the method cannot use."""
    train, wanted = recipe.data.train, find_method(recipe.method_name)[0].trains_on
    found = readings(train)
    if wanted == "images" or not found or wanted in found:
        return
    others = [name for name, (other, _) in METHODS.items() if other.trains_on in (*found, "images")]
    has, lacks = (
        ("labelled images", "image–text pairs") if wanted == "pairs" else ("pairs", "labelled images")
    )
    instead = "mini" if wanted == "pairs" else "mini/proxy"
    raise ValueError(
        f"method.name = '{recipe.method_name}' trains on {lacks}, and data.train = '{train}' holds {has}; "
        f"name other data, such as {instead}, or one of the methods {', '.join(sorted(others))}"
    )


def check_attack(recipe: Recipe, method: Method) -> None:
    """ValueError if the attack does not suit the method or the way the step is computed."""
    attack, name = recipe.attack, recipe.method_name
    if method.flat_at_clean and not attack.steps:
        raise ValueError(
            f"attack.steps = 0 cannot be combined with method.name = '{name}', as configured: its loss has no gradient "
            "at the clean images, so nothing would be trained; use at least 1"
        )
    if method.flat_at_clean and attack.start == "zero":
        raise ValueError(
            f"attack.start = 'zero' cannot be combined with method.name = '{name}', as configured: its loss has no "
            "gradient at the clean images; use 'random'"
        )
    if not attack.share_clean_forward:
        return
    if not (isinstance(method, FromEmbeddings) and method.shares_clean):
        raise ValueError(
            f"attack.share_clean_forward: method.name = '{name}', as configured, has no clean forward pass to share; "
            "leave it out"
        )
    train = recipe.train
    others = {
        "train.compile": train.compile,
        "train.parallel = 'fsdp'": train.parallel == "fsdp",
        "train.batch_norm = 'update'": train.batch_norm == "update",
    }
    for key, there in others.items():
        if there:
            raise ValueError(
                f"attack.share_clean_forward cannot be combined with {key}; leave one of them out"
            )


def check_trains_only_the_model(recipe: Recipe, method: Method) -> None:
    """ValueError for a method with parameters of its own, which no optimiser would move."""
    for name, value in vars(method).items():
        if isinstance(value, nn.Module) and value is not method.model:
            has_own = any(parameter.requires_grad for parameter in value.parameters())
        else:
            has_own = isinstance(value, nn.Parameter) and value.requires_grad
        if has_own:
            raise ValueError(
                f"method.name = '{recipe.method_name}' has parameters of its own in `{name}`, and a run trains those "
                "of the model alone: freeze them with requires_grad_(False), or make them part of the model"
            )


def check_sizes(recipe: Recipe, method: Method, model: CLIP) -> None:
    """ValueError if the method or the model cannot take images of the sizes in `data.schedule`."""
    for side, _ in recipe.data.schedule or ():
        if (side, side) == model.image_size:
            continue
        if not method.any_size:
            raise ValueError(
                f"data.schedule: method.name = '{recipe.method_name}' takes images of the model's own size only; leave "
                "it out"
            )
        if recipe.train.parallel == "fsdp":
            raise ValueError("data.schedule cannot be combined with train.parallel = 'fsdp'; use 'ddp'")
        positions_at(model.visual, (side, side), model.name)


def check_split(recipe: Recipe, ranks: Ranks) -> None:
    """ValueError if the tower cannot be sharded over the ranks."""
    if ranks.size == 1:
        raise ValueError(
            "train.parallel = 'fsdp' splits a tower over several ranks, and this run has only one; start it with "
            "torchrun --nproc-per-node N -m advflyp train …"
        )
    if recipe.train.unfreeze != "vision":
        raise ValueError(
            "train.parallel = 'fsdp' splits the image tower only; set train.unfreeze = 'vision', or use 'ddp'"
        )


# What modules call the rate of their dropout: torch's, open_clip's of patches, timm's of paths, and attention's.
RATES = ("p", "prob", "drop_prob", "dropout", "attention_dropout")
# The table of a key, its name ("optim.lr"; several with spaces between them), why it changes nothing, and whether so.
Inert = tuple[Any, str, str, bool]


def without_effect(recipe: Recipe) -> list[str]:
    """A remark for each key that is set but changes nothing, because of the others.

    What is switched off as a whole, as by attack.steps = 0 or validate.set = "none", leaves the keys of its base recipe
    without effect, which is no news.
    """
    attack, optim, train, validate = recipe.attack, recipe.optim, recipe.train, recipe.validate
    inert: list[Inert] = [
        (attack, "attack.start", "attack.steps = 0", attack.steps == 0),
        (attack, "attack.overfitting_gap", "attack.steps is not 1", attack.steps != 1),
        (attack, "attack.overfitting_gap", "there is no validate.set", validate.set is None),
        (attack, "attack.overfitting_gap", "validate.attack = 'clean'", validate.attack == "clean"),
        (optim, "optim.momentum", "optim.name = 'adamw'", optim.name == "adamw"),
        (optim, "optim.beta2 optim.epsilon", "optim.name = 'sgd'", optim.name == "sgd"),
        (optim, "optim.decayed", "optim.weight_decay = 0", optim.weight_decay == 0),
        (optim, "optim.warmup_share", "optim.warmup_steps = 0", optim.warmup_steps == 0),
        (optim, "optim.warmup_steps", "optim.warmup_share = 0", optim.warmup_share == 0),
        (recipe.data, "data.also_share", "there is no data.also", recipe.data.also is None),
        (recipe.data, "data.text_cache", "train.deterministic = true", train.deterministic),
        (recipe.data, "data.text_cache", f"train.unfreeze = '{train.unfreeze}'", train.trains_texts),
        (train, "train.patience", "there is no validate.set", validate.set is None),
        *_inert_of_method(recipe),
    ]
    return _remarks(inert)


def without_effect_here(recipe: Recipe, method: Method, pairs: Pairs) -> list[str]:
    """As `without_effect`, because of the model and the data that the recipe names."""
    data, model, wanted = recipe.data, method.model, method.trains_on
    name = f"method.name = '{recipe.method_name}'"
    has_one_prompt = isinstance(pairs, LabelledBatches) and len(pairs.caption_templates) == 1
    used = model.net if recipe.train.trains_texts else model.visual
    is_constant = not any(map(_acts_in_training, used.modules()))
    # A run that validates may go on with two steps, which share nothing.
    shares = recipe.attack.share_clean_forward and recipe.validate.set is None
    replays = method.original is not None or not (recipe.attack.steps == 0 or shares)
    nothing = "neither an attack with passes of its own nor a frozen original is there to replay"
    inert: list[Inert] = [
        *((data, keys, why, True) for keys, why in unused_keys(pairs)),
        (data, "data.templates", f"{name} does not train on labels", wanted != "labelled"),
        (data, "data.text_cache", f"{name} uses no text", wanted == "images"),
        (data, "data.text_cache", "each class has one prompt, encoded once", has_one_prompt),
        (recipe.train, "train.graphs", nothing, not replays),
        (recipe.train, "train.batch_norm", f"{model.name} has no batch normalisation", is_constant),
    ]
    return _remarks(inert)


def _acts_in_training(part: nn.Module) -> bool:
    """Whether a module computes something else while statistics are updated: dropout, too, is active only then."""
    rates = (getattr(part, name, None) for name in RATES)
    return isinstance(part, _BatchNorm) or any(isinstance(rate, float) and rate > 0 for rate in rates)


def _inert_of_method(recipe: Recipe) -> list[Inert]:
    method, train = find_method(recipe.method_name)[0], recipe.train
    found = method.without_effect(
        recipe.method, attacks=recipe.attack.steps > 0, trains_texts=train.trains_texts
    )
    has_no_text = method.trains_on == "images" and train.trains_texts
    why = f"no loss of method.name = '{recipe.method_name}' reaches the text tower"
    return [
        *((recipe.method, keys, reason, True) for keys, reason in found),
        (train, "train.unfreeze", why, has_no_text),
    ]


def _remarks(inert: Iterable[Inert]) -> list[str]:
    found = {
        key: f"{key} has no effect here: {why}"
        for config, keys, why, applies in inert
        for key in keys.split()
        if applies and _is_set(config, key.partition(".")[2])
    }
    return list(found.values())


def _is_set(config: Any, name: str) -> bool:
    return getattr(config, name) != next(field.default for field in fields(config) if field.name == name)
