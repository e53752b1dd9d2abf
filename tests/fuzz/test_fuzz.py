"""Thousands of hostile inputs, and none of them is an error that the program does not expect, or anything worse.

A process reads them, which `watch.py` looks after; all take some four minutes of one core. `worker.py` says how to see
one again.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz.faulty import MISDEEDS
from fuzz.kinds import KINDS

WORKER = Path(__file__).with_name("worker.py")
# Bytes by which a process may have grown at the end, after a quarter of its inputs.
GROWTH = 64 << 20


def read_all(folder: Path, *chunks: str) -> list[dict[str, Any]]:
    """What a process says of inputs such as "tars:0-300"; AssertionError where it dies of one."""
    home = folder / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",  # what is imported first would be a file written elsewhere
        "HOME": str(home),
        "TMPDIR": str(home),
        "MPLCONFIGDIR": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        # What is freed goes back to the system, so that growth is growth.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    with open(folder / "errors", "w+", encoding="utf-8") as errors:
        found = subprocess.run(
            [sys.executable, WORKER, folder, *chunks],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
        errors.seek(0)
        tail = errors.read()[-3000:]
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.returncode == 0, f"the process died at {lines[-1:]}: {tail}"
    return lines


def assert_harmless(lines: list[dict[str, Any]]) -> None:
    """No fault, and no growth from input to input."""
    lines = [line for line in lines if line["kind"] in KINDS]
    faults = [f"{line['kind']} {line['number']}: {line['fault']}" for line in lines if "fault" in line]
    assert not faults, "\n".join(faults)
    done = [line for line in lines if "done" in line]
    assert done and all(line["done"] > 0 and line["grown"] < GROWTH for line in done), done


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A few inputs of every kind, and all misdeeds, in one process: to start it takes longest."""
    chunks = (f"{name}:0-{kind.share // 50}" for name, kind in KINDS.items())
    return read_all(tmp_path_factory.mktemp("fuzz"), *chunks, f"faulty:0-{len(MISDEEDS)}")


@pytest.mark.long
def test_some_inputs(sample: list[dict[str, Any]]) -> None:
    assert_harmless(sample)
    assert {line["kind"] for line in sample if "done" in line} == {*KINDS, "faulty"}


@pytest.mark.parametrize("number", range(len(MISDEEDS)))
def test_every_misdeed_is_noticed(number: int, sample: list[dict[str, Any]]) -> None:
    expected = list(MISDEEDS)[number]
    lines = (line for line in sample if line["kind"] == "faulty" and line.get("number") == number)
    found = [line["fault"] for line in lines if "fault" in line]
    if expected.startswith("nothing"):
        assert not found
    else:
        assert any(expected in fault for fault in found), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_inputs(kind: str, tmp_path: Path) -> None:
    assert_harmless(read_all(tmp_path, f"{kind}:0-{KINDS[kind].share}"))


@pytest.mark.parametrize("kind", ["tars", "tables", "images", "recipes", "names"])
def test_an_input_is_made_again_by_its_number(kind: str, tmp_path: Path) -> None:
    def made(folder: Path) -> dict[str, bytes]:
        for name in ("in", "out"):
            (folder / name).mkdir(parents=True)
        KINDS[kind].make(random.Random(f"{kind}/3"), folder)
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert made(tmp_path / "a") == made(tmp_path / "b") != {}


def test_there_are_ten_thousand() -> None:
    assert sum(kind.share for kind in KINDS.values()) == 10_000
