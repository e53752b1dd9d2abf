"""benchmarks/gpu.sh on a CPU: small stages always, the real ones with tiny sizes where slow tests run."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from advflyp.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import figures  # noqa: E402
import gpu  # noqa: E402
import headline  # noqa: E402
from stages import CALLS, CHECK, SECONDS, Stage  # noqa: E402
from timing import interleaved  # noqa: E402

MACHINE = {
    "device": "CPU",
    "processor": "AVX2",
    "cores": 2,
    "threads": 2,
    "torch": "2.15.0",
    "python": "3.11.7",
    "driver": "",
    "commit": "abc",
    "date": "2026-11-26",
}
WRITES = 'import pathlib, sys\npathlib.Path(sys.argv[1]).write_text("42")\n'


def small_stage(folder: Path, name: str, program: str, limit: float = 60) -> Stage:
    """A stage that runs `program`, whose figure is the text of the file that it is told to write."""
    (folder / f"{name}.py").write_text(program)
    return Stage(
        name=name,
        limit=limit,
        command=f"python {folder}/{name}.py",
        tiny="",
        output=f"{{work}}/{name}.txt",
        result=f"{name}.txt",
        read=lambda path: [("answer", str(int(path.read_text())))],
    )


def run(tmp_path: Path, stages: list[Stage], seconds: float = 60) -> gpu.Call:
    call = gpu.Call(
        name="check",
        out=tmp_path,
        work=tmp_path,
        tiny=False,
        values={"device": "cpu", "seeds": 1, "tests": "", "work": tmp_path},
        environment=dict(os.environ),
        machine=MACHINE,
        missing=[],
    )
    gpu.run_stages(call, stages, time.monotonic() + seconds)
    return call


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def test_a_stage_that_fails_leaves_the_others_and_its_figures(tmp_path: Path) -> None:
    stages = [
        small_stage(tmp_path, "broken", "raise SystemExit(3)"),
        small_stage(tmp_path, "late", WRITES + "raise SystemExit(4)"),
        small_stage(tmp_path, "garbled", WRITES.replace("42", "forty")),
        small_stage(tmp_path, "sound", WRITES),
    ]
    call = run(tmp_path, stages)
    assert [outcome.status.partition(",")[0] for outcome in call.outcomes] == [
        "failed with exit code 3",
        "failed with exit code 4",
        "failed: its figures cannot be read",
        "done",
    ]
    assert [outcome.figures for outcome in call.outcomes] == [[], [("answer", "42")], [], [("answer", "42")]]
    page = (tmp_path / "check.md").read_text()
    assert "2 processor cores with AVX2; torch 2.15.0, Python 3.11.7; commit abc, 2026-11-26" in page
    assert page.count("| answer | 42 |") == 2 and "failed with exit code 3" in page
    assert [stage["status"] for stage in json.loads((tmp_path / "check.json").read_text())["stages"]] == [
        outcome.status for outcome in call.outcomes
    ]


def test_a_stage_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    program = f"""
        import pathlib, signal, subprocess, sys, time
        # The one that it started does not want to end.
        stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", stubborn])
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
        time.sleep(600)
    """
    hangs = small_stage(tmp_path, "hangs", "\n".join(line.strip() for line in program.splitlines()), limit=1)
    # What is left over is this stage's; the next one is sure of 14 of 20 seconds.
    call = run(tmp_path, [hangs, small_stage(tmp_path, "next", WRITES, limit=14)], seconds=20)
    assert call.outcomes[0].status == "stopped after 6 s"
    assert call.outcomes[1].status == "done"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_everything_is_written_after_every_stage(tmp_path: Path) -> None:
    look = (
        f'import pathlib\nassert "first" in pathlib.Path({str(tmp_path / "check.md")!r}).read_text()\n'
        + WRITES
    )
    call = run(tmp_path, [small_stage(tmp_path, "first", WRITES), small_stage(tmp_path, "second", look)])
    assert call.outcomes[1].status == "done"


def test_no_stage_is_begun_without_time(tmp_path: Path) -> None:
    call = run(tmp_path, [small_stage(tmp_path, "first", WRITES)], seconds=1)
    assert call.outcomes[0].status.startswith("not begun")


def test_time_that_is_left_over_goes_to_the_next_stage() -> None:
    assert gpu.allowance(60, [100, 50], left=210) == 60
    assert gpu.allowance(60, [100, 50], left=300) == 150
    # Late already: its own limit all the same, but no more than there is.
    assert gpu.allowance(60, [100, 50], left=180) == 60
    assert gpu.allowance(60, [], left=40) == 40


def test_every_call_fits_into_nine_minutes() -> None:
    # What installs and describes the machine comes on top.
    for stages in CALLS.values():
        assert sum(stage.limit for stage in stages) <= SECONDS - 15
    assert SECONDS + gpu.GRACE < 9 * 60


def test_only_files_with_gpu_tests_are_collected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text("import pytest\npytestmark = pytest.mark.gpu\n")
    (tmp_path / "tests/test_b.py").write_text("import not_installed\n")
    (tmp_path / "tests/test_c.py").write_text("text = 'pytest.mark.gpu'\n")
    (tmp_path / "tests/cuda").mkdir()
    (tmp_path / "tests/cuda/conftest.py").write_text("p = pytest.param('cuda', marks=pytest.mark.gpu)\n")
    assert gpu.gpu_tests(tmp_path / "tests") == ["tests/cuda", "tests/test_a.py"]


def test_a_command_is_shown_as_it_can_be_typed(tmp_path: Path) -> None:
    stage = next(stage for stage in CHECK if stage.name == "train")
    values = {"device": "cuda", "work": tmp_path / "with space", "tests": "", "seeds": 1, "seconds": 9}
    assert stage.typed(False, values).startswith("advflyp train configs/advflyp_full.toml --data.train mini")
    words = stage.words(False, values)
    assert words[:4] == [sys.executable, "-m", "advflyp", "train"]
    assert words[-2:] == ["--out", f"{tmp_path}/with space/train"]


def test_the_packages_to_bring_are_pinned() -> None:
    pins = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert set(gpu.PACKAGES) <= pins


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_figures_of_tests(tmp_path: Path) -> None:
    path = write(
        tmp_path / "tests.xml",
        '<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1">'
        '<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"><failure/></testcase>'
        '<testcase classname="tests.b" name="three"><error/></testcase></testsuite></testsuites>',
    )
    assert figures.tests(path) == [
        ("tests that need a GPU", "2 passed, 2 failed, 1 skipped"),
        ("failed test", "tests.a::two"),
        ("failed test", "tests.b::three"),
    ]


def test_figures_of_a_run_leave_out_what_happens_once(tmp_path: Path) -> None:
    every = {"kind": "train", "data_wait": 0.25, "memory_gb": 12.5}
    lines = [
        {**every, "step": step, "time": 30 + step, "pairs_per_second": rate}
        for step, rate in ((10, 5.0), (20, 1400.0), (30, 1000.0), (40, 1200.0))
    ]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"kind": "data", "step": 40}])
    found = dict(figures.training(write(tmp_path / "metrics.jsonl", text + '{"kind": "tr')))
    assert list(found.values()) == ["1,200 pairs/s", "25 %", "12.5 GB", "step 10 after 40 s"]


def test_figures_of_benchmarks(tmp_path: Path) -> None:
    def rows(name: str, found: list[dict[str, Any]], **arguments: Any) -> Path:
        return write(tmp_path / name, json.dumps({"arguments": arguments, "rows": found}))

    step = {"model": "ViT-B-32/random", "method": "AdvFLYP_full", "batch_size": 256, "precision": "bf16"}
    path = rows("step.json", [{**step, "compiled": "graphs", "seconds": 0.16, "ratio": 2.04}])
    what = "step of AdvFLYP_full, ViT-B-32/random, bf16, batch 256, compiled: graphs"
    assert figures.train_step(path) == [(what, "160 ms, 1,600 pairs/s, 2.04 × Algorithm 1")]
    row = {"attack": "pgd10", "classes": 1000, "ours": {"seconds": 2.5, "accuracy": 0.5, "ratio": 1.0}}
    row["obvious"] = {"seconds": 6.5, "accuracy": 0.5, "ratio": 2.6}
    prompts = {"prompts": 1000, "ours": 0.25, "obvious": 1.0, "ratio": 4.0}
    path = rows("eval.json", [prompts, row], model="mini", images=128, eps="1/255", precision="fp32")
    what = "PGD-10, mini, 1,000 prompts, 128 images, ε = 1/255, fp32"
    assert figures.evaluation(path) == [
        ("encoding 1,000 prompts, mini", "250 ms, 4.00 × with the padding"),
        (what, "2.50 s, 50 % robust, 2.60 × the obvious implementation"),
    ]
    loaders = [
        {"what": "decoder", "name": "plain", "images_per_second": 250, "ratio": 1},
        {"what": "decoder", "name": "simplejpeg (ours)", "images_per_second": 800, "ratio": 3.2},
        {
            "what": "loader",
            "workers": 4,
            "name": "plain",
            "images_per_second": 900,
            "ratio": 1,
            "own_ms": 0.2,
        },
        {
            "what": "loader",
            "workers": 4,
            "name": "threads",
            "images_per_second": 2700,
            "ratio": 3,
            "own_ms": 1.5,
        },
    ]
    assert figures.loading(rows("load.json", loaders)) == [
        ("decoding and resizing, one core", "800 images/s, 3.20 × the plain way"),
        (
            "loader (threads), 4 decoding threads",
            "2,700 images/s, 3.00 × the plain way, 1.50 ms an image of the training's process",
        ),
    ]


def test_figures_of_the_quickstart(tmp_path: Path) -> None:
    cells = [
        {"model": model, "attack": attack, "eps": eps, "accuracy": accuracy}
        for model, attack, eps, accuracy in (
            ("mini", "clean", 0.0, 0.5),
            ("mini", "clean", 0.0, 0.6),
            ("mini", "pgd10", 1 / 255, 0.9),
            ("mini", "pgd10", 2 / 255, 0.02),
            ("robust", "clean", 0.0, 0.54),
            ("robust", "pgd10", 2 / 255, 0.25),
        )
    ]
    text = "".join(json.dumps(cell) + "\n" for cell in cells)
    assert figures.quickstart(write(tmp_path / "results.jsonl", text)) == [
        ("quickstart, clean", "55.0 % → 54.0 %"),
        ("quickstart, PGD-10, ε = 2/255", "2.0 % → 25.0 %"),
    ]


def test_the_headline_is_that_of_the_docs(reproduce_mini: Path) -> None:
    folder = reproduce_mini
    plan = headline.headline_plan(headline.Arguments(out=folder, seeds=3))
    rows = headline.read_rows(folder, headline.progress(plan, folder))
    assert all(row["planned"] == row["finished"] == (1 if row["method"] == "original" else 3) for row in rows)
    table = {line.split(" |")[0]: line for line in figures.headline_table(rows).splitlines()}
    docs = (ROOT / "docs/reproduction.md").read_text()
    for row in rows:
        clean, attacked = (row["accuracy"][key] for key in ("clean", "PGD-10, ε = 1/255"))
        shown = [
            f"{found['mean']:.1f}" + ("" if found["deviation"] is None else f" ±{found['deviation']:.1f}")
            for found in (clean, attacked)
        ]
        assert all(text in table[f"| {row['method']}"] for text in shown)
        # The docs set the best in bold.
        assert f"| {row['method']} | {shown[0]} | {shown[1]} |" in docs.replace("**", "")


def test_interleaved_runs_are_warmed_up_and_change_places() -> None:
    calls: list[str] = []
    ticks = iter(range(1000))
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleaved(runs, 2, warmup=1, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def gpu_sh(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "benchmarks/gpu.sh", *map(str, arguments)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    empty = gpu_sh("check", "--wheels", tmp_path / "none", "--out", out, "--work", tmp_path / "work")
    assert empty.returncode == 2
    assert empty.stderr.startswith("gpu.sh: there is no wheel in ") and empty.stderr.count("\n") == 1
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "check", "--out", out, "--work", tmp_path / "work"]
    without = subprocess.run(
        command, env={**os.environ, **hidden}, capture_output=True, text=True, check=False
    )
    assert without.returncode == 2
    assert without.stderr == "gpu.sh: torch finds no CUDA device here; use --device cpu\n"
    assert not out.exists()


@pytest.mark.slow
def test_check_with_tiny_sizes(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--tiny", "--seconds", "1500", "--work", tmp_path / "my work"]
    done = gpu_sh("check", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/check.json").read_text())
    assert found["missing_packages"] == []
    for stage in found["stages"]:
        done_or_not = bool(stage["figures"]) if stage["status"] == "done" else "left out" in stage["status"]
        assert done_or_not, stage
    assert {"train", "evaluate", "loader", "train_step", "autoattack"} <= {
        stage["name"] for stage in found["stages"] if stage["status"] == "done"
    }
    page = (tmp_path / "out/check.md").read_text()
    assert page.startswith("### CPU: check with tiny sizes\n") and page in done.stdout


@pytest.mark.slow
def test_reproduce_with_tiny_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--device",
        "cpu",
        "--tiny",
        "--seconds",
        "1500",
        "--seeds",
        "1",
        "--work",
        tmp_path / "work",
    ]
    done = gpu_sh("reproduce", "--out", tmp_path / "out", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out/reproduce.md").read_text()
    assert "| mini reproduction's headline | 2 of 2 models measured |" in page
    assert "| AdvFLYP_full | 1 |" in page
    # What comes back makes the report elsewhere.
    with tarfile.open(tmp_path / "out/reproduce.tar.gz") as tar:
        tar.extractall(tmp_path / "study", filter="data")
    main(["reproduce", "--scale", "mini", "--out", str(tmp_path / "study"), "--report-only"])
    assert "AdvFLYP\\_full" in (tmp_path / "study/report/results.md").read_text()


@pytest.mark.network
def test_wheels_for_another_python(tmp_path: Path) -> None:
    done = gpu_sh("wheels", tmp_path, "--python", "3.12", "--machine", "x86_64")
    assert done.returncode == 0, done.stderr
    wheels = list(tmp_path.glob("*.whl"))
    assert len(wheels) == len(gpu.PACKAGES)
    assert sum(path.stat().st_size for path in wheels) < 6e6
