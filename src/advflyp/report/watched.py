"""What the files of a run say while another process writes them. Without torch, whose import takes seconds."""

import fnmatch
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from advflyp.config import convert, read_toml
from advflyp.files import is_locked
from advflyp.training.runlog import METRICS_FILE, read_metrics

# Names of `training`, whose modules import torch; a test compares them.
RECIPE_FILE = "recipe.toml"
CHECKPOINTS = "checkpoints"
LOCK_FILE = ".lock"

# Lines of metrics by which the time to go is judged.
RECENT = 60

# What of a recipe is shown or computed with; other keys may be anything.
SHOWN_KEYS: dict[str, Any] = {
    "attack": {"eps": float, "steps": int, "norm": str},
    "data": {"batch_size": int, "train": str, "also": str},
    "method": {"name": str},
    "model": {"name": str},
    "optim": {"lr": float, "name": str},
    "train": {"epochs": int, "patience": int, "seed": int},
}
# Of a line of training.
NEEDED = {"of", "epoch", "seen", "loss", "pairs_per_second", "memory_gb"}

Line = Mapping[str, Any]


class Lock:
    """Whether a process holds the lock of a run.

    The kernel's list, /proc/locks, would disturb nobody, but it lacks other machines and other containers, and on
    overlayfs and btrfs its numbers are not those of `stat`. So the lock is asked for, shared and without waiting:
    while a run has it, this takes nothing. Where it is free, a run that begins within these microseconds would be
    refused; therefore it is asked for again only when the file has changed, as every run that takes the lock makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.free: tuple[int, int, int] | None = None

    def held(self) -> bool:
        try:
            file = open(self.path, "rb")  # noqa: SIM115, closed below
        except FileNotFoundError:
            return False
        with file:
            status = os.fstat(file.fileno())
            mark = (status.st_ino, status.st_size, status.st_mtime_ns)
            if mark == self.free:
                return False
            if is_locked(file):
                return True
            self.free = mark
            return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of a run at one moment.

    recipe:     as nested tables
    lines:      of metrics.jsonl, of every kind
    alive:      a process holds the lock
    process:    its number on its machine, as it wrote it
    written:    seconds since metrics.jsonl was written, None where there is none
    checkpoint: step and seconds since it was written, None where there is none
    """

    folder: Path
    recipe: Mapping[str, Any]
    lines: Sequence[Line]
    alive: bool
    process: str
    written: float | None
    checkpoint: tuple[int, float] | None

    def of(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]

    def key(self, dotted: str) -> Any:
        """A value of the recipe; None where it has none."""
        table, name = dotted.split(".")
        return self.recipe.get(table, {}).get(name)

    @property
    def finished(self) -> bool:
        """Nothing is left to do, as far as the files say: a last step, a patience used up, a last epoch cut short."""
        train, validated, data = (self.of(kind) for kind in ("train", "validate", "data"))
        if self.alive or self.checkpoint is None or not self.lines:
            return False
        step = self.checkpoint[0]
        if step < self.lines[-1]["step"]:
            return False
        if self.key("validate.set") is not None and not (validated and validated[-1]["step"] == step):
            return False
        if train and step >= train[-1]["of"]:
            return True
        gains = [line["best"] for line in reversed(validated)]
        patience = self.key("train.patience")
        if patience is not None and True in gains and gains.index(True) >= patience:
            return True
        # Where samples are left out, an epoch has fewer steps than was thought.
        return bool(data) and (data[-1]["step"], data[-1]["epoch"] + 1) == (step, self.key("train.epochs"))

    @property
    def seconds_per_step(self) -> float | None:
        """Of the recent steps, with the validations and checkpoints between them."""
        train = self.of("train")[-RECENT:]
        spans = [(b["step"] - a["step"], b["time"] - a["time"]) for a, b in pairwise(train)]
        # Where a run was resumed, "time" begins at 0 again.
        forward = [(steps, seconds) for steps, seconds in spans if steps > 0 and seconds > 0]
        if forward:
            return sum(seconds for _, seconds in forward) / sum(steps for steps, _ in forward)
        pairs, speed = self.key("data.batch_size"), train[-1].get("pairs_per_second") if train else None
        return pairs / speed if pairs and speed else None


def look(folder: Path, lock: Lock) -> Run:
    """What the files of a run say now; ValueError where there is no run, or one that cannot be read."""
    try:
        if not (folder / RECIPE_FILE).is_file():
            others = sorted(path.parent for path in folder.glob(f"*/{RECIPE_FILE}"))
            hint = (
                f"it is a folder of runs; name one of them: {', '.join(str(path) for path in others[:8])}"
                if others
                else "`advflyp train` makes the folder when it has loaded model and data"
            )
            raise ValueError(f"there is no run at {folder}; {hint}")
        run = Run(
            folder=folder,
            # Before the metrics: what a run wrote before it ended is then seen where it is seen to have ended.
            alive=lock.held(),
            process=lock.path.read_text(encoding="utf-8").strip() if lock.path.exists() else "",
            recipe=read_recipe_file(folder / RECIPE_FILE),
            lines=read_metrics(folder),
            written=_age(folder / METRICS_FILE),
            checkpoint=_last_checkpoint(folder / CHECKPOINTS),
        )
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None
    if any(not line.keys() >= NEEDED for line in run.of("train")[-1:]):
        raise ValueError(f"{folder} is of an older version of advflyp; `advflyp report {folder}` shows it")
    return run


def read_recipe_file(path: Path) -> dict[str, dict[str, Any]]:
    """A recipe as nested tables, perhaps of another version; ValueError where it is none."""
    tree = read_toml(path)
    for name, table in tree.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: '{name}' must be a table, [{name}]")
        hints = SHOWN_KEYS.get(name, {})
        table |= {
            key: convert(table[key], hint, f"{path}: {name}.{key}")
            for key, hint in hints.items()
            if key in table
        }
    return tree


def _last_checkpoint(folder: Path) -> tuple[int, float] | None:
    try:
        names = os.listdir(folder)  # Path.glob finds nothing where it may not look
    except FileNotFoundError:
        return None
    for name in sorted(fnmatch.filter(names, "step-*.pt"), reverse=True):
        age = _age(folder / name)
        if age is not None:
            return int(name.removesuffix(".pt").split("-")[1]), age
    return None


def _age(path: Path) -> float | None:
    """Seconds since it was written; None where it is gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None
