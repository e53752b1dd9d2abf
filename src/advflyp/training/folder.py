"""The folder of a run: its files, whether it can take a run, and the lock that keeps other processes out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from advflyp.files import lock, names_in, recover_folder, write_text
from advflyp.model.folder import BEST, LAST, check_replaceable
from advflyp.training.checkpoint import checkpoints, step_of
from advflyp.training.runlog import METRICS_FILE

RECIPE_FILE = "recipe.toml"
CHECKPOINTS = "checkpoints"
LOCK_FILE = ".lock"


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that cannot take this run, before anything is loaded or written.

    Raises:
        ValueError: It holds something else, another run or, if `resume`, a run without its checkpoints; or it cannot
            be written to.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the run")
    saved = checkpoints(out / CHECKPOINTS)
    metrics = out / METRICS_FILE
    for name in (BEST, LAST):
        check_replaceable(out / name)
    # The first checkpoint is written before the first line.
    if resume and not saved and ((out / BEST).exists() or (metrics.exists() and metrics.stat().st_size)):
        raise ValueError(
            f"{out} holds the results of a run whose checkpoints are gone, so it cannot be continued; put "
            f"{out / CHECKPOINTS} back, or name another folder"
        )
    # A run that ended before its first step, for lack of data or memory, has nothing to lose and may begin again.
    if not resume and (any(map(step_of, saved)) or (out / BEST).exists()):
        raise ValueError(f"{out} holds another run; continue it with --resume or name another folder")
    # Files of a run that died before its first checkpoint may be overwritten. The lock is the first of them.
    ours = {RECIPE_FILE, METRICS_FILE, CHECKPOINTS, LOCK_FILE, "tensorboard"}
    names = names_in(out)
    if not saved and (names - ours - {BEST, LAST} or (names and LOCK_FILE not in names)):
        raise ValueError(f"{out} is not empty; name a new folder for the run")
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"no permission to write to {parent}; name another folder for the run")


class RunFolder:
    """The folder of a run, which one process writes to.

    Attributes:
        path: The folder.
        recipe: The resolved recipe.
        checkpoints: The folder with the checkpoints.
        best: The folder with the best weights.
        last: The folder with the weights of the last step, if the recipe keeps them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / RECIPE_FILE
        self.checkpoints = path / CHECKPOINTS
        self.best = path / BEST
        self.last = path / LAST
        self._lock: IO[bytes] | None = None

    def claim(self, resume: bool) -> None:
        """Check the folder, and lock it if it exists; ValueError if it cannot take the run."""
        check_folder(self.path, resume)
        if self.path.is_dir():
            with self._writing():
                self._lock = lock(self.path / LOCK_FILE)

    def begin(self, recipe: str) -> None:
        """Make and lock the folder, and write the resolved recipe into it."""
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = lock(self.path / LOCK_FILE)
            for folder in (self.best, self.last):
                recover_folder(folder)
            write_text(self.recipe, recipe)

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"cannot write to {self.path}: {error.strerror}") from None

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return checkpoints(self.checkpoints)

    def last_good(self) -> str:
        """The end of a message about a failure: which checkpoint is the last good one."""
        try:
            saved = self.saved()
        except ValueError as error:
            return f"Which checkpoint is the last good one is unknown: {error}."
        if not saved:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is that of step {step_of(saved[-1])}."
