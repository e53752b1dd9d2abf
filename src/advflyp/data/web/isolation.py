"""Run img2dataset in an environment of its own, because its pinned dependencies clash with ours."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from advflyp.files import cache_folder, draft_folder, move, write_text
from advflyp.limits import MAX_PIXELS

VERSION = "1.47.0"
# Packages that each distributor needs besides img2dataset.
DISTRIBUTORS = {"multiprocessing": (), "pyspark": ("pyspark",), "ray": ("ray",)}
SCRIPTS = Path(__file__).resolve().parents[1] / "isolated"
# img2dataset 1.47 imports `imghdr`, which Python 3.13 no longer has.
NEWEST_PYTHON = (3, 12)


@dataclass(frozen=True)
class Img2dataset:
    """An interpreter that has img2dataset, and the parameters of `img2dataset.download`."""

    python: Path
    version: str
    python_version: str
    opencv: str
    parameters: tuple[str, ...]


def find_img2dataset(
    given: str | None, distributor: str, say: Callable[[str], None] = lambda _: None
) -> Img2dataset:
    """The interpreter that the user names, or that of our own environment, which is created if needed.

    Args:
        given: A Python interpreter, or the command `img2dataset` that `uv tool install` or pip made.
        distributor: One of DISTRIBUTORS.
        say: Called with lines about the progress.

    Raises:
        ValueError: There is no such interpreter, or the environment cannot be created.
    """
    python = interpreter(given) if given is not None else _environment(distributor, say)
    found = _checked(python)
    if distributor not in found["distributors"]:
        raise ValueError(f"{python} has no {distributor}; install it there, or choose another --distributor")
    return Img2dataset(python, found["version"], found["python"], found["opencv"], tuple(found["parameters"]))


def _checked(python: Path) -> dict[str, Any]:
    """The output of `advflyp_fetch.py check`; ValueError if it does not run."""
    try:
        answer = subprocess.run(
            [python, str(SCRIPTS / "advflyp_fetch.py"), "check"],
            env=_variables(python),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        if not answer.returncode:
            return json.loads(answer.stdout.strip().splitlines()[-1])
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
    except OSError as error:
        reason = error.strerror
    except (IndexError, ValueError):
        reason = "it is no Python interpreter"
    raise ValueError(f"img2dataset does not run with {python} ({reason}); see --img2dataset")


def interpreter(given: str) -> Path:
    """The Python interpreter of a command: the command itself, or the one that a script names at its start."""
    found = shutil.which(str(Path(given).expanduser()))
    if found is None:
        raise ValueError(f"there is no command {given}; name a Python interpreter that has img2dataset")
    with open(found, "rb") as file:
        first, second = (file.readline(4096).decode("utf-8", "replace").strip() for _ in range(2))
    words = first[2:].split() if first.startswith("#!") else []
    if words == ["/bin/sh"] and second.startswith("'''exec' "):
        # How installers name an interpreter whose path has spaces or is long.
        words = shlex.split(second)[1:]
    named = words[0] if words else ""
    # Not resolved: an environment's interpreter is a symlink, and finds its packages by its own location.
    return Path(named if "python" in Path(named).name else found)


def _environment(distributor: str, say: Callable[[str], None]) -> Path:
    """The interpreter of our own environment, created by the first call (650 MB); ValueError if that fails."""
    packages = [f"img2dataset=={VERSION}", *DISTRIBUTORS[distributor]]
    cache = cache_folder() / "environments"
    folder = cache / "-".join(["img2dataset", VERSION, *DISTRIBUTORS[distributor]])
    python = Path("bin", "python")
    if (folder / python).exists():
        return folder / python
    say(f"installing {' and '.join(packages)} in an environment of its own: {folder}")
    try:
        with draft_folder(folder) as draft:
            _install(draft, draft / python, packages)
            with suppress(FileExistsError):  # another process was faster
                move(draft, folder)
    except OSError as error:
        raise ValueError(
            f"cannot write to {cache} ({error.strerror}); set XDG_CACHE_HOME, or see --img2dataset"
        ) from None
    return folder / python


def _install(folder: Path, python: Path, packages: list[str]) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    new = sys.version_info[:2] > NEWEST_PYTHON
    wanted = ".".join(map(str, NEWEST_PYTHON))
    if uv is not None:
        _call([uv, "venv", "-q", "--allow-existing", "--python", wanted if new else sys.executable, folder])
        _call([uv, "pip", "install", "-q", "--python", python, *packages])
        return
    if new:
        raise ValueError(
            f"img2dataset needs Python {wanted} or older: install uv, which finds one, or see --img2dataset"
        )
    _call([sys.executable, "-m", "venv", folder])
    _call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages])


def _call(command: list[Any]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = " ".join(lines[-3:])[:300] or f"exit status {done.returncode}"
        raise ValueError(
            f"img2dataset could not be installed ({reason}): go online, or name an interpreter that has it with "
            "--img2dataset"
        )


def _variables(python: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        # The guard must be importable in every worker, and nothing else of ours.
        "PYTHONPATH": str(SCRIPTS),
        "PYTHONDONTWRITEBYTECODE": "1",
        # By default, Spark's workers use whatever python3 is first on the PATH.
        "PYSPARK_PYTHON": str(python.absolute()),
        "PYSPARK_DRIVER_PYTHON": str(python.absolute()),
        # OpenCV's own limit is a decoded size of 3 GB.
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
    }


class Running:
    """An img2dataset job in a process group of its own, its output in `log`; see `isolated/advflyp_fetch.py`.

    The job inherits `lock`, which stays locked for as long as the job lives.
    """

    def __init__(self, python: Path, job: dict[str, Any], folder: Path, lock: IO[Any]) -> None:
        # The job runs in another folder, where our relative paths would point elsewhere.
        folder = folder.resolve()
        path = folder / "job.json"
        write_text(path, json.dumps(job))
        self.log = folder / "log.txt"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [python.absolute(), str(SCRIPTS / "advflyp_fetch.py"), str(path)],
                env=_variables(python),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )

    def wait(self, seconds: float) -> int | None:
        """Its exit status, or None while it runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else "no output"

    def stop(self) -> None:
        """End it and all its workers, if they still run."""
        # SIGKILL even if the first process is gone: its workers must end too.
        for kind in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
                self.wait(5)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
