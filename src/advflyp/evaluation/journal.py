"""What is known of a measurement in work: an interrupted one goes on from its last finished batch."""

import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np


class Journal:
    """Arrays in one file, which is complete at every moment; `beside` says where measurements have theirs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._draft = path.with_suffix(".partial")

    @classmethod
    def beside(cls, store: Path, name: str) -> "Journal":
        """That of the measurement `name` which will go to `store`: results.unfinished/NAME.npz."""
        return cls(store.with_suffix(".unfinished") / f"{name}.npz")

    def read(self) -> dict[str, np.ndarray]:
        """What `write` was last given; nothing where there is no file, or none that can be read."""
        try:
            with open(self.path, "rb") as file, np.load(file) as saved:
                return dict(saved)
        except (FileNotFoundError, zipfile.BadZipFile, EOFError, ValueError):
            return {}

    def write(self, **arrays: Any) -> None:
        """Replace what is stored by these arrays, numpy's or torch's (on the CPU)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._draft, "wb") as file:
            np.savez(file, **arrays)
        self._draft.replace(self.path)

    def remove(self) -> None:
        """The measurement is stored: forget it, and the folder with the last one."""
        for path in (self.path, self._draft):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or others are in work
            self.path.parent.rmdir()
