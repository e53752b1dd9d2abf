"""Standard output and standard error: streams that can write anything, and lines that are safe to print."""

import io
import os
import select
import sys
from typing import TextIO

from advflyp.escape import for_terminal


def prepare_streams() -> None:
    r"""Let stdout and stderr take any text: a letter that the locale cannot encode is written as \u03b5.

    A stream that the caller has closed is replaced by one that drops everything.
    """
    sys.stdout, sys.stderr = _writable(sys.stdout), _writable(sys.stderr)


def _writable(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def say(*lines: str, to_stderr: bool = False) -> None:
    """Print lines without buffering; each stays on one line, whatever characters it holds."""
    print(*map(for_terminal, lines), sep="\n", flush=True, file=sys.stderr if to_stderr else sys.stdout)


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone; if so, the rest of the output is dropped."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watched.poll(0)):
        return False
    drop_output()
    return True


def drop_output() -> None:
    """Drop all further output. Otherwise Python would flush the rest again as it exits, and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
