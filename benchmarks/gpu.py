"""Everything that a GPU is needed for, in three calls of under nine minutes each; `gpu.sh` starts this file.

    benchmarks/gpu.sh check --out gpu-results
    benchmarks/gpu.sh reproduce --out gpu-results
    benchmarks/gpu.sh compile --out gpu-results
    benchmarks/gpu.sh check --device cpu --tiny        # the same stages on a CPU, with tiny sizes: meaningless figures

A call is a sequence of stages, each a command that one could type. A stage that fails or times out does not stop the
others. After each stage, CALL.json (everything), CALL.md (the table for docs/performance.md) and CALL.log (what was
printed) in `--out` are complete. Nothing on the machine is changed: wheels are unpacked into `--work`, and the
checkout is used as it is. This file needs only the standard library.
"""

import argparse
import ast
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

from figures import Figures, headline_table
from stages import CALLS, SECONDS, Stage
from timing import ROOT, write_json, write_text

# Grace period of a stopped stage, in seconds.
GRACE = 5.0
# What a reader raises on a file in an unexpected format; later stages still run.
UNREADABLE = (LookupError, TypeError, ValueError, ElementTree.ParseError)
# Seconds that `headline.py` needs to start, to stop its processes and to write its table.
AROUND_HEADLINE = 45.0
# What a container with torch, torchvision, timm, accelerate, transformers, pyarrow, scikit-learn and pytest lacks.
PACKAGES = (
    "braceexpand", "ftfy", "open-clip-torch", "simplejpeg", "tomli-w", "wcwidth",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


@dataclass(kw_only=True)
class Outcome:
    """The outcome of a stage."""

    name: str
    command: str
    status: str
    seconds: float = 0.0
    figures: Figures = field(default_factory=list)
    result: Any = None


@dataclass(kw_only=True)
class Call:
    """One call: what its stages have in common, its outcomes so far, and where they are written.

    Attributes:
        out: Folder for what is written.
        work: Folder for the stages' own files.
        values: What is filled into their commands.
        missing: Packages that this Python lacks.
    """

    name: str
    out: Path
    work: Path
    tiny: bool
    values: dict[str, Any]
    environment: dict[str, str]
    machine: dict[str, Any]
    missing: list[str]
    outcomes: list[Outcome] = field(default_factory=list)

    def left_out(self, stage: Stage) -> str:
        """Why a stage is not run; empty if it is."""
        if self.tiny and not stage.tiny:
            return "it has no tiny size"
        if "{tests}" in stage.command and not self.values["tests"]:
            return "no test is marked `gpu`"
        return ""

    def write(self) -> None:
        tree = {
            "call": self.name,
            "tiny": self.tiny,
            "machine": self.machine,
            "missing_packages": self.missing,
        }
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        write_json(self.out / f"{self.name}.json", {**tree, "stages": outcomes})
        write_text(self.out / f"{self.name}.md", self.markdown())

    def markdown(self) -> str:
        """A heading, the machine, and a table with a row for each figure."""
        about = self.machine
        driver = f", driver {about['driver']}" if about["driver"] else ""
        lines = [
            f"### {about['device']}: {self.name}{' with tiny sizes' if self.tiny else ''}",
            "",
            f"{about['device']}{driver}; {about['cores']} processor cores with {about['processor']}; torch "
            f"{about['torch']}, Python {about['python']}; commit {about['commit']}, {about['date']}.",
            "",
            "| what | measured | command |",
            "|---|---|---|",
        ]
        for outcome in self.outcomes:
            whole = outcome.status if outcome.status != "done" else f"{outcome.seconds:.0f} s"
            rows = [*outcome.figures, (f"{outcome.name}, the whole command", whole)]
            for number, (what, figure) in enumerate(rows):
                command = f"`{outcome.command}`" if number == 0 else ""
                lines.append(f"| {what} | {figure} | {command} |")
        tables = [
            headline_table(outcome.result["rows"])
            for outcome in self.outcomes
            if outcome.name == "headline" and outcome.result
        ]
        return "\n".join([*lines, *(f"\n{table}" for table in tables)]) + "\n"


def gpu_tests(folder: Path) -> list[str]:
    """The test files with a `gpu` mark, and the folders whose conftest.py has one.

    Others are not even imported: what they need may be missing.
    """
    marked = [path for path in folder.rglob("*.py") if marks_gpu(path.read_text(encoding="utf-8"))]
    found = [path.parent if path.name == "conftest.py" else path for path in marked]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def marks_gpu(program: str) -> bool:
    """Whether `mark.gpu` is in the code itself, not only in a string."""
    attributes = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Attribute)]
    return any(
        node.attr == "gpu" and isinstance(node.value, ast.Attribute) and node.value.attr == "mark"
        for node in attributes
    )


