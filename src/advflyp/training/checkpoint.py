"""Checkpoints: written whole or not at all, each with a hash in its name; the last few are kept."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from advflyp.config import at_least
from advflyp.errors import first_line
from advflyp.files import draft_file, file_sha256, publish

HEX = 16
CHECKPOINT = re.compile(r"step-\d+(-[0-9a-f]+)?\.pt")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Recipe table `checkpoint`.

    Attributes:
        every: Steps between checkpoints, in addition to those at the end of an epoch.
        epochs: Save one at the end of every N-th epoch, by default of every one; raise it if epochs are short.
        keep: Number of checkpoints to keep.
        last: Also save the weights of the last step as a model, in last/ beside best/.
    """

    every: int = 1000
    epochs: int | None = None
    keep: int = 2
    last: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "checkpoint.", "every", "epochs", "keep")


class Damaged(ValueError):
    """A checkpoint that does not match its checksum or cannot be read."""


class _Hashed:
    """A file to write to, which also hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.file.write(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write `state` as, for example, step-00001000-HASH.pt, then delete all but the last `keep` checkpoints.

    The hash is in the name, as in torch.hub, so that a single rename publishes the file with its hash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with draft_file(folder, "step") as file:
        hashed = _Hashed(file)
        torch.save(state, hashed)  # type: ignore[arg-type]
        path = folder / f"step-{step:08d}-{hashed.digest.hexdigest()[:HEX]}.pt"
        publish(file, path)
    for other in checkpoints(folder):
        # Left from steps that this run repeats: damaged, or written on a signal.
        if step_of(other) >= step and other != path:
            other.unlink()
    delete_old(folder, step, keep=keep)
    return path


def delete_old(folder: Path, step: int, *, keep: int) -> None:
    """Delete all but the last `keep` of the checkpoints up to `step`."""
    for path in [path for path in checkpoints(folder) if step_of(path) <= step][:-keep]:
        path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; none if the folder does not exist.

    Raises:
        ValueError: The folder cannot be listed, which `Path.glob` would hide by returning nothing.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"cannot list the checkpoints in {folder}: {error.strerror}") from None
    return sorted(folder / name for name in names if CHECKPOINT.fullmatch(name))


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.split("-")[1].removesuffix(".pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`, on the CPU; only tensors and plain values are unpickled.

    `Damaged` if the file is not the one that was written.
    """
    if file_sha256(path)[:HEX] != path.stem.split("-")[-1]:
        raise Damaged(f"{path} is damaged: its checksum does not match its name")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle may raise anything
        raise Damaged(f"{path} cannot be read as a checkpoint: {first_line(error)[:200]}") from None


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's default generators, on the CPU and on the device in use, for `set_random_state`."""
    state = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng_cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned; checkpoints from another device or an older version may lack part of it."""
    torch.set_rng_state(state["rng"])
    if device.type == "cuda" and "rng_cuda" in state:
        torch.cuda.set_rng_state(state["rng_cuda"], device)


def load_last(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The last undamaged checkpoint, and what is wrong with those after it; `Damaged` if there is none."""
    wrong: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path), wrong
        except Damaged as error:
            wrong.append(str(error))
    raise Damaged(f"no checkpoint in {folder} is intact: " + "; ".join(wrong))
