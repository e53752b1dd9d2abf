"""`advflyp watch`: the view itself, and real runs seen through it."""

import functools
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from advflyp.cli.main import main
from advflyp.report.watch import duration, frame, sparkline, watch
from advflyp.report.watched import Run
from advflyp.training.runlog import read_metrics
from advflyp.training.trainer import train
from training.processes import PATIENCE, Running, start

OVERRIDES = {"log.every": "1", "checkpoint.every": "2", "train.epochs": "10", "validate.set": "mini/val",
             "validate.limit": "12", "validate.every": "3", "validate.attack": "pgd2"}  # fmt: skip


def seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """One frame, as the command prints it."""
    main(["watch", str(folder), "--once"])
    return " ".join(capsys.readouterr().out.split())


class Viewer:
    """`advflyp watch` on a terminal; `text` is all it has drawn since it was last emptied."""

    def __init__(self, folder: Path) -> None:
        self.screen, terminal = os.openpty()
        command = [sys.executable, "-m", "advflyp", "watch", str(folder), "--every", "0.05"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
        heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(
            command, stdout=terminal, stderr=terminal, env=environment, preexec_fn=heed
        )
        os.close(terminal)
        self.text = ""

    def read_on(self, wanted: str) -> re.Match[str]:
        begun = time.monotonic()
        while not (found := re.search(wanted, self.text)):
            assert time.monotonic() - begun < 60, self.text
            if select.select([self.screen], [], [], 1)[0]:
                self.text += os.read(self.screen, 65536).decode(errors="replace")
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


def test_a_run_is_watched_stopped_and_resumed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = [text for key, value in OVERRIDES.items() for text in (f"--{key}", value)]
    (process,) = start(1, ["advflyp", "train", str(recipe), "--out", str(out), *options])
    try:
        begun = time.monotonic()
        # The first validation is of the original, before there is a step.
        while not any(line["kind"] == "validate" and line["step"] > 0 for line in read_metrics(out)):
            assert process.poll() is None and time.monotonic() - begun < PATIENCE, process.communicate()
            time.sleep(0.01)
        # Held where it is, so that there is time to look.
        process.send_signal(signal.SIGSTOP)
        check_running(seen(out, capsys), process.pid)
        viewer = Viewer(out)
        try:
            check_live(viewer, process)
        finally:
            viewer.close()
    finally:
        process.kill()
        process.communicate()

    text = re.sub(r"line \d+ s", "line 0 s", seen(out, capsys))
    step = re.search(r"checkpoint step (\d+),", text)
    stopped = "stopped: no process is at work on it, last line 0 s ago; --resume continues it after step"
    assert step and f"{stopped} {step[1]}" in text
    assert "to go" not in text
    assert train(recipe, OVERRIDES, out=out, resume=True).steps == 40
    text = seen(out, capsys)
    assert "finished after step 40 step 40 of 40" in text
    assert "100 %" in text


def check_running(text: str, process: int) -> None:
    assert re.search(rf"running \(process {process} on \S+\), last line", text)
    assert re.search(r"step \d+ of 40 .* \d+ % \d+ (s|min) to go epoch \d+ of 10, \d+ images seen", text)
    for name in ("loss", "loss/clip", "loss/feature", "grad_norm", "attack_gain (×)", "phi (rad)", "lr"):
        assert re.search(rf"{re.escape(name)} [\d.e-]+ [▁▂▃▄▅▆▇]+ [\d.e-]+ – [\d.e-]+", text), name
    assert re.search(r"speed [\d,]+ images/s, utilisation \d+ %, data_wait \d+ %, memory [\d.]+ GB", text)
    assert re.search(r"validation clean [\d.]+ %, robust [\d.]+ % at step \d+ best clean", text)
    assert re.search(r"checkpoint step \d+, \d+ s ago", text)


def check_live(viewer: Viewer, process: Running) -> None:
    """It follows the run, and Ctrl-C ends it alone."""
    first = viewer.read_on(r"step (\d+) of 40")[1]
    viewer.text = ""
    process.send_signal(signal.SIGCONT)
    viewer.read_on(rf"step (?!{first} )\d+ of 40")
    process.send_signal(signal.SIGSTOP)
    viewer.text = ""
    viewer.process.send_signal(signal.SIGINT)
    # The screen of its own was left, and the last frame stays.
    viewer.read_on(r"(?s)\x1b\[\?1049l.*checkpoint")
    assert viewer.process.wait(timeout=60) == 0
    assert "Traceback" not in viewer.text
    assert process.poll() is None, "watching leaves the run alone"


def test_a_run_that_ends_ends_the_live_view(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"log.every": "1"}, out=tmp_path / "run")
    console = Console(record=True, force_terminal=True, width=80, file=open(os.devnull, "w"))  # noqa: SIM115
    watch(tmp_path / "run", console=console, every=3600)
    assert "finished after step 8" in console.export_text()


