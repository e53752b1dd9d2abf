"""Thousands of hostile inputs, and none of them is an error that the program does not expect, or anything worse.

Each is read in a process of its own kind, which `watch.py` looks after. `worker.py` says how to see one again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.kinds import KINDS

WORKER = Path(__file__).with_name("worker.py")
SHARES = {
    "tars": 2500, "tables": 2500, "images": 2500, "documents": 1000, "recipes": 500, "names": 500, "weights": 500,
}  # fmt: skip
# Bytes by which a process may have grown at the end, after a quarter of its inputs.
GROWTH = 64 << 20


def read_all(folder: Path, *chunks: str) -> None:
    """Read inputs such as "tars:0-300" in one process; AssertionError with every fault."""
    home = folder / "home"
    home.mkdir()
    environment = {
        **os.environ,
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
    faults = [f"{line['kind']} {line['number']}: {line['fault']}" for line in lines if "fault" in line]
    assert found.returncode == 0, f"the process died at {lines[-1:]}: {tail}"
    assert not faults, "\n".join(faults)
    done = {line["kind"]: line for line in lines if "done" in line}
    assert len(done) == len(chunks)
    assert all(line["done"] > 0 and line["grown"] < GROWTH for line in done.values()), done


def test_some_inputs(tmp_path: Path) -> None:
    read_all(tmp_path, *(f"{kind}:0-{share // 50}" for kind, share in SHARES.items()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_inputs(kind: str, tmp_path: Path) -> None:
    read_all(tmp_path, f"{kind}:0-{SHARES[kind]}")


def test_there_are_ten_thousand() -> None:
    assert SHARES.keys() == KINDS.keys()
    assert sum(SHARES.values()) == 10_000
