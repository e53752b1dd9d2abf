"""Everything is written through here: whole files and folders, lines behind lines, locks, hashes.

A file or folder is written under a name of its own, `.NAME.RANDOM.partial`, and takes its place when it is complete:
whenever a process is killed or a disk is full, what was there before is whole. A draft is locked while its process
lives; what a killed one left is removed by the next that writes the same file or folder, and no other is touched.

Locks are `flock`s, which the system takes back when a process ends, however it ends. filelock would not do: the files
with results are locked themselves, and a lock's file is handed to a child process.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from advflyp.errors import naming

DRAFT = re.compile(r"\..*\.[0-9a-f]{8}\.partial", re.DOTALL)
# Of a name, so that a draft's is no longer than a file system takes.
LETTERS = 50
# How often a folder is made that others remove at the same time.
ATTEMPTS = 100
# Of Linux, from fcntl.h and stdio.h.
_CURRENT_FOLDER, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
# What file systems say that have no locks, and those that cannot rename as asked.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_NO_RENAME = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class InUse(ValueError):
    """Another process holds a lock; says which."""


@contextmanager
def write_atomically(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into that becomes `path` when the block ends, and vanishes if it fails.

    Args:
        path: Its folder is made if it is not there. A link stays: the file that it names is replaced.
        replace: False for a `FileExistsError` where there is a file by then.
    """
    path = _real(path)
    _make(path.parent)
    with naming(path), draft_file(path.parent, path.name) as file:
        yield file
        publish(file, path, replace=replace)


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, whole or not at all; see `write_atomically`."""
    with write_atomically(path) as file:
        file.write(text.encode())


@contextmanager
def draft_file(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """A new file in `folder`, for `publish`; it is gone when the block ends, unless it was published.

    Args:
        folder: A folder that is there.
        name: What drafts of the same thing have in common: those that killed processes left are removed.
    """
    _remove_abandoned(folder, name)
    with _new_draft(folder, name) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def publish(file: IO[bytes], path: Path, *, replace: bool = True) -> None:
    """Give a draft the name `path`, once its contents are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    if replace:
        os.replace(file.name, path)
    else:
        move(Path(file.name), path)
    _sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder in a file system; `FileExistsError` where there is something at `target`."""
    if not _renamed(source, target, _RENAME_NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A new folder, for `publish_folder`, that is to become `folder`; it is gone when the block ends.

    Folders that it needs are made, and removed if nothing comes of them.

    Raises:
        ValueError: Where it could not take the place of `folder`, which is a mount point or in a folder that may not
            be written to.
    """
    folder = _real(folder)
    near, there = folder.parent, folder.is_dir()
    if there and (folder.stat().st_dev != near.stat().st_dev or not os.access(near, os.W_OK | os.X_OK)):
        raise ValueError(f"{folder} is a folder that cannot be replaced as a whole; name a new folder in it")
    made = [parent for parent in folder.parents if not parent.exists()]
    _make(near)
    recover_folder(folder)
    while True:
        work = _draft_name(near, folder.name)
        with naming(folder, instead_of=work):
            lock = try_open_locked(work / "lock")
        if lock is not None:
            break  # else another process has just taken it for abandoned
    with lock:
        try:
            draft = work / folder.name
            draft.mkdir()
            with naming(folder, instead_of=work):
                yield draft
        finally:
            _clear(work)
            for parent in made:
                with suppress(OSError):  # it is full
                    parent.rmdir()


