"""Real processes that share a run, started as a launcher starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ADVFLYP = [sys.executable, "-m", "advflyp"]
WORKER = [sys.executable, str(Path(__file__).with_name("worker.py"))]
PATIENCE = 240


def start(count: int, command: list[str], **options: object) -> list[subprocess.Popen[str]]:
    """`count` processes of one run; `options` are those of Popen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(count):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        processes.append(subprocess.Popen(command, env=environment, **pipes))  # type: ignore[call-overload]
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; whatever hangs is killed and fails the test."""
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE)
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return results


def run(count: int, command: list[str]) -> list[tuple[int, str, str]]:
    """As `start` and `finish`, all of which must succeed."""
    results = finish(start(count, command))
    for code, out, err in results:
        assert code == 0, f"{out}\n{err}"
    return results
