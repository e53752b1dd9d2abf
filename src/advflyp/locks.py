"""Locks between processes that work on one folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def take(path: Path, *, wait: bool) -> TextIO | None:
    """The lock, held as long as the file is open; None where another process has it and is not waited for.

    The system lets go of it when a process dies, however it dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115, open as long as the lock is held
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock, until the end of the block."""
    file = take(path, wait=wait)
    yield file is not None
    if file is not None:
        file.close()