def publish_folder(draft: Path, folder: Path, *, replace: bool = False) -> None:
    """Give the draft of a folder its name, once its contents are on the disk.

    Args:
        draft: What `draft_folder(folder)` gave.
        folder: Where the folder goes.
        replace: Whether it takes the place of a folder with contents. Where the system can exchange two folders, there
            is the old or the new one at every moment. Elsewhere there is none for an instant, and where the process is
            killed then, `recover_folder` puts the new one there.

    Raises:
        ValueError: Without `replace`, where there is a file or a folder with contents by then.
    """
    folder = _real(folder)
    for path in draft.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if not (replace and folder.is_dir()):
        try:
            os.rename(draft, folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise ValueError(f"{folder} is there already; name a new folder") from None
            raise
    elif not _renamed(draft, folder, _RENAME_EXCHANGE):
        os.rename(folder, draft.with_name("old"))
        os.rename(draft, folder)
    _sync(folder.parent)


def recover_folder(folder: Path) -> None:
    """Finish what a killed process has begun: put `folder` back if it is missing, remove abandoned drafts of it."""
    folder = _real(folder)
    if folder.parent.is_dir():
        _remove_abandoned(folder.parent, folder.name)


def names_in(folder: Path) -> set[str]:
    """What is in a folder, but for drafts; nothing where there is no folder."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not DRAFT.fullmatch(path.name)}


def open_locked(path: Path) -> IO[bytes]:
    """The file, opened to read and to append and locked until it is closed; another process's lock is waited for.

    It and its folder are made if they are not there.
    """
    file = _open_locked(path, fcntl.LOCK_EX)
    assert file is not None
    return file


def try_open_locked(path: Path) -> IO[bytes] | None:
    """`open_locked`, or None where another process has the lock."""
    return _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def append(file: IO[bytes], data: bytes) -> int:
    """Write at the end of a file of `open_locked`, all or nothing.

    Returns:
        The size of the file then.

    Raises:
        OSError: It cannot be written; names the file.
    """
    handle = file.fileno()
    end = os.fstat(handle).st_size
    left = memoryview(data)
    try:
        # Past the file's buffer: what a full disk refuses would be written once more when the file is closed.
        with naming(file.name):
            while left:
                left = left[os.write(handle, left) :]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(handle, end)
        raise
    return file.seek(0, os.SEEK_END)


def lock(path: Path, *, wait: float = 0) -> IO[bytes]:
    """A lock that one process has at a time, until it closes it (by a `with`) or ends.

    Args:
        path: A file for it, which stays and says who has the lock.
        wait: Seconds to wait for another process to end; `math.inf` for however long it takes.

    Raises:
        InUse: Where another process has it.
    """
    end = time.monotonic() + wait
    while (file := try_lock(path)) is None:
        if time.monotonic() >= end:
            raise InUse(
                f"{holder(path)} is at work on {path.parent}; wait for its end, or name another folder"
            )
        time.sleep(0.1)
    return file


def try_lock(path: Path) -> IO[bytes] | None:
    """`lock`, or None where another process has it."""
    file = try_open_locked(path)
    if file is not None:
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n".encode())
        file.flush()
    return file


def holder(path: Path) -> str:
    """Who has a lock, as it wrote itself into it: "process 1234 on node7"."""
    who = path.read_text(encoding="utf-8").strip()
    return f"process {who}" if who else "another process"


def cache_folder() -> Path:
    """Where advflyp keeps what it can make or fetch again, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advflyp"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _real(path: Path) -> Path:
    # `resolve` raises an error of its own where links lead in a circle.
    return Path(os.path.realpath(path))


def _draft_name(folder: Path, name: str) -> Path:
    return folder / f".{name[:LETTERS]}.{secrets.token_hex(4)}.partial"


def _new_draft(folder: Path, name: str) -> IO[bytes]:
    while True:
        path = _draft_name(folder, name)
        with naming(folder / name, instead_of=path):
            file = open(path, "x+b")  # noqa: SIM115, the caller closes it
        # Another process may have taken it for abandoned before it was locked.
        if _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and _is_at(file, path):
            return file
        file.close()
        path.unlink(missing_ok=True)


def _remove_abandoned(folder: Path, name: str) -> None:
    """Remove the drafts of `name` whose processes have ended."""
    ours = re.compile(rf"\.{re.escape(name[:LETTERS])}\.[0-9a-f]{{8}}\.partial")
    for path in [path for path in folder.iterdir() if ours.fullmatch(path.name)]:
        # Its process has a lock on it, or removes it now, or is another user's.
        with suppress(OSError):
            if path.is_dir() and not (path / "lock").exists():
                path.rmdir()  # who has just made it will find it gone
                continue
            with open(path / "lock" if path.is_dir() else path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not path.is_dir():
                    path.unlink()
                    continue
                if (path / "old").exists() and not (folder / name).exists():
                    os.rename(path / name, folder / name)
                _clear(path)


def _clear(work: Path) -> None:
    # The lock last: without it, what is left could not be told from a draft that is being made.
    for path in work.iterdir():
        if path.name != "lock":
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)


def _open_locked(path: Path, how: int) -> IO[bytes] | None:
    while True:
        file = _opened(path)
        if not _locked(file, how):
            file.close()
            return None
        if _is_at(file, path):
            return file
        # Whoever had the lock has removed the file.
        file.close()


def _opened(path: Path) -> IO[bytes]:
    for _ in range(ATTEMPTS):
        # Another process may remove the folder while it is empty.
        with suppress(FileNotFoundError, FileExistsError):
            _make(path.parent)
            return open(path, "a+b")
    _make(path.parent)
    return open(path, "a+b")


def _locked(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {file.name} has no locks: let one process at a time write there",
            stacklevel=2,
        )
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _renamed(one: Path, other: Path, how: int) -> bool:
    """Rename as Linux's renameat2 can; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc's, from 2.28
    if rename is None:
        return False
    paths = [os.fsencode(path) for path in (one, other)]
    if rename(_CURRENT_FOLDER, paths[0], _CURRENT_FOLDER, paths[1], how) == 0:
        return True
    error = ctypes.get_errno()
    if error in _NO_RENAME:
        return False
    raise OSError(error, os.strerror(error), str(other))


def _make(folder: Path) -> None:
    # A file in its place is found by what comes next, which says so better.
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)


def _sync(folder: Path) -> None:
    """The names in a folder on the disk, where the file system can: what they name is there already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
