"""A disk on which something goes wrong: the process is killed or gets a signal, or there is no space, at an operation.

What Python itself does to files is watched: `open`, what is written through it, and the functions of `os`. Libraries
that write from C are not.
"""

import builtins
import errno
import gc
import io
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

# Functions of os that change something, with how many paths (or descriptors) they take first, and whether a full disk
# refuses them.
CHANGES = {
    "mkdir": (1, True), "rmdir": (1, False), "unlink": (1, False), "remove": (1, False), "truncate": (1, False),
    "rename": (2, False), "replace": (2, False), "link": (2, True), "symlink": (2, True), "fsync": (1, False),
    "fdatasync": (1, False), "ftruncate": (1, False), "write": (1, True), "pwrite": (1, True),
    "posix_fallocate": (1, True),
}  # fmt: skip


class Killed(BaseException):
    """What `kill -9` is to code: nothing runs after it that could change a file."""


class Disk:
    """What happens below a folder, and what goes wrong there.

    Args:
        root: The folder.
        fault: "kill": before operation `at` everything ends; of a write, half is done. "full": from `at` on whatever
            needs space is refused. Signals: the process gets the first one before operation `at`, the second one before
            the next. None: operations are only counted.
        at: The number of an operation, from 0.
    """

    def __init__(
        self,
        root: Path,
        fault: Literal["kill", "full"] | tuple[signal.Signals, ...] | None = None,
        at: int = 0,
    ) -> None:
        self.root = root.resolve()
        self.fault = fault
        self.at = at
        self.done: list[str] = []
        self.dead = False

    def holds(self, path: Any, folder: int | None = None) -> bool:
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        elif folder is not None:
            path = Path(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.root)

    def strikes(self, what: str, *, needs_space: bool) -> bool:
        """Note an operation; whether it is the one that goes wrong."""
        if self.dead:
            raise Killed
        number = len(self.done)
        self.done.append(what)
        if self.fault == "kill" and number == self.at:
            self.dead = True
            return True
        if isinstance(self.fault, tuple) and self.at <= number < self.at + len(self.fault):
            os.kill(os.getpid(), self.fault[number - self.at])
        return self.fault == "full" and number >= self.at and needs_space

    def fail(self, path: Any = None) -> None:
        if self.dead:
            raise Killed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([] if path is None else [path]))

    def operation(self, what: str, path: Any, *, needs_space: bool) -> None:
        if self.strikes(f"{what} {path}", needs_space=needs_space):
            self.fail(path if isinstance(path, str | bytes | os.PathLike) else None)


class _Raw(io.FileIO):
    """A file whose writes are operations of a disk."""

    disk: Disk

    def write(self, data: Any, /) -> int:
        whole = memoryview(data).cast("B")
        if self.disk.dead:
            return len(whole)  # of a buffer that is flushed as it is forgotten
        if self.disk.strikes(f"write {self.name}", needs_space=True):
            super().write(whole[: len(whole) // 2])
            self.disk.fail()
        return super().write(whole)

    def truncate(self, size: int | None = None, /) -> int:
        self.disk.operation("truncate", self.name, needs_space=False)
        return super().truncate(size)


def _opening(disk: Disk, real: Callable[..., Any]) -> Callable[..., Any]:
    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not disk.holds(file):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if not isinstance(file, int):
            disk.operation("open", file, needs_space=not os.path.exists(file))
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.disk = disk
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)

    return opened


def _changing(disk: Disk, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    paths, needs_space = CHANGES[name]

    def changed(*args: Any, **options: Any) -> Any:
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        if not any(disk.holds(path, folder) for path in args[:paths]):
            return real(*args, **options)
        if disk.strikes(f"{name} {args[0]}", needs_space=needs_space):
            if name == "write":
                real(args[0], args[1][: len(args[1]) // 2])
            disk.fail(None if isinstance(args[0], int) else args[0])
        return real(*args, **options)

    return changed


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Within the block, operations below the disk's folder are noted, and go wrong as it says."""
    with pytest.MonkeyPatch.context() as patch:
        real_open = os.open

        def os_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if changes and disk.holds(path, options.get("dir_fd")):
                disk.operation("os.open", path, needs_space=bool(flags & os.O_CREAT))
            return real_open(path, flags, *args, **options)

        opened = _opening(disk, builtins.open)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(tarfile, "bltn_open", opened)
        patch.setattr(os, "open", os_open)
        for name in CHANGES:
            patch.setattr(os, name, _changing(disk, name, getattr(os, name)))
        yield


def attempt(disk: Disk, call: Callable[[], Any]) -> Any:
    """What `call` returns; None where it was killed. Like a process that is gone, it holds no file and no lock then."""
    try:
        with watched(disk):
            return call()
    except Killed:
        pass
    gc.collect(1)
    return None


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file below `root` with what it holds, every folder with None."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }
