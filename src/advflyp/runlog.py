"""What a run leaves to read: metrics.jsonl, always, and a progress bar on a terminal."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends one JSON object a line to `folder`/metrics.jsonl and shows progress.

    total_steps: length of the bar
    resume_step: entries after this step are dropped, they will be written again
    console:     where the bar goes; none is silent
    """

    def __init__(
        self, folder: Path, total_steps: int, *, resume_step: int = 0, console: Console | None = None
    ) -> None:
        path = folder / METRICS_FILE
        kept = [line for line in read_metrics(folder) if line["step"] <= resume_step] if resume_step else []
        draft = path.with_suffix(".partial")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        draft.rename(path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115, closed by __exit__
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console or Console(quiet=True),
            disable=console is None or not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("training", total=total_steps, completed=resume_step, status="")
        self.console = console

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        self.file.close()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One line: `kind` is "train", "validate" or "data"."""
        line = {"kind": kind, "step": step, "time": round(time.monotonic() - self.started, 3), **values}
        self.file.write(json.dumps(line) + "\n")

    def advance(self, step: int, status: str = "") -> None:
        self.progress.update(self.task, completed=step, status=status)

    def say(self, message: str) -> None:
        """A line for the person watching; nothing where the run is silent."""
        if self.console is not None:
            self.progress.console.print(message, highlight=False)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics.jsonl; a last line cut off by a crash is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
