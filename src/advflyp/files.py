"""All writing goes through this module: whole files and folders, appended lines, locks, hashes.

A file or folder is first written as a draft, `.NAME.RANDOM.partial`, and takes its place when it is complete: if the
process is killed or the disk fills up, what was there before is intact. A draft is locked while its process lives; the
draft of a killed process is removed by the next one that writes the same file or folder. Other drafts are not touched.

Locks are `flock`s, which the system releases when a process ends, however it ends. The filelock package does not fit:
result files are locked themselves, and a lock's file is handed to a child process.
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
# Characters of a name that its draft's name keeps, so that it is not too long for the file system.
LETTERS = 50
# Attempts to make a folder that other processes may be removing.
ATTEMPTS = 100
# Constants of Linux, from fcntl.h and stdio.h.
_CURRENT_FOLDER, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2
# Errors of file systems without locks, and of those that cannot rename as asked.
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
_NO_RENAME = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class InUse(ValueError):
    """Another process holds a lock; the message says which."""


@contextmanager
def write_atomically(path: Path, *, replace: bool = True) -> Iterator[IO[bytes]]:
    """A file to write into that becomes `path` when the block ends, and vanishes if it fails.

    Args:
        path: Its folder is made if missing. A symbolic link stays; the file that it points to is replaced.
        replace: If False, `FileExistsError` if the file exists by then.
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
    """A new file in `folder`, for `publish`; it is deleted when the block ends, unless it was published.

    Args:
        folder: An existing folder.
        name: The name to be published; drafts of it that killed processes left are removed.
    """
    _remove_abandoned(folder, name)
    with _new_draft(folder, name) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def publish(file: IO[bytes], path: Path, *, replace: bool = True) -> None:
    """Give a draft the name `path`, once its contents are on disk."""
    file.flush()
    os.fsync(file.fileno())
    if replace:
        os.replace(file.name, path)
    else:
        move(Path(file.name), path)
    _sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder within a file system; `FileExistsError` if `target` exists."""
    if not _renamed(source, target, _RENAME_NOREPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)


@contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """A new folder, for `publish_folder`, that will become `folder`; it is deleted when the block ends.

    Missing parent folders are made, and removed again if they stay empty.

    Raises:
        ValueError: If `folder` cannot be replaced, because it is a mount point or in a folder that may not be written
            to.
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
                with suppress(OSError):  # it is not empty
                    parent.rmdir()


def publish_folder(draft: Path, folder: Path, *, replace: bool = False) -> None:
    """Give the draft of a folder its name, once its contents are on disk.

    Args:
        draft: The folder that `draft_folder(folder)` yielded.
        folder: Its final place.
        replace: Whether to replace a folder that is not empty. If the system can exchange two folders, the old or the
            new one is there at every moment. Otherwise there is none for an instant; if the process is killed then,
            `recover_folder` puts the new one there.

    Raises:
        ValueError: Without `replace`, if there is a file or a folder with contents by then.
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
                raise ValueError(f"{folder} already exists; name a new folder") from None
            raise
    elif not _renamed(draft, folder, _RENAME_EXCHANGE):
        os.rename(folder, draft.with_name("old"))
        os.rename(draft, folder)
    _sync(folder.parent)


def recover_folder(folder: Path) -> None:
    """Finish what a killed process began: put `folder` in place if it is missing, and remove its abandoned drafts."""
    folder = _real(folder)
    if folder.parent.is_dir():
        _remove_abandoned(folder.parent, folder.name)


def names_in(folder: Path) -> set[str]:
    """Names of what is in a folder, except drafts; empty if there is no folder."""
    if not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir() if not DRAFT.fullmatch(path.name)}


def open_locked(path: Path) -> IO[bytes]:
    """Open a file for reading and appending, locked until it is closed; waits for another process's lock.

    The file and its folder are made if missing.
    """
    file = _open_locked(path, fcntl.LOCK_EX)
    assert file is not None
    return file


def try_open_locked(path: Path) -> IO[bytes] | None:
    """As `open_locked`, or None if another process has the lock."""
    return _open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def append(file: IO[bytes], data: bytes) -> int:
    """Append to a file from `open_locked`, all or nothing.

    Returns:
        The new size of the file.

    Raises:
        OSError: It cannot be written; names the file.
    """
    handle = file.fileno()
    end = os.fstat(handle).st_size
    left = memoryview(data)
    try:
        # Not through the file's buffer, which would write what a full disk refused once more when the file is closed.
        with naming(file.name):
            while left:
                left = left[os.write(handle, left) :]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(handle, end)
        raise
    return file.seek(0, os.SEEK_END)


def lock(path: Path, *, wait: float = 0) -> IO[bytes]:
    """Take a lock that one process holds at a time, until it closes the lock (by a `with`) or ends.

    Args:
        path: The lock's file, which stays and says who holds the lock.
        wait: Seconds to wait for another process; `math.inf` for however long it takes.

    Raises:
        InUse: If another process still holds it.
    """
    end = time.monotonic() + wait
    while (file := try_lock(path)) is None:
        if time.monotonic() >= end:
            raise InUse(
                f"{holder(path)} is working on {path.parent}; wait until it ends, or name another folder"
            )
        time.sleep(0.1)
    return file


def try_lock(path: Path) -> IO[bytes] | None:
    """As `lock` without waiting, or None if another process holds it."""
    file = try_open_locked(path)
    if file is not None:
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n".encode())
        file.flush()
    return file


def holder(path: Path) -> str:
    """Who holds a lock, as its file says: "process 1234 on node7"."""
    who = path.read_text(encoding="utf-8").strip()
    return f"process {who}" if who else "another process"


def cache_folder() -> Path:
    """The folder in the user's cache for what advflyp can make or fetch again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advflyp"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _real(path: Path) -> Path:
    # `resolve` raises another kind of error if links form a loop.
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
        # Its process has a lock on it or is removing it, or it is another user's.
        with suppress(OSError):
            if path.is_dir() and not (path / "lock").exists():
                path.rmdir()  # the process that has just made it will notice
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
    # The lock goes last: without it, the rest would look like a draft that is being made.
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
            f"the file system of {file.name} does not support locks: let one process at a time write there",
            stacklevel=2,
        )
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _renamed(one: Path, other: Path, how: int) -> bool:
    """Rename by Linux's renameat2, with the flag `how`; False if the system or the file system cannot."""
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
    # If there is a file in its place, the next step fails with a better message.
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)


def _sync(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the file system can; the files themselves are on disk already."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
