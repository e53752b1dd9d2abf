"""Errors that end a command with a one-line message, besides user mistakes, which are `ValueError`s."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GONE = "another rank of this run has stopped or cannot be reached; its own message says why"


class RunError(RuntimeError):
    """A run cannot continue, for a reason that could not be detected before it began. The message is one line."""


class Diverged(RunError):
    """A loss, a gradient, the weights or the embeddings of a training are not finite."""


class OutOfMemory(RunError):
    """A step of a training needs more memory than the device, or the machine, has."""


class SkippedSample(Exception):
    """Data that cannot be used. The message is one of a few fixed reasons, so that they can be counted."""


class LostRank(RunError):
    """Another rank of the run is gone: it was killed, has failed, or its machine has vanished."""

    def __init__(self) -> None:
        super().__init__(GONE)


# System errors that a user can fix, and how. After "then" follows how to continue.
_MENDED = {
    errno.ENOSPC: "free some space, then",
    errno.EDQUOT: "free some space, then",
    errno.EFBIG: "use a file system that takes larger files (or raise `ulimit -f`), then",
    errno.EIO: "check the disk, then",
    errno.ESTALE: "check the network file system, then",
    errno.EMFILE: "let a process open more files (`ulimit -n`), then",
    errno.ENFILE: "close other programs, then",
    errno.ENOMEM: "close other programs, then",
    errno.EBUSY: "end the program that uses it, then",
    errno.ETXTBSY: "end the program that uses it, then",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a path that can be written to",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOENT: "something has moved or deleted it",
    errno.ENOTDIR: "one of its folders is a file; name another path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another path",
    errno.ENOTEMPTY: "name another path",
    errno.ELOOP: "its links lead in a circle; name another path",
    errno.ENXIO: "name a regular file",
    errno.ENODEV: "name a regular file",
    errno.EINVAL: "name another path",
    errno.ENOLCK: "its file system has no locks; name another path",
    errno.ENOTSUP: "its file system cannot do that; name another path",
}


def refusal(error: OSError, to_go_on: str = "give the same command again") -> str | None:
    """A sentence on what the system refused: which file, why, and what to do. None if a user cannot fix it."""
    if error.errno not in _MENDED or error.strerror is None:
        return None
    if error.errno == errno.ENOENT and error.filename is None:
        # The system does not name the current folder.
        return "the current folder was deleted; change to another one"
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    what = _MENDED[error.errno]
    return f"{where}{error.strerror}; {what}{f' {to_go_on}' if what.endswith('then') else ''}"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def naming(path: str | os.PathLike[str], instead_of: Path | None = None) -> Iterator[None]:
    """Within the block, an `OSError` without a file name gets the name `path`: errors from writing have none.

    Args:
        path: The name that the user knows.
        instead_of: A draft; errors that name it, or something in it, name `path` instead.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        of_draft = (
            named is not None
            and instead_of is not None
            and Path(os.fsdecode(named)).is_relative_to(instead_of)
        )
        if of_draft or (named is None and error.errno is not None):
            error.filename = os.fspath(path)
        raise
