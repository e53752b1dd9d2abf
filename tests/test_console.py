import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from advflyp.console import SafeConsole
from advflyp.escape import for_rich, for_terminal
from advflyp.training.runlog import METRICS_FILE, RunLog, read_metrics
from hostile import NAMES, TEXT, assert_printable

hypothesis = settings(max_examples=30, deadline=None, derandomize=True, database=None)


@given(TEXT)
@hypothesis
def test_text_is_only_text(text: str) -> None:
    """As a line, as a string or a `Text` in a table, as its title."""
    stream = io.StringIO()
    console = SafeConsole(file=stream, width=200)
    console.print(text)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(Text(text))
    console.print(table)
    assert_printable(stream.getvalue())


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_line_says_all_of_a_name(name: str) -> None:
    stream = io.StringIO()
    SafeConsole(file=stream, width=200).print(for_rich(f"left out: {name}, such as x"))
    assert stream.getvalue() == for_terminal(f"left out: {name}, such as x") + "\n"


def test_rich_still_draws_on_a_terminal() -> None:
    stream = io.StringIO()
    console = SafeConsole(
        file=stream, force_terminal=True, width=80, color_system="standard", _environ={"TERM": "xterm"}
    )
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(for_terminal("\x1b[2J[/b]"))
    console.print(Text("green", "green"))
    assert "\x1b[2J" not in stream.getvalue() and "\\x1b[2J[/b]" in stream.getvalue()
    assert "\x1b[?25l" in stream.getvalue() and "\x1b[32mgreen\x1b[0m" in stream.getvalue()


def test_a_training_outlives_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`advflyp train … | head`: the run goes on, and so does its file."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))
    with RunLog(tmp_path, 3, console=SafeConsole()) as log:
        for step in range(1, 4):
            log.write("train", step)
            log.say(f"step {step}")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    print("dropped", flush=True)
    assert (tmp_path / METRICS_FILE).is_file()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_names_any_sample(name: str, terminal: bool, tmp_path: Path) -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=terminal, width=200, _environ={})
    with RunLog(tmp_path, 10, console=console) as log:
        log.say(f"left out: image file cannot be read, such as {name}")
        log.advance(5, name)
    assert for_terminal(name) in stream.getvalue()
    for command in ("\x1b]0", "\x1b[2J\x1b", "\x9b", "\u202e"):
        assert command not in stream.getvalue()
