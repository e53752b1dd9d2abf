"""What is read off the files of a run: is it alive, is it finished, how fast is it."""

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advflyp.files import try_lock
from advflyp.report import watched
from advflyp.report.watched import Lock, Run, look
from advflyp.training import ending, setup
from advflyp.training.checkpoint import checkpoints
from advflyp.training.runlog import read_metrics
from advflyp.training.trainer import Trainer, train


def test_the_names_are_those_of_the_training() -> None:
    assert (watched.RECIPE_FILE, watched.CHECKPOINTS) == (setup.RECIPE_FILE, setup.CHECKPOINTS)
    assert watched.LOCK_FILE == ending.LOCK_FILE


def test_a_lock_is_seen_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    lock, calls, real = Lock(path), [], fcntl.flock
    monkeypatch.setattr("fcntl.flock", lambda file, how: (calls.append(how), real(file, how)))
    assert not lock.held() and not path.exists(), "looking makes no file"
    for _ in range(2):
        file = try_lock(path)
        assert file is not None, "the watcher is in nobody's way"
        assert lock.held() and lock.held() and try_lock(path) is None
        file.close()
        assert not lock.held()
        # A run may begin at any time now; nothing is asked for that could refuse it.
        calls.clear()
        assert not any(lock.held() for _ in range(100)) and not calls
    assert path.read_text() == f"{os.getpid()} on {os.uname().nodename}\n"


def ended(folder: Path) -> bool:
    return look(folder, Lock(folder / ".lock")).finished


def test_finished_means_the_last_step_measured_and_saved(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = {
        "log.every": "3",
        "validate.set": "mini/val",
        "validate.limit": "12",
        "validate.attack": "pgd2",
    }
    train(recipe, validated, out=tmp_path / "run")
    assert ended(tmp_path / "run")
    with Path(tmp_path / "run/.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not ended(tmp_path / "run"), "it has still to let go"

    def broken(self: Trainer, log: object) -> None:
        if self.progress.step == 8:
            raise AssertionError
        real(self, log)  # type: ignore[arg-type]

    real = Trainer._validate
    monkeypatch.setattr(Trainer, "_validate", broken)
    with pytest.raises(AssertionError):
        train(recipe, validated, out=tmp_path / "cut")
    assert read_metrics(tmp_path / "cut")[-1]["step"] == 8
    assert not ended(tmp_path / "cut"), "the last steps are not in a checkpoint"
    # As a signal leaves it that comes during the last validation.
    last = checkpoints(tmp_path / "cut/checkpoints")[-1]
    last.rename(last.with_name("step-00000008-0123456789abcdef.pt"))
    assert not ended(tmp_path / "cut")


def test_finished_before_the_last_step(recipe: Path, tmp_path: Path) -> None:
    patient = {"train.patience": "2", "train.epochs": "9", "optim.lr": "1e-12", "validate.set": "mini/val",
               "validate.limit": "12", "validate.attack": "pgd2"}  # fmt: skip
    assert train(recipe, patient, out=tmp_path / "patience").steps == 12
    assert ended(tmp_path / "patience"), "nothing was gained in two validations"
    for number in range(5):
        (tmp_path / f"pairs/{number:04d}.png").write_bytes(b"no picture")
    assert train(recipe, {"log.every": "1"}, out=tmp_path / "dirt").steps == 6
    assert ended(tmp_path / "dirt"), "epochs were shorter than their pairs promised"
    assert not ended_after(tmp_path / "dirt", lines=3)


def ended_after(folder: Path, lines: int) -> bool:
    """Of a run that was killed when it had written so many lines."""
    run = look(folder, Lock(folder / ".lock"))
    return Run(**{**vars(run), "lines": run.lines[:lines]}).finished


def run_of(lines: list[dict[str, Any]], **recipe: Any) -> Run:
    return Run(
        folder=Path("x"), recipe=recipe, lines=lines, alive=True, process="", written=0.0, checkpoint=None
    )


def line(step: int, seconds: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "time": seconds, "of": 1000, "pairs_per_second": 8.0}


def test_time_begins_again_where_a_run_was_resumed() -> None:
    lines = [line(10, 50), line(20, 100), line(30, 150), line(40, 80), line(50, 130)]
    assert run_of(lines).seconds_per_step == pytest.approx(5.0)
    assert run_of(lines[:1], data={"batch_size": 16}).seconds_per_step == pytest.approx(2.0)
    assert run_of([], data={"batch_size": 16}).seconds_per_step is None
    # Only recent steps count.
    slow = [line(step, 100.0 * step) for step in range(100)]
    fast = [line(step, 9900 + step) for step in range(100, 200)]
    assert run_of(slow + fast).seconds_per_step == pytest.approx(1.0)


def test_the_pace_of_a_real_run_that_was_resumed(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time to go, whatever the clock of the log says: it is a monotonic one that begins with each process."""
    now, dies_at = 0.0, 5
    real = Trainer.step

    def step(self: Trainer, batch: dict) -> dict:
        nonlocal now
        if self.progress.step == dies_at:
            raise AssertionError
        now += 1.0
        return real(self, batch)

    # Only the log's own clock: other threads (a progress bar's) read time.monotonic when they please.
    monkeypatch.setattr("advflyp.training.runlog.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(AssertionError):
        train(recipe, {"log.every": "1"}, out=tmp_path / "run")
    now, dies_at = 0.0, -1
    train(recipe, {"log.every": "1"}, out=tmp_path / "run", resume=True)
    run = look(tmp_path / "run", Lock(tmp_path / "run/.lock"))
    times = [found["time"] for found in run.of("train")]
    assert times != sorted(times), "the second process began at 0"
    assert run.seconds_per_step == pytest.approx(1.0)


def test_checkpoints_that_cannot_be_listed_are_not_none(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"train.max_steps": "2"}, out=tmp_path / "run")
    run = look(tmp_path / "run", Lock(tmp_path / "run/.lock"))
    assert run.checkpoint is not None and run.checkpoint[0] == 2
    (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    assert look(tmp_path / "run", Lock(tmp_path / "run/.lock")).checkpoint is None
    (tmp_path / "run/checkpoints").write_text("")
    with pytest.raises(ValueError, match=r"cannot read .*checkpoints: Not a directory"):
        look(tmp_path / "run", Lock(tmp_path / "run/.lock"))
