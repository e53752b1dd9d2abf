"""A recipe: everything that defines a training run. One TOML table for each part of the program."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from advflyp.attack.pgd import AttackConfig
from advflyp.config import as_tree, build, override, read_toml, unknown
from advflyp.data.pairs import DataConfig
from advflyp.evaluation.attacks import Attack
from advflyp.method import method_config
from advflyp.model.clip import Precision
from advflyp.model.hub import ModelConfig
from advflyp.training.checkpoint import CheckpointConfig
from advflyp.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Recipe table `train`.

    epochs, max_steps: whichever ends first
    precision:     "fp32" or "bf16" (weights, pixels, patch embedding and losses stay float32)
    seed:          of data order, captions and perturbations
    device:        "auto", "cpu" or "cuda"
    deterministic: only bit-reproducible operations and no text cache: a resumed run is bit-identical (CPU)
    patience:      stop after so many validations without a better one; none never stops early
    unfreeze:      what is trained: "vision" (the paper's), "vision+text", or "all" (also the logit scale and bias)
    batch_norm:    "frozen" keeps the statistics of pretraining, "update" goes on estimating them
    """

    epochs: int = 1
    max_steps: int | None = None
    precision: Precision = "fp32"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    patience: int | None = None
    unfreeze: Literal["vision", "vision+text", "all"] = "vision"
    batch_norm: Literal["frozen", "update"] = "frozen"

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name} must be at least 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Recipe table `validate`: what decides which weights are the best.

    set:    a labelled set, measured at the end of each epoch; none keeps the last weights
    limit:  so many of its images, classes evenly represented
    attack: "pgd10", "cw10", … at the training attack's ε and norm, or "clean"
    every:  steps between validations besides those at the end of an epoch
    """

    set: str | None = None
    limit: int | None = None
    attack: str = "pgd10"
    every: int | None = None

    def __post_init__(self) -> None:
        Attack.parse(self.attack)
        for name in ("limit", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"validate.{name} must be at least 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The resolved recipe: one config a table."""

    model: ModelConfig
    data: DataConfig
    method: Any  # the config class of the method called `method_name`
    method_name: str
    attack: AttackConfig
    optim: OptimConfig
    train: TrainConfig
    validate: ValidateConfig
    checkpoint: CheckpointConfig

    def tree(self) -> dict[str, Any]:
        """The recipe as nested tables, defaults filled in; `read_recipe` of it is the same recipe."""
        tree = {name: as_tree(getattr(self, name)) for name in [*TABLES, "method"]}
        tree["method"] = {"name": self.method_name, **tree["method"]}
        return tree

    def toml(self) -> str:
        return tomli_w.dumps(self.tree())


TABLES: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "attack": AttackConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "validate": ValidateConfig,
    "checkpoint": CheckpointConfig,
}


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe file at `path` with dotted `overrides` ("optim.lr") on top.

    ValueError, naming the key, for an unreadable file, an unknown key, a wrong type or an impossible value.
    """
    tree = override(read_toml(path), overrides or {})
    unknown(tree, [*TABLES, "method"])
    for name, table in tree.items():
        if not isinstance(table, dict):
            raise ValueError(f"'{name}' must be a table in the recipe: [{name}]")
    parts = {name: build(cls, tree.get(name, {}), at=f"{name}.") for name, cls in TABLES.items()}
    method_name, method = method_config(tree.get("method", {}))
    return Recipe(method_name=method_name, method=method, **parts)
