"""A recipe: everything that defines a training run. One TOML table for each part of the program."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w

from advflyp.attack.names import read_attack_name
from advflyp.attack.pgd import AttackConfig
from advflyp.config import Mistakes, as_tree, at_least, build, override, unknown
from advflyp.data.config import DataConfig
from advflyp.documents import parse_toml
from advflyp.method import method_config
from advflyp.model.load import ModelConfig
from advflyp.model.precision import check_precision
from advflyp.recipes import read_recipe_tree
from advflyp.training.checkpoint import CheckpointConfig
from advflyp.training.optim import OptimConfig
from advflyp.training.runlog import LogConfig
from advflyp.training.unfreeze import first_blocks


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Recipe table `train`.

    Attributes:
        epochs, max_steps: Length of the run, whichever ends first.
        precision: "fp32", "bf16" (weights, pixels, patch embedding and losses stay float32), or "auto": bf16 if it is
            faster on the device. A resumed run keeps the precision it was started with.
        seed: Random seed of data order, captions and perturbations.
        device: "auto", "cpu" or "cuda".
        deterministic: Use only deterministic operations and no text cache: a resumed run is bit-identical (CPU).
        patience: Stop after this many validations without improvement; none never stops early.
        unfreeze: What to train: "vision" (as in the paper), "vision[:4]" (a ViT's patch embedding and first 4 blocks),
            "vision+text", or "all" (also the logit scale and bias).
        batch_norm: "frozen" keeps the pretrained statistics, "update" continues to update them; dropout, if the
            trained towers have any, is active with "update" only.
        micro_batch: Images that go through the tower at a time, on each rank, for batches larger than memory.
            Activations are computed twice; the result is that of the whole batch. "auto": on an accelerator, as many
            as fit, tried when the run begins.
        activation_checkpointing: Recompute activations within the blocks of the image tower instead of keeping them;
            for large towers.
        parallel: With several ranks: "ddp", a whole model on each, or "fsdp", the image tower's weights, gradients and
            optimiser state sharded over them (FSDP2), for towers that do not fit.
        compile: Run the image tower through torch.compile.
        graphs: Replay the attack's passes of the image tower, and those of the frozen original, as CUDA graphs; the
            result is the same.
    """

    epochs: int = 1
    max_steps: int | None = None
    precision: str = "auto"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    patience: int | None = None
    unfreeze: str = "vision"
    batch_norm: Literal["frozen", "update"] = "frozen"
    micro_batch: int | Literal["auto"] | None = None
    activation_checkpointing: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    graphs: bool = False

    @property
    def trains_texts(self) -> bool:
        """Whether the text tower is trained."""
        return self.unfreeze in ("vision+text", "all")

    def __post_init__(self) -> None:
        check_precision(self.precision, "train.precision")
        first_blocks(self.unfreeze)
        at_least(1, self, "train.", "epochs", "max_steps", "patience", "micro_batch")
        if self.micro_batch is not None and self.batch_norm == "update":
            raise ValueError(
                "train.micro_batch cannot be combined with train.batch_norm = 'update': statistics are those of a "
                "whole batch; leave one of them out"
            )
        if self.activation_checkpointing and self.batch_norm == "update":
            raise ValueError(
                "train.activation_checkpointing cannot be combined with train.batch_norm = 'update': recomputed blocks "
                "would count a batch twice; leave one of them out"
            )
        if self.micro_batch is not None and self.parallel == "fsdp":
            raise ValueError(
                "train.micro_batch cannot be combined with train.parallel = 'fsdp'; use "
                "train.activation_checkpointing, or more ranks"
            )
        others = {
            "train.compile": self.compile,
            "train.micro_batch": self.micro_batch is not None,
            "train.activation_checkpointing": self.activation_checkpointing,
            "train.parallel = 'fsdp'": self.parallel == "fsdp",
        }
        if self.graphs and (wrong := [key for key, there in others.items() if there]):
            raise ValueError(f"train.graphs cannot be combined with {wrong[0]}; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Recipe table `validate`: how the best weights are chosen.

    Attributes:
        set: A labelled dataset, evaluated at the end of each epoch; none keeps the last weights.
        limit: Use N of its images, class-balanced.
        attack: "pgd10", "cw10", … at the training attack's ε and norm, or "clean".
        every: Steps between validations, in addition to those at the end of an epoch.
        epochs: Validate at the end of every N-th epoch, by default of every one; raise it if epochs are short. The
            end of the run is always validated.
    """

    set: str | None = None
    limit: int | None = None
    attack: str = "pgd10"
    every: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        read_attack_name(self.attack)
        at_least(1, self, "validate.", "limit", "every", "epochs")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The resolved recipe: one config per table."""

    model: ModelConfig
    data: DataConfig
    method: Any  # the config class of the method called `method_name`
    method_name: str
    attack: AttackConfig
    optim: OptimConfig
    train: TrainConfig
    validate: ValidateConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    def tree(self) -> dict[str, Any]:
        """The recipe as nested tables, defaults filled in; reading it back gives the same recipe."""
        tree = {name: as_tree(getattr(self, name)) for name in [*TABLES, "method"]}
        tree["method"] = {"name": self.method_name, **tree["method"]}
        return tree

    def toml(self) -> str:
        return tomli_w.dumps(self.tree())


# The dataclass of each table but "method".
TABLES: dict[str, type] = {
    name: hint for name, hint in get_type_hints(Recipe).items() if name not in ("method", "method_name")
}

# What a resumed run may change: where, how fast and how loudly it computes, not what.
CHANGEABLE = (
    "log", "checkpoint", "data.workers", "data.loader", "data.text_cache", "train.micro_batch",
    "train.activation_checkpointing", "train.compile", "train.graphs", "train.device",
)  # fmt: skip


def difference(old: str, new: str) -> str:
    """Keys that differ between two resolved recipes (TOML), except `CHANGEABLE` ones, in words; empty if none do."""
    before, after = (leaves(parse_toml(text)) for text in (old, new))
    changed = [
        f"{key} was {_shown(before.get(key))}, is {_shown(after.get(key))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not key.startswith(CHANGEABLE)
    ]
    return "; ".join(changed)


def leaves(tree: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe's tree by their dotted keys."""
    return {f"{table}.{name}": value for table, values in tree.items() for name, value in values.items()}


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def read_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe file at `path`, or the one of that name that comes with the package, with dotted `overrides` on top.

    ValueError, naming the key, for an unreadable file, an unknown key, a wrong type or an impossible value.
    """
    tree = override(read_recipe_tree(path), overrides or {})
    unknown(tree, [*TABLES, "method"])
    for name, table in tree.items():
        if not isinstance(table, dict):
            raise ValueError(f"'{name}' must be a table in the recipe: [{name}]")
    parts: dict[str, Any] = {}
    mistakes = Mistakes()
    for name, cls in TABLES.items():
        with mistakes.noted():
            parts[name] = build(cls, tree.get(name, {}), at=f"{name}.")
    with mistakes.noted():
        parts["method_name"], parts["method"] = method_config(tree.get("method", {}))
    mistakes.end()
    return Recipe(**parts)
