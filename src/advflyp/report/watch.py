"""`advflyp watch`: a run that another process is writing, on a terminal."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from advflyp.report.watched import LOCK_FILE, RECENT, Line, Lock, Run, look
from advflyp.wording import counted

# Columns from which on a trend's lowest and highest value stand beside it.
WIDE = 80
# Not the full block: rows would touch.
BARS = "▁▂▃▄▅▆▇"


def watch(folder: Path, *, console: Console, once: bool = False, every: float = 2.0) -> None:
    """Show the run in `folder` until it has finished or Ctrl-C is pressed; the last frame stays on the terminal.

    once:  one frame only; also where `console` is no terminal
    every: seconds between frames
    ValueError where there is no run, or one that cannot be read.
    """
    if not every > 0:
        raise ValueError(f"--every must be above 0 seconds, not {every:g}")
    lock = Lock(folder / LOCK_FILE)
    run = look(folder, lock)
    if not once and console.is_terminal:
        try:
            # A screen of its own, since what is drawn over by itself is spoilt by a change of the window's width.
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while not run.finished:
                    live.update(frame(run, console.width), refresh=True)
                    time.sleep(every)
                    run = look(folder, lock)
        except KeyboardInterrupt:
            pass
    console.print(frame(run, console.width))


def frame(run: Run, width: int) -> RenderableType:
    """The whole view.

    width: columns of the terminal
    """
    about = [run.key(key) for key in ("method.name", "model.name", "data.train")]
    parts: list[RenderableType] = [
        Text(str(run.folder), "bold", no_wrap=True, overflow="ellipsis"),
        Text("  ".join(str(value) for value in about if value), "dim", no_wrap=True, overflow="ellipsis"),
        _state(run),
    ]
    train = run.of("train")[-RECENT:]
    if train:
        parts += [*_progress(run, train[-1]), Text(), _trends(train, width), Text()]
    return Group(*parts, _facts(run))


def _state(run: Run) -> Text:
    process = f" (process {run.process})" if run.process else ""
    last = f", last line {duration(run.written)} ago" if run.lines and run.written is not None else ""
    if run.alive:
        waits = last or f", no metrics yet: a line is written every {counted(run.key('log.every'), 'step')}"
        return Text.assemble(("running", "bold green"), process + waits)
    if run.checkpoint is None:
        hint = "it ended before its first checkpoint, start it again"
    elif run.finished:
        return Text.assemble(("finished", "bold blue"), f" after step {run.checkpoint[0]:,}")
    else:
        hint = f"--resume continues it after step {run.checkpoint[0]:,}"
    return Text.assemble(("stopped", "bold red"), f": no process is at work on it{last}; {hint}")


def _progress(run: Run, last: Line) -> list[RenderableType]:
    step, total = last["step"], last["of"]
    pace = run.seconds_per_step
    left = "" if not run.alive or pace is None else f"{duration((total - step) * pace)} to go"
    epochs = run.key("train.epochs")
    grid = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None):
        grid.add_column(ratio=ratio, no_wrap=True)
    grid.add_row(
        f"step {step:,} of {total:,}",
        ProgressBar(total=total, completed=step),
        f"{100 * step // total} %  {left}".strip(),
    )
    place = f"epoch {last['epoch'] + 1}" + ("" if epochs is None else f" of {epochs}")
    return [grid, Text(f"{place}, {counted(last['seen'], 'image')} seen", "dim")]


def _trends(train: Sequence[Line], width: int) -> Table:
    """A row for each number that says how training goes: its last value and how it came there."""
    terms = [name for name in train[-1] if name.startswith("loss/")]
    names = ["loss", *(terms if len(terms) > 1 else []), "grad_norm", "attack_gain", "phi", "lr"]
    rows = {name: [line[name] for line in train if name in line] for name in names}
    rows = {name: values for name, values in rows.items() if values}
    units = {"phi": " (rad)", "attack_gain": " (×)"}
    first = max(len(name + units.get(name, "")) for name in rows)
    # Beside the names stand a number and, where there is room, two more.
    bars = max(8, min(RECENT, width - first - 13 - (25 if width >= WIDE else 0)))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    heads = ["", "last line", f"last {min(bars, len(train))} lines"]
    if width >= WIDE:
        table.add_column(no_wrap=True)
        heads.append("lowest – highest")
    table.add_row(*(Text(head, "dim") for head in heads))
    for name, values in rows.items():
        shown = values[-bars:]
        cells = [Text(name + units.get(name, "")), Text(f"{values[-1]:#.4g}"), Text(sparkline(shown), "cyan")]
        if width >= WIDE:
            cells.append(Text(f"{min(shown):#.4g} – {max(shown):#.4g}", "dim"))
        table.add_row(*cells)
    return table


def _facts(run: Run) -> Table:
    """What needs words: speed, validations, samples that were left out, the checkpoint."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column()
    train, validated, data = (run.of(kind) for kind in ("train", "validate", "data"))
    if train:
        grid.add_row("speed", _speed(train[-1]))
    if validated:
        grid.add_row("validation", _validation(validated[-1]))
        best = next((line for line in reversed(validated) if line["best"]), None)
        if best is not None:
            grid.add_row("best", _validation(best))
    elif run.key("validate.set") is not None:
        grid.add_row("validation", "none yet")
    if data:
        reasons = sorted(data[-1]["skipped"].items(), key=lambda item: -item[1])
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        grid.add_row("left out", Text(f"by step {data[-1]['step']:,}: {listed}"))
    saved = "none yet" if run.checkpoint is None else f"step {run.checkpoint[0]:,}"
    age = "" if run.checkpoint is None else f", {duration(run.checkpoint[1])} ago"
    grid.add_row("checkpoint", saved + age)
    return grid


def _speed(line: Line) -> str:
    shown = [f"{line['pairs_per_second']:,.0f} images/s"]
    # Compiled code cannot be counted.
    shown += [f"{name} {100 * line[name]:.0f} %" for name in ("utilisation", "data_wait") if name in line]
    return ", ".join([*shown, f"memory {line['memory_gb']:.1f} GB"])


def _validation(line: Line) -> str:
    outcome = [f"{name} {100 * line[name]:.1f} %" for name in ("clean", "robust") if name in line]
    return f"{', '.join(outcome)} at step {line['step']:,}"


def sparkline(values: Sequence[float]) -> str:
    """One bar for each value, from the smallest to the largest of them; equal ones are a line in the middle."""
    low, high = min(values), max(values)
    if low == high:
        return BARS[3] * len(values)
    return "".join(BARS[round((len(BARS) - 1) * (value - low) / (high - low))] for value in values)


def duration(seconds: float) -> str:
    """In the two units that matter: "42 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
