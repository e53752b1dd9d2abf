"""Training state on disk: written whole or not at all, the last few kept."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Recipe table `checkpoint`.

    every: steps between checkpoints; one is also written at the end of each epoch
    keep:  how many are kept
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"checkpoint.{name} must be at least 1, not {getattr(self, name)}")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` as step-00001000.pt (or so), then delete all but the last `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    draft = path.with_suffix(".partial")
    with open(draft, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`, on the CPU; only tensors and plain values are unpickled."""
    return torch.load(path, map_location="cpu", weights_only=True)
