"""What can end a run before its time: signals, a second process, and failures that need one clear line."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import torch

from advflyp.errors import GONE, RunError, refusal
from advflyp.files import lock
from advflyp.model.clip import CLIP
from advflyp.model.load import broken_weights, not_finite

LOCK_FILE = ".lock"
# What a scheduler sends before it takes the machine away, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(Exception):
    """A signal asked for the end in the middle of something that can be done again."""


class Signals:
    """Whether a signal has asked for the end of the run.

    Args:
        tell: Whether this process answers the first Ctrl-C on a terminal with a line.
    """

    def __init__(self, *, tell: bool = False) -> None:
        self.name: str | None = None
        self.tell = tell

    def __bool__(self) -> bool:
        return self.name is not None

    def raise_if_any(self, *_: object) -> None:
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


@torch.no_grad()
def broken(model: CLIP, images: int) -> str | None:
    """Say what of a model is not finite: its weights, or its embeddings of noise and of a text.

    Args:
        model: The model, in evaluation mode.
        images: Number of noise images.

    Returns:
        The end of a sentence; None for a model that works.
    """
    if wrong := not_finite(model.net.state_dict()):
        return f"{broken_weights(wrong)} in the model"
    # Weights that are finite and far too large give a NaN in the next step.
    noise = torch.rand(images, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    found = (model.encode_image(noise.to(model.device, model.dtype)), model.encode_text(["a photo"]))
    if not torch.cat(found).isfinite().all():
        return "the model's embeddings are not finite"
    return None


def hold(folder: Path) -> IO[bytes]:
    """The folder's lock, held while the file is open; ValueError where another process has it."""
    try:
        return lock(folder / LOCK_FILE)
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


@contextmanager
def writing(where: Path, known_good: Callable[[], str]) -> Iterator[None]:
    """Failures to write become a `RunError`: what, why, and what is still there.

    known_good: the end of the message
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save passes some failures of the file on as an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        free = (
            " Free some space, then continue with --resume."
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC
            else ""
        )
        raise RunError(f"cannot write to {where}: {reason}. {known_good()}{free}") from error


def explained(error: BaseException, *, ranks: int) -> str | None:
    """What a failure of a step means to who started the run; None for one that nobody foresaw.

    ranks: processes of the run
    """
    if isinstance(error, OSError):
        return refusal(error, "continue with --resume")
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            "out of memory. Keep the batch and compute it in parts with --train.micro_batch 64 (or less), or set "
            "--train.activation_checkpointing true or --train.precision bf16; or lower data.batch_size"
        )
    # Backends raise plain RuntimeErrors; what they say is all there is to tell them by.
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    if ranks > 1 and isinstance(error, RuntimeError) and any(sign in text for sign in signs):
        return GONE
    return None
