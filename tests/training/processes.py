"""Real processes, several of which may share a run as if a launcher had started them.

They are forked from a server that has imported everything already: importing takes longer than what they do.
"""

import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

PATIENCE = 240
# Of multiprocessing, one server for all tests; it imports this module, and with it all that is imported below.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["advflyp.cli.main", "advflyp.evaluation.suite", "advflyp.training.loop"])


def _child(arguments: list[str], environment: dict[str, str], output: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{output}/{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    os.environ.update(environment)
    if arguments[0] == "advflyp":
        from advflyp.cli.main import main

        main(arguments[1:])
    elif arguments[0] == "waiting":
        from waiting import main

        main(arguments[1])
    else:
        from training.worker import main as work

        work(Path(arguments[1]))


class Running:
    """A process; its methods are those of subprocess.Popen."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.output = tempfile.TemporaryDirectory()
        self.process = FORKSERVER.Process(target=_child, args=(arguments, environment, self.output.name))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """What it wrote to stdout and stderr until its end; TimeoutError where it goes on."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError
        said = [Path(self.output.name) / name for name in ("out", "err")]
        out, err = (path.read_text() if path.exists() else "" for path in said)
        return out, err


def start(count: int, arguments: list[str]) -> list[Running]:
    """`count` processes of one run, each with its place in the environment.

    arguments: ["advflyp", …], ["worker", FILE] or ["waiting", WHAT]
    """
    if count == 1:
        return [Running(arguments, {})]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        Running(
            arguments, {**shared, "LOCAL_WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(count)
    ]


def finish(processes: list[Running]) -> list[tuple[int | None, str, str]]:
    """Exit code, stdout and stderr of each; whatever hangs is killed and fails the test."""
    results = []
    try:
        for process in processes:
            out, err = process.communicate()
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return results


def run(count: int, arguments: list[str]) -> list[tuple[int | None, str, str]]:
    """As `start` and `finish`, all of which must succeed."""
    results = finish(start(count, arguments))
    for code, out, err in results:
        assert code == 0, f"{out}\n{err}"
    return results
