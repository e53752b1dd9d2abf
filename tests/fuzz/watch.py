"""What an input must not bring about: errors not the program's own, memory, time, files, connections, code."""

import dis
import io
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import CodeType
from typing import Any

import advflyp
from advflyp.cli.main import main
from advflyp.errors import RunError, refusal
from hostile import assert_printable

PACKAGE = str(Path(advflyp.__file__).parent)
# What makes the program reach another machine or start another program, whatever its arguments.
REACHING = {
    "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
    "webbrowser.open", "pickle.find_class",
}  # fmt: skip
# Hosts that are looked up without asking anybody.
NUMERIC = re.compile(r"[\d.:a-fx]*", re.IGNORECASE)
# Events whose first arguments, so many, are paths that are changed.
CHANGING = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
    "os.rename": 2, "os.link": 2, "os.symlink": 2,
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Watches one call at a time; there is one for a process, since Python forgets no audit hook."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)
        sys.unraisablehook = lambda hint: self.seen.append(f"unraisable: {hint.exc_value!r}")
        threading.excepthook = lambda hint: self.seen.append(f"a thread died: {hint.exc_value!r}")

    def faults(self, use: Callable[[], object], folder: Path, memory: int, most: float) -> list[str]:
        """What goes wrong when `use` reads what is in `folder`/in.

        Args:
            use: The call.
            folder: In which only `out` may change.
            memory: Bytes by which the process may grow meanwhile.
            most: Seconds of processor that it may take.
        """
        before, base = _listing(folder), _reset_peak()
        begun = time.process_time()
        stdout, stderr = io.StringIO(), io.StringIO()
        self.seen, self.folder = [], folder
        try:
            with redirect_stdout(stdout), redirect_stderr(stderr):
                error = _outcome(use)
        finally:
            self.folder = None
        found = list(dict.fromkeys(self.seen))
        seconds, grown = time.process_time() - begun, _status("VmHWM") - base
        found += [] if error is None else _complaints(error, stderr.getvalue())
        for text in (stdout.getvalue(), stderr.getvalue()):
            found += _unprintable(text)
        if seconds > most:
            found.append(f"{seconds:.1f} s of processor")
        if grown > memory:
            found.append(f"{grown >> 20} MB of memory")
        if changed := sorted(before.items() ^ _listing(folder).items()):
            found.append(f"changed outside of out: {changed[:3]}")
        return found

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in REACHING and not (event == "socket.getaddrinfo" and NUMERIC.fullmatch(str(given[0]))):
            self.seen.append(f"{event} {given!r:.200}")
        elif event == "exec" and isinstance(given[0], CodeType):
            if given[0].co_filename.startswith(str(self.folder)):
                self.seen.append(f"code of the input is run: {given[0].co_filename}")
        elif event == "open":
            path, mode, flags = given
            if (flags or 0) & WRITES or any(letter in (mode or "") for letter in "wax+"):
                self._changes(path, event)
        elif event in CHANGING:
            for path in given[: CHANGING[event]]:
                self._changes(path, event)

    def _changes(self, path: Any, event: str) -> None:
        """Note a change outside of `out`; a descriptor was opened before, and relative names belong to one."""
        if not isinstance(path, str | bytes | os.PathLike) or os.fspath(path) in ("/dev/null", b"/dev/null"):
            return
        name = os.fsdecode(path)
        allowed = str(self.folder / "out")  # type: ignore[operator]
        if os.path.isabs(name) and not f"{os.path.normpath(name)}/".startswith(f"{allowed}/"):
            self.seen.append(f"{event} {name!r:.200}")


@contextmanager
def _closed_stdin() -> Iterator[None]:
    """A question to the user would be answered by the end of the file."""
    kept, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = kept


def _outcome(use: Callable[[], object]) -> BaseException | None:
    try:
        with _closed_stdin():
            use()
    except BaseException as error:
        return error
    return None


def command(*words: str | Path) -> None:
    """`advflyp WORDS`, in this process."""
    main([str(word) for word in words])


def _complaints(error: BaseException, stderr: str) -> list[str]:
    """What is wrong about how a call ended: only the program's own errors say what the user can do."""
    if isinstance(error, SystemExit):
        cause = error.__context__
        if error.code in (0, None):
            return []
        lines = [line for line in stderr.splitlines() if line.startswith("advflyp: ")]
        if error.code not in (1, 2) or cause is None or len(lines) != 1:
            return [f"exit {error.code}, {lines!r}"]
        error = cause
    if isinstance(error, OSError) and refusal(error) is not None:
        return []
    own = isinstance(error, ValueError) and type(error).__module__.startswith("advflyp.")
    if (own or type(error) in (ValueError, RunError)) and _is_ours(error):
        return []
    last = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
    return [f"{type(error).__name__}: {str(error)[:200]!a} at {where}"]


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` of the program raised it, and not a library or a builtin that was given nonsense."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    return code.co_filename.startswith(PACKAGE) and code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _unprintable(text: str) -> list[str]:
    try:
        assert_printable(text)
    except AssertionError as error:
        return [f"printed: {str(error)[:200]}"]
    return ["a traceback is printed"] if "Traceback (most" in text else []


def _listing(folder: Path) -> dict[str, int]:
    """Size and time of every file below the folder but for `out`."""
    found: dict[str, int] = {}
    for where, folders, files in os.walk(os.fsencode(folder)):
        if os.fsdecode(where) == str(folder):
            folders[:] = [name for name in folders if name != b"out"]
        for name in (*files, *folders):
            status = os.lstat(os.path.join(where, name))
            found[ascii(os.path.join(where, name))] = 0 if name in folders else status.st_mtime_ns
    return found


def _reset_peak() -> int:
    """Begin to measure the peak of memory anew; what is in use now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A size of this process that the kernel knows, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def resident() -> int:
    """Bytes of memory in use."""
    return _status("VmRSS")
