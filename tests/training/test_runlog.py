import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from advflyp.training import runlog
from advflyp.training.runlog import METRICS_FILE, RunLog, read_metrics


def test_lines_are_there_at_once_and_typed(tmp_path: Path) -> None:
    with RunLog(tmp_path, 10) as log:
        log.write("train", 1, loss=2.0)
        log.write("validate", 1, clean=0.5)
        assert [(line["kind"], line["step"]) for line in read_metrics(tmp_path)] == [
            ("train", 1),
            ("validate", 1),
        ]
    assert read_metrics(tmp_path)[0]["loss"] == 2.0
    assert read_metrics(tmp_path)[0]["time"] >= 0


def test_resuming_drops_what_will_be_written_again(tmp_path: Path) -> None:
    with RunLog(tmp_path, 10) as log:
        for step in range(1, 4):
            log.write("train", step)
        size = log.sync()
        log.write("validate", 3)
        log.write("train", 4)
    with RunLog(tmp_path, 10, resume_step=3, kept=size) as log:
        log.write("validate", 3)
    assert [(line["kind"], line["step"]) for line in read_metrics(tmp_path)] == [
        *(("train", step) for step in (1, 2, 3)),
        ("validate", 3),
    ]
    with RunLog(tmp_path, 10):
        pass
    assert read_metrics(tmp_path) == [], "a new run in the folder starts from nothing"


def test_a_line_cut_off_by_a_crash(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"kind": "train", "step": 1, "time": 2.5}\n{"kind": "tra')
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1, "time": 2.5}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_talks_only_to_who_listens(tmp_path: Path) -> None:
    stream = io.StringIO()
    with RunLog(tmp_path, 10, console=Console(file=stream)) as log:
        log.advance(5, "loss 1")
        log.say("step 5: fine")
    assert stream.getvalue() == "step 5: fine\n"
    with RunLog(tmp_path, 10) as log:
        log.say("nobody hears this")


def test_a_log_is_told_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is no bar: 100 steps of 2 s make a line for every five of them."""
    now = 0.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    stream = io.StringIO()
    with RunLog(tmp_path, 100, console=Console(file=stream, width=100)) as log:
        for step in range(1, 101):
            now += 2.0
            log.advance(step, f"loss {step // 10}" if step % 10 == 0 else None)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0] == "step 5 of 100    3 min 10 s to go"
    assert lines[2] == "step 15 of 100  loss 1  2 min 50 s to go"


def test_a_terminal_has_its_bar_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    pulse = runlog.Pulse(Console(file=io.StringIO(), force_terminal=True))
    now = 60.0
    pulse.say(lambda: pytest.fail("a line beside the bar"))


def test_a_command_says_how_far_it_is_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(runlog.time, "monotonic", lambda: now)
    printed = io.StringIO()
    with runlog.Status(Console(file=printed), "pairs read") as status:
        status.update("1 pairs read")
        now = 11.0
        status.update("2 pairs read")
        status.update("3 pairs read")
    assert printed.getvalue() == "2 pairs read\n"


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "train", "step": "x", "time": 1}',
        '{"kind": "train", "step": 1e400, "time": 1}',
        '{"kind": "train", "step": 1}',
        '{"kind": "validate", "step": 1, "time": 1, "clean": "x"}',
        '{"kind": [], "step": 1, "time": 1}',
        '{"kind": "train", "step": 1, "time": 1, "loss": {}}',
        "[" * 10_000,
        "[]",
        "1" * 5000,
    ],
    ids=range(9),
)
def test_lines_that_are_none_of_ours_end_the_file(line: str, tmp_path: Path) -> None:
    first = {"kind": "data", "step": 1, "time": 0.5, "epoch": 0, "skipped": {"no image": 1}, "examples": {}}
    (tmp_path / METRICS_FILE).write_text(f"{json.dumps(first)}\n{line}\n{json.dumps(first)}\n")
    assert read_metrics(tmp_path) == [first]
