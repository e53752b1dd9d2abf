"""Signals that ask a run to end: noted, and heeded after the step."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a scheduler sends before it takes the machine away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(Exception):
    """A signal asked for the end in the middle of something that can be done again."""


class Signals:
    """Whether a signal has asked for the end of the run.

    Args:
        tell: Whether this process answers the first Ctrl-C on a terminal with a line.

    Attributes:
        name: The signal's name; empty where none has come.
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
        """Within the block the signals are noted; outside it they do what they did before.

        A Ctrl-C behind another signal does not wait: it raises a `KeyboardInterrupt` wherever it comes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # Python lets no other thread listen
            return

        terminal = sys.stderr.fileno() if self.tell and sys.stderr.isatty() else None

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self:
                raise KeyboardInterrupt
            self.name = signal.Signals(number).name
            if number == signal.SIGINT and terminal is not None:
                # Not print, which may be what was interrupted.
                os.write(terminal, b"\nstopping after this step; Ctrl-C once more stops at once\n")

        # A signal that the process ignores, as one in the background does Ctrl-C, is not for it.
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