def test_it_starts_without_torch(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"train.max_steps": "2"}, out=tmp_path / "run")
    code = (
        "import sys\n"
        "from advflyp.cli.main import main\n"
        f"main(['watch', {str(tmp_path / 'run')!r}, '--once'])\n"
        "heavy = {'torch', 'open_clip', 'matplotlib', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "finished after step 2" in result.stdout


def example(**changes: object) -> Run:
    """A long run of a method with long names, in the middle; the numbers are made up."""
    train = [
        {"kind": "train", "step": 10 * n, "time": 5.0 * n, "of": 150_000, "epoch": 2, "seen": 640 * n, "lr": 1e-4 / n,
         "loss": 1 + 1 / n, "loss/clip": 1.0, "loss/feature": 1 / n, "grad_norm": 2.0, "attack_gain": 1.5,
         "phi": 0.2, "pairs_per_second": 12_345.6, "data_wait": 0.02, "memory_gb": 45.6, "utilisation": 0.41}
        for n in range(1, 5001)
    ]  # fmt: skip
    others = [
        {"kind": "validate", "step": 20_000, "time": 1.0, "epoch": 0, "best": True, "clean": 0.6, "robust": 0.4},
        {"kind": "validate", "step": 40_000, "time": 1.0, "epoch": 1, "best": False, "clean": 0.5, "robust": 0.3},
        {"kind": "data", "step": 40_000, "time": 1.0, "epoch": 1, "examples": {},
         "skipped": {"no caption": 3, "truncated image": 1200}},
    ]  # fmt: skip
    recipe = {
        "method": {"name": "advflyp"},
        "model": {"name": "ViT-B-32/[bold]openai"},
        "data": {"train": "/a/long/path/of/shards/{0000..9999}.tar", "batch_size": 64},
        "train": {"epochs": 10},
        "validate": {"set": "tiny-imagenet/val"},
        "log": {"every": 10},
    }
    values = {"folder": Path("/data/runs/robust"), "recipe": recipe, "lines": train + others, "alive": True,
              "process": "4242", "written": 3.0, "checkpoint": (40_000, 7300.0), **changes}  # fmt: skip
    return Run(**values)  # type: ignore[arg-type]


def drawn(run: Run, width: int) -> list[str]:
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(frame(run, width))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_it_fits_the_terminal(width: int) -> None:
    lines = drawn(example(), width)
    text = "\n".join(lines)
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= 23 or width < 60
    bars = [re.findall("[▁▂▃▄▅▆▇]+", line) for line in lines]
    (length,) = {len(found[0]) for found in bars if found}
    assert length == 60 if width >= 120 else length < 60
    if width >= 60:
        assert f"last {length} lines" in text
        assert "step 50,000 of 150,000" in text
        # 5 s for 10 steps, 100,000 of which are left.
        assert "33 %  13 h 53 min to go" in text
        assert "ViT-B-32/[bold]openai" in text, "names are no markup"
        assert "by step 40,000: 1,200 truncated image, 3 no caption" in " ".join(text.split())
        assert "validation  clean 50.0 %, robust 30.0 % at step 40,000" in text
        assert "best        clean 60.0 %, robust 40.0 % at step 20,000" in text
        assert "step 40,000, 2 h 02 min ago" in text


def test_what_is_not_there_is_left_out() -> None:
    text = "\n".join(drawn(example(lines=[], checkpoint=None, written=None), 80))
    assert "running (process 4242), no metrics yet: a line is written every 10 steps" in text
    assert "validation  none yet" in text and "checkpoint  none yet" in text
    text = "\n".join(drawn(example(lines=[], checkpoint=None, written=None, alive=False), 120))
    assert (
        "stopped: no process is at work on it; it ended before its first checkpoint, start it again" in text
    )
    # Of a method without an attack or a second loss, compiled.
    lacking = ("grad_norm", "loss/feature", "attack_gain", "phi", "utilisation")
    few = [{key: line[key] for key in line if key not in lacking} for line in example().of("train")]
    names = [line.split()[0] for line in drawn(example(lines=few), 80) if line.strip()]
    assert names == ["/data/runs/robust", "advflyp", "running", "step", "epoch", "last", "loss", "lr", "speed",
                     "validation", "checkpoint"]  # fmt: skip


def test_a_trend() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6]) == "▁▂▃▄▅▆▇"
    assert sparkline([-1.5, 1.5, 0.0]) == "▁▇▄"
    assert sparkline([2.0, 2.0]) == "▄▄"


def test_durations() -> None:
    shown = [duration(seconds) for seconds in (0.4, 99, 100, 5900, 6000, 47.9 * 3600, 75.6 * 3600)]
    assert shown == ["0 s", "99 s", "2 min", "98 min", "1 h 40 min", "47 h 54 min", "3 d 4 h"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch", "nowhere"], "there is no run folder nowhere"),
        (["watch", "."], "there is no run at .; it is a folder of runs; name one of them: a, b"),
        (["watch", "a", "--every", "0"], "--every must be above 0 seconds, not 0"),
        (["watch", "a", "--every", "nan"], "--every must be a number, not nan"),
        (["watch", "b"], "b is of an older version of advflyp; `advflyp report b` shows it"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").touch()
    (tmp_path / "b/metrics.jsonl").write_text('{"kind": "train", "step": 10, "time": 3.0, "loss": 2.0}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"advflyp: {message}") and error.count("\n") == 1
