"""The log of a run: metrics.jsonl, always; a progress bar on a terminal; trackers if the recipe asks for them."""

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from advflyp.config import at_least
from advflyp.console import SafeConsole
from advflyp.documents import decode, parse_json
from advflyp.errors import SkippedSample
from advflyp.escape import for_rich, for_terminal
from advflyp.files import InUse, append, try_open_locked
from advflyp.limits import MAX_RESULTS_BYTES, open_regular, read_bounded

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS_FILE = "metrics.jsonl"
# Each has the same name as its package.
TRACKERS = ("tensorboard", "wandb", "trackio")

# Minimum number of seconds between two lines of a log.
QUIET = 10.0


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Recipe table `log`.

    Attributes:
        every: Steps between lines of metrics.jsonl.
        trackers: Also send the metrics to "tensorboard" (into the run folder), "wandb" or "trackio".
        project: Project name for wandb and trackio; with tensorboard, a folder in RUN/tensorboard.
    """

    every: int = 10
    trackers: tuple[str, ...] = ()
    project: str = "advflyp"

    def __post_init__(self) -> None:
        at_least(1, self, "log.", "every")
        path = PurePath(self.project)
        if not self.project.isprintable() or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"log.project must be a name such as 'advflyp', not {self.project!r}")
        for name in self.trackers:
            if name not in TRACKERS:
                raise ValueError(f"log.trackers cannot be '{name}'; known: {', '.join(TRACKERS)}")
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"log.trackers = '{name}' needs a package: pip install {name}")


class Pulse:
    """Progress lines for a console that is not a terminal, since a log file shows no progress bar.

    Args:
        console: Where they go; nothing is printed to a terminal or None.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = None if console is None or console.is_terminal else console
        self.last = time.monotonic()

    def say(self, message: Callable[[], str]) -> None:
        """Print what `message` returns, if it is time for a line."""
        now = time.monotonic()
        if self.console is not None and now - self.last >= QUIET:
            self.last = now
            self.console.print(for_rich(message()))


class Status:
    """A command's progress in one line: with a spinner on a terminal, elsewhere as a `Pulse`.

    Args:
        console: Where it is shown.
        text: The text before the first `update`.
    """

    def __init__(self, console: Console, text: str) -> None:
        self.spinner = console.status(for_rich(text))
        self.pulse = Pulse(console)

    def __enter__(self) -> "Status":
        self.spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.spinner.stop()

    def update(self, text: str) -> None:
        """Show another text from now on."""
        self.spinner.update(for_rich(text))
        self.pulse.say(lambda: text)


def duration(seconds: float) -> str:
    """ "2 min 16 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class RunLog:
    """Appends one JSON object per line to `folder`/metrics.jsonl and shows progress.

    Attributes:
        total_steps: Length of the bar.
        resume_step: The step at which the run continues.
        kept: Bytes of an earlier file to keep (as returned by `sync`); the rest will be written again.
        console: Where the bar goes; None is silent.
        tracker: Also receives the numbers of every line.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        resume_step: int = 0,
        kept: int = 0,
        console: Console | None = None,
        tracker: "Accelerator | None" = None,
    ) -> None:
        file = try_open_locked(folder / METRICS_FILE)
        if file is None:
            raise InUse(
                f"another process writes {folder / METRICS_FILE}; wait until it ends, or name another folder"
            )
        self.file = file
        self.file.truncate(min(kept, self._size()))
        self.tracker = tracker
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console or SafeConsole(quiet=True),
            disable=console is None or not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("training", total=total_steps, completed=resume_step, status="")
        self.console = console
        self.pulse = Pulse(console)
        self.status = ""
        self.steps = (resume_step, total_steps)

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.file.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Write one line: `kind` is "train", "validate" or "data"."""
        line = {"kind": kind, "step": step, "time": round(time.monotonic() - self.started, 3), **values}
        append(self.file, json.dumps(line).encode() + b"\n")
        if self.tracker is not None:
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
            self.tracker.log({f"{kind}/{key}": value for key, value in numbers.items()}, step=step)

    def sync(self) -> int:
        """Flush every line to the disk; returns the size of the file in bytes."""
        os.fsync(self.file.fileno())
        return self._size()

    def _size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def advance(self, step: int, status: str | None = None) -> None:
        """Show that `step` is done; `status` stays until there is another."""
        self.status = self.status if status is None else status
        self.progress.update(self.task, completed=step, status=for_terminal(self.status))
        first, total = self.steps
        left = (time.monotonic() - self.started) / max(1, step - first) * (total - step)
        self.pulse.say(lambda: f"step {step} of {total}  {self.status}  {duration(left)} to go")

    def say(self, message: str) -> None:
        """Print a line for the person watching; nothing if the run is silent."""
        if self.console is not None:
            self.progress.console.print(for_rich(message))


class SilentLog:
    """Replaces `RunLog` on all ranks but rank 0, so that nothing is written twice."""

    def __enter__(self) -> "SilentLog":
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, kind: str, step: int, **values: Any) -> None: ...

    def sync(self) -> int:
        return 0

    def advance(self, step: int, status: str | None = None) -> None: ...

    def say(self, message: str) -> None: ...


AnyLog = RunLog | SilentLog


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics.jsonl; a last line cut off by a crash is left out.

    ValueError if the file cannot be read. Reading stops at a line that `RunLog` did not write, or that is cut off.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    try:
        with open_regular(path) as file:
            text = decode(read_bounded(file, MAX_RESULTS_BYTES))
    except (SkippedSample, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    lines = []
    # Split at line feeds only: a text may hold other characters that `splitlines` takes for the end of a line.
    for line in text.split("\n")[:-1]:
        try:
            found = parse_json(line)
        except ValueError:
            break
        if not _is_ours(found):
            break
        lines.append(found)
    return lines


def _is_ours(line: Any) -> bool:
    """Whether a line has the keys that every line has, and numbers wherever `RunLog` writes numbers."""
    if not isinstance(line, dict) or line.get("kind") not in ("train", "validate", "data"):
        return False
    clock = {"step", "time", *({"epoch"} & line.keys())}
    if not all(isinstance(line.get(key), int | float) and math.isfinite(line[key]) for key in clock):
        return False
    # "data" lines hold the reasons and names of skipped samples, which are not numbers.
    numbers = set() if line["kind"] == "data" else line.keys() - {"kind"}
    return all(isinstance(line[key], int | float) for key in numbers)
