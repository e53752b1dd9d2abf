"""Signals that ask a run to end: noted at once, obeyed after the step."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a scheduler sends before it reclaims the machine, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(Exception):
    """A signal asked the run to end during work that can be repeated."""


class Signals:
    """Whether a signal has asked for the end of the run.

    Args:
        tell: Whether to answer the first Ctrl-C with a line on the terminal.

    Attributes:
        name: The last signal's name; empty if none has come.
    """

    def __init__(self, *, tell: bool = False) -> None:
        self.name = ""
        self.tell = tell

    def __bool__(self) -> bool:
        return bool(self.name)

    def raise_if_any(self, *_: object) -> None:
        """A progress callback that raises `Interrupted` once a signal has come."""
        if self:
            raise Interrupted

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Note signals within the block; afterwards they do what they did before.

        A Ctrl-C that follows another signal does not wait: it raises a `KeyboardInterrupt` at once.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python allows only the main thread to handle signals
            return

        terminal = sys.stderr.fileno() if self.tell and sys.stderr.isatty() else None

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self:
                raise KeyboardInterrupt
            self.name = signal.Signals(number).name
            if number == signal.SIGINT and terminal is not None:
                # Not print, which may be what was interrupted.
                os.write(terminal, b"\nstopping after this step; Ctrl-C once more stops at once\n")

        # Leave out signals that the process ignores, as a background process ignores Ctrl-C.
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