def allowance(limit: float, later: Sequence[float], left: float) -> float:
    """Seconds for a stage: the time left minus the limits of later ones, but at least its own limit if that is left."""
    return min(left, max(limit, left - sum(later)))


def run_stages(call: Call, stages: Sequence[Stage], deadline: float) -> None:
    with open(call.out / f"{call.name}.log", "w", encoding="utf-8") as log:
        for number, stage in enumerate(stages):
            later = [other.limit for other in stages[number + 1 :] if not call.left_out(other)]
            seconds = allowance(stage.limit, later, deadline - time.monotonic())
            outcome = run_stage(stage, seconds, call, log)
            call.outcomes.append(outcome)
            call.write()
            print(f"{outcome.name}: {outcome.status}, {outcome.seconds:.0f} s", flush=True)


def run_stage(stage: Stage, seconds: float, call: Call, log: TextIO) -> Outcome:
    values = call.values | {"seconds": int(seconds - AROUND_HEADLINE)}
    outcome = Outcome(name=stage.name, command=stage.typed(call.tiny, values), status="done")
    if reason := call.left_out(stage):
        outcome.status = f"left out: {reason}"
        return outcome
    if seconds < GRACE:
        outcome.status = "not begun: the time of the call was used up"
        return outcome
    log.write(f"\n== {stage.name}, at most {seconds:.0f} s: {outcome.command}\n")
    log.flush()
    begun = time.monotonic()
    code = run_command(stage.words(call.tiny, values), seconds, call.environment, log)
    outcome.seconds = round(time.monotonic() - begun, 1)
    if code is None:
        outcome.status = f"stopped after {seconds:.0f} s"
    elif code != 0:
        outcome.status = f"failed with exit code {code}"
    # Results written before a failure count.
    result = call.work / stage.result
    if result.is_file():
        try:
            outcome.figures = stage.read(result)
        except UNREADABLE as error:
            outcome.status = f"failed: its figures cannot be read, {type(error).__name__}: {error}"
        if result.suffix == ".json":
            outcome.result = json.loads(result.read_text(encoding="utf-8"))
    return outcome


def run_command(
    command: Sequence[str], seconds: float, environment: dict[str, str], log: TextIO | int
) -> int | None:
    """The exit code; None on a timeout. Nothing that the command started is left running."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the processes of a session to end, then kill them."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue


def prepare(options: argparse.Namespace, log: TextIO) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment of all stages, and what `timing.py` says about the machine. Exits with 2 if nothing can run."""
    site, path = options.work / "site-packages", os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "src"), *([path] if path else [])]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    shutil.rmtree(site, ignore_errors=True)
    if options.wheels is not None:
        wheels = sorted(map(str, options.wheels.glob("*.whl")))
        if not wheels:
            fail(f"there is no wheel in {options.wheels}; make the folder with `benchmarks/gpu.sh wheels`")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        if run_command([*pip, "--no-deps", "--target", str(site), *wheels], 120, environment, log) != 0:
            fail(f"pip could not install the wheels in {options.wheels}; {log.name} says why")
    found = options.work / "machine.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, "benchmarks/timing.py", "--device", options.device, "--json", str(found)]
    command += ["--commit", options.commit] if options.commit else []
    if run_command(command, 120, environment, log) != 0:
        reason = Path(log.name).read_text(encoding="utf-8").splitlines()
        fail(
            reason[-1].removeprefix("timing.py: error: ") if reason else "this machine's torch does not start"
        )
    return environment, json.loads(found.read_text(encoding="utf-8"))


def fail(message: str) -> NoReturn:
    print(f"gpu.sh: {message}", file=sys.stderr)
    sys.exit(2)


def run_call(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.seconds
    # A call that is stopped also stops what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.work.mkdir(parents=True, exist_ok=True)
    with open(options.work / "prepare.log", "w", encoding="utf-8") as log:
        environment, found = prepare(options, log)
    work = options.work / options.call
    if options.call != "reproduce":  # which resumes
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    tests = " ".join(gpu_tests(ROOT / "tests"))
    call = Call(
        name=options.call,
        out=options.out,
        work=work,
        tiny=options.tiny,
        values={"device": options.device, "seeds": options.seeds, "tests": tests, "work": work},
        environment=environment,
        machine=found["machine"],
        missing=found["missing"],
    )
    if call.missing:
        print(
            f"this Python lacks {', '.join(call.missing)}; `benchmarks/gpu.sh wheels` brings them",
            file=sys.stderr,
        )
    run_stages(call, CALLS[call.name], deadline)
    if call.name == "reproduce":
        pack(work / "study", options.out / "reproduce.tar.gz")
    print(call.markdown())
    return 0 if all(o.status == "done" or o.status.startswith("left out") for o in call.outcomes) else 1


def pack(study: Path, archive: Path) -> None:
    """Results, plan and learning rates, from which `advflyp reproduce --report-only` writes the report anywhere."""
    names = [
        "plan.json",
        "tuning.json",
        *(f"results/{path.name}" for path in (study / "results").glob("*.jsonl")),
    ]
    with tarfile.open(archive, "w:gz") as tar:
        for name in sorted(names):
            if (study / name).is_file():
                tar.add(study / name, name)


def download(options: argparse.Namespace) -> int:
    """Download wheels for another Python: the pinned versions, or the newest if a pin has no wheel for it."""
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0]: line.partition(";")[0].strip() for line in lines if "==" in line}
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary=:all:", "--implementation", "cp", "--python-version", options.python]
    for system in PLATFORMS:
        pip += ["--platform", f"{system}_{options.machine}"]
    packages: list[str] = options.packages
    for name in packages:
        for wanted in dict.fromkeys((pins.get(name, name), name)):
            found = subprocess.run(
                [*pip, "--dest", str(options.folder), wanted], capture_output=True, encoding="utf-8"
            )
            if found.returncode == 0:
                break
        else:
            fail(f"there is no wheel of {name} for Python {options.python}: {found.stderr.strip()}")
        print(f"{wanted}{'' if wanted == pins.get(name) else ' (not the pinned version)'}", flush=True)
    wheels = list(options.folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB in {options.folder}")
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description="Everything that a GPU is needed for.")
    calls = parser.add_subparsers(dest="call", required=True)
    about = {
        "check": "tests, training, attacks, loader, quickstart",
        "reproduce": "training from shards, the mini reproduction's headline",
        "compile": "the training step replayed, and through torch.compile in three ways",
    }
    for name, text in about.items():
        call = calls.add_parser(name, help=text, description=text)
        call.add_argument(
            "--out", type=Path, default=Path("gpu-results"), help="folder for NAME.json, .md and .log"
        )
        call.add_argument("--wheels", type=Path, help="folder of wheels that this Python lacks")
        call.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        call.add_argument("--tiny", action="store_true", help="tiny sizes: shows that the stages run")
        call.add_argument("--seconds", type=float, default=SECONDS, help="of the whole call")
        call.add_argument(
            "--work", type=Path, default=ROOT / "build" / "gpu", help="folder for what may be deleted"
        )
        call.add_argument("--commit", help="the measured commit, where there is no git history")
        call.set_defaults(seeds=0)
    calls.choices["reproduce"].add_argument("--seeds", type=int, default=3, help="trainings of each method")
    text = "download what a GPU's Python lacks"
    wheels = calls.add_parser("wheels", help=text, description=text)
    wheels.add_argument("folder", type=Path)
    wheels.add_argument(
        "--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="its version"
    )
    wheels.add_argument("--machine", default=platform.machine(), help="its architecture")
    wheels.add_argument(
        "--packages", nargs="+", default=list(PACKAGES), help="instead of those that images lack"
    )
    options = parser.parse_args(arguments)
    for key in ("out", "wheels", "work"):
        if getattr(options, key, None) is not None:
            setattr(options, key, getattr(options, key).absolute())
    return options


def main() -> None:
    options = parse()
    sys.exit(download(options) if options.call == "wheels" else run_call(options))


if __name__ == "__main__":
    main()
