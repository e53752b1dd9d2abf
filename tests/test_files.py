"""Files and folders that are whole whenever a process is killed, however many processes write."""

import ast
import errno
import fcntl
import json
import multiprocessing
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from advflyp import files
from advflyp.files import (
    InUse,
    draft_file,
    draft_folder,
    lock,
    move,
    names_in,
    open_locked,
    publish,
    publish_folder,
    recover_folder,
    try_lock,
    try_open_locked,
    write_atomically,
    write_text,
)
from advflyp.written import RECORD, check_files, check_written_by_us, write_files

# A process of its own for each kill, forked from one without torch. Before the nth operation on a file it is gone.
PROGRAM = """
import os, sys
from pathlib import Path
from advflyp import files
from advflyp.files import *
from advflyp.written import *

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "ctypes.dlsym", "fcntl.flock"}
os.fsync = lambda file: None  # slow, and of no use to a process that is killed
root = Path(sys.argv[1])
NAMES = ("a", "b", "c")

def folder(text, **how):
    with draft_folder(root / "out") as draft:
        for name in NAMES:
            (draft / name).write_text(text)
        publish_folder(draft, root / "out", **how)

def without_exchange(text):
    files._renamed = lambda *_: False
    folder(text, replace=True)

def read_file():
    return {(root / "out").read_text()}

def read_folder():
    recover_folder(root / "out")
    assert names_in(root / "out") == set(NAMES), names_in(root / "out")
    return {(root / "out" / name).read_text() for name in NAMES}

def read_files():
    check_files(root / "out", ("*.txt", "deep/*"))
    found = {path.read_text() for path in (root / "out").rglob("*.txt")}
    return {max(found)}  # each for itself is old or new

WORK = {
    "file": (lambda text: write_text(root / "out", text), read_file),
    "folder": (lambda text: folder(text, replace=True), read_folder),
    "folder, without exchange": (without_exchange, read_folder),
    "files": (lambda text: write_files(root / "out", {"x.txt": text, "deep/y.txt": text}), read_files),
}
do, read = WORK[sys.argv[2]]

def in_child(work):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        work()
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(1)
    os._exit(0)

def killed(text, moment):
    left = [moment]
    def hook(event, arguments):
        if event in EVENTS:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)
    do(text)

kills = 0
assert in_child(lambda: do("old")) == 0
while True:
    code = in_child(lambda: killed("new", kills))
    assert read() <= {"old", "new"}, (kills, read())
    if code == 0:
        break
    assert code == -9, code
    kills += 1
    # Again and again, so that what one leaves is in the way of the next.
    assert in_child(lambda: do("old")) == 0 and read() == {"old"}, kills
assert read() == {"new"}
left = {path.name for path in root.rglob("*")} - {"out", *NAMES, "x.txt", "deep", "y.txt", RECORD}
assert not left, left
print(kills)
"""


@pytest.mark.parametrize("work", ["file", "folder", "folder, without exchange", "files"])
def test_killed_before_any_operation_old_or_new_is_whole(tmp_path: Path, work: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), work]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= 4, "it was killed"


def test_a_file_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text(path, "ä")
    assert path.read_bytes() == "ä".encode()
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as file:
        file.write(b"half")
        assert names_in(path.parent) == {"x.txt"} and len(list(path.parent.iterdir())) == 2
        raise KeyboardInterrupt
    assert path.read_text("utf-8") == "ä" and list(path.parent.iterdir()) == [path]
    (tmp_path / "link").symlink_to(path)
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and path.read_text() == "new"
    write_text(tmp_path / ("n" * 250), "long")
    (tmp_path / "loop").symlink_to("loop")
    write_text(tmp_path / "loop", "a file in place of a link to itself")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("system", ["renameat2", "none"])
def test_a_new_file_replaces_nothing(tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "none":
        monkeypatch.setattr(files, "_renamed", lambda *_: False)
    path = tmp_path / "x"
    with pytest.raises(FileExistsError), write_atomically(path, replace=False) as file:
        file.write(b"ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and list(tmp_path.iterdir()) == [path]
    path.unlink()
    write_text(path, "ours")
    with pytest.raises(FileExistsError):
        move(path, tmp_path)
    move(path, tmp_path / "y")
    assert (tmp_path / "y").read_text() == "ours"


def test_a_draft_gets_a_name_that_its_contents_decide(tmp_path: Path) -> None:
    with draft_file(tmp_path, "step") as file:
        file.write(b"abc")
        publish(file, tmp_path / "step-abc")
    assert (tmp_path / "step-abc").read_bytes() == b"abc" and len(list(tmp_path.iterdir())) == 1


def test_drafts_of_others_are_left_alone(tmp_path: Path) -> None:
    """Of a process that lives, of another file, and files that only look like one."""
    others = [tmp_path / ".x.partial", tmp_path / ".x.y.01234567.partial", tmp_path / ".z.01234567.partial"]
    for path in others:
        path.touch()
    abandoned = tmp_path / ".x.01234567.partial"
    abandoned.touch()
    with draft_file(tmp_path, "x") as file, draft_folder(tmp_path / "x") as draft:
        write_text(tmp_path / "x", "other")
        assert Path(file.name).is_file() and draft.is_dir() and not abandoned.exists()
        assert names_in(tmp_path) == {"x", ".x.partial"}
    assert {path.name for path in tmp_path.iterdir()} == {"x", *(path.name for path in others)}


def test_a_draft_that_is_taken_for_abandoned_at_once_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock another process may remove it."""
    real, taken = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if len(taken) < 2:
            taken.append(file.name)
            os.unlink(file.name)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_text(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole" and len(taken) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_new_or_replaced_as_asked(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def write(text: str, **how: bool) -> None:
        with draft_folder(out) as draft:
            assert draft.name == "out"
            (draft / "x").write_text(text)
            publish_folder(draft, out, **how)

    write("first")
    with pytest.raises(ValueError, match="already exists; name a new folder"):
        write("second")
    write("third", replace=True)
    assert (out / "x").read_text() == "third" and list(out.parent.iterdir()) == [out]
    (out / "x").unlink()
    write("into an empty one")
    link = tmp_path / "link"
    link.symlink_to(out)
    with draft_folder(link) as draft:
        publish_folder(draft, link, replace=True)
    assert link.is_symlink() and list(out.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="already exists"), draft_folder(tmp_path / "file") as draft:
        publish_folder(draft, tmp_path / "file")
    with pytest.raises(OSError, match="No space left") as caught, draft_folder(tmp_path / "a" / "b") as draft:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a" / "b")
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "link", "file"}


def test_a_folder_that_cannot_be_replaced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, how: path != tmp_path)
    with pytest.raises(ValueError, match="name a new folder in it"), draft_folder(tmp_path / "out"):
        pass
    with draft_folder(tmp_path / "new") as draft:
        publish_folder(draft, tmp_path / "new")


def test_a_lock_is_one_processs(tmp_path: Path) -> None:
    path = tmp_path / "deep" / ".lock"
    held = lock(path)
    with pytest.raises(
        InUse, match=rf"process {os.getpid()} on \S+ is working on .*deep; wait until it ends"
    ):
        lock(path, wait=0.15)
    assert try_lock(path) is None and try_open_locked(path) is None
    held.close()
    with lock(path):
        assert try_lock(path) is None
    # A lock on a file that has been removed since it was opened keeps nobody out.
    one = open_locked(path)
    path.unlink()
    with open_locked(path) as other:
        assert files._is_at(other, path) and not files._is_at(one, path)
    one.close()


def _append(path: Path, number: int) -> None:
    for i in range(100):
        with open_locked(path) as file:
            file.write(json.dumps([number, i, "x" * 800]).encode() + b"\n")
        # The last one removes the folder that the next one makes.
        other = path.with_name("folder") / f"{number}-{i}"
        with open_locked(other):
            other.unlink()
        with suppress(OSError):
            other.parent.rmdir()


def test_nothing_is_lost_where_several_append(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(tmp_path / "x.jsonl", number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = [json.loads(line)[:2] for line in (tmp_path / "x.jsonl").read_bytes().splitlines()]
    assert sorted(lines) == [[number, i] for number in range(3) for i in range(100)]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_data_is_appended_as_a_whole_or_not_at_all(
    tmp_path: Path, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    with files.open_locked(path) as file:
        assert files.append(file, b"one\n") == 4
        real = os.write

        def write(handle: int, data: bytes) -> int:
            if len(data) < 4:
                raise fault
            return real(handle, data[:2])

        with monkeypatch.context() as patch, pytest.raises(type(fault)) as caught:
            patch.setattr(os, "write", write)
            files.append(file, b"two\n")
        assert path.read_bytes() == b"one\n"
        assert files.append(file, b"three\n") == 10
        assert not isinstance(caught.value, OSError) or caught.value.filename == str(path)
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK"])
def test_a_file_system_without_locks(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: Any, how: int) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="does not support locks: let one process at a time write there"):
        write_text(tmp_path / "x", "one")
    with pytest.warns(UserWarning, match="does not support locks"), draft_file(tmp_path, "x") as file:
        write_text(tmp_path / "x", "two")
        assert Path(file.name).exists(), "whether a draft is abandoned is not known"
    monkeypatch.undo()
    with pytest.raises(NotADirectoryError):
        open_locked(tmp_path / "x" / "y")


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_files(out, ["*"])
    write_files(out, {"index.html": "one", "tables/[a].csv": "1,2"})
    write_files(out, {"index.html": "two", "tables/[a].csv": "1,2"})
    check_files(out, ["*.html", "tables/*"])
    (out / "index.html").write_text("one")
    check_files(out, ["*.html"])
    (out / "notes.txt").write_text("mine")
    (out / "tables" / "b.csv").write_text("mine")
    for names in (["notes.txt"], ["tables/*"], ["tables"]):
        with pytest.raises(ValueError, match="was not written by advflyp, or was changed since"):
            check_files(out, names)
    (out / "index.html").write_text("one, by hand")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"index\.html was not written by advflyp, or was changed"):
        write_files(out, {"new.txt": "", "index.html": "three"})
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    # Damaged, it knows less.
    (out / RECORD).write_bytes(b'[1]\n{"a": [1]}\nnull\n\xff\n{"notes.t')
    with pytest.raises(ValueError, match="was not written by advflyp"):
        check_files(out, ["*.html"])
    (out / "index.html").unlink()
    write_files(out, {"index.html": "four"})
    write_files(out, {"index.html": "five"})
    assert (out / "index.html").read_text() == "five" and (out / "notes.txt").read_text() == "mine"


def test_a_single_file_is_known_by_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    check_written_by_us(path, b"a mark", option="--card")
    path.touch()
    check_written_by_us(path, b"a mark", option="--card")
    path.write_text("text and a mark")
    check_written_by_us(path, b"another", b"a mark", option="--card")
    with pytest.raises(ValueError, match=r"card\.md was not written by advflyp .*another file with --card"):
        check_written_by_us(path, b"another", option="--card")


def test_nothing_to_recover(tmp_path: Path) -> None:
    recover_folder(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


# What writes outside of files.py, and why it may.
ALLOWED = {
    "cli/paths.py": {"tempfile": "a file without a name tries whether a folder can be written to"},
    "model/interop/publish.py": {"tempfile": "a folder whose files are read at once, to be sent"},
    "training/dry_run.py": {"tempfile": "the folder of a run that takes no step"},
    "use/quickstart.py": {"tempfile": "a run of three steps that nobody keeps"},
    "use/demo.py": {"tempfile": "a folder for the files of a page, gone with it"},
    "terminal.py": {"open": "the null device", "os.open": "the null device"},
    "data/pairs/process.py": {
        "tempfile": "memory of two processes where there is no memfd",
        "ftruncate": "the size of that memory",
    },
    "data/web/isolation.py": {"open": "the log of another program, for as long as it runs"},
    "data/web/rounds.py": {"save": "of its own, by write_text"},
    "model/interop/export.py": {"save_pretrained": "into a draft"},
    "model/folder.py": {"save_pretrained": "into a draft", "save": "safetensors', into memory"},
}
MODULES = {"fcntl", "tempfile", "filelock"}
ALWAYS = {
    "write_text", "write_bytes", "rename", "renames", "touch", "symlink", "symlink_to", "link", "hardlink_to", "mknod",
    "ftruncate", "copy", "copy2", "copyfile", "copytree", "move", "to_csv", "to_parquet", "save_file",
    "save_pretrained", "imsave",
}  # fmt: skip
# Unless they are given an open file, one of files.py's or one in memory.
UNLESS_OPEN = {
    "save",
    "savefig",
    "savez",
    "savez_compressed",
    "json.dump",
    "pq.write_table",
    "pq.ParquetWriter",
}
OPEN_FILES = {"file", "stream", "buffer", "hashed"}
NAMES = {"open", "replace", *ALWAYS, *(name.rpartition(".")[2] for name in UNLESS_OPEN)}
MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]+")


def writes(call: ast.Call, from_files: set[str]) -> str | None:
    """What a call is called, if it writes."""
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in NAMES:
        return None
    function = ast.unparse(call.func)
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name == "open" and function != "os.open":
        modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        given_file = any(keyword.arg == "fileobj" for keyword in call.keywords)
        return name if any(map(MODE.fullmatch, modes)) and not given_file else None
    if function == "os.open":
        return function if re.search("O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", ast.unparse(call)) else None
    if name == "replace":  # str.replace takes two, dataclasses.replace keywords
        path = method and len(call.args) == 1 and not call.keywords
        return name if path or function == "os.replace" else None
    if name in UNLESS_OPEN or function in UNLESS_OPEN:
        return None if OPEN_FILES & set(map(ast.unparse, call.args)) else name
    ours = not method and name in from_files
    copies = name == "copy" and not function.startswith("shutil.")
    return name if name in ALWAYS and not ours and not copies else None


def what_writes(code: str) -> set[str]:
    """The calls of a module that write, and the modules that it imports to write by."""
    nodes = list(ast.walk(ast.parse(code)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    from_files = {a.name for node in imports if node.module == "advflyp.files" for a in node.names}
    modules = {str(node.module) for node in imports}
    modules |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    calls = (writes(node, from_files) for node in nodes if isinstance(node, ast.Call))
    return (MODULES & modules) | {call for call in calls if call}


def test_nothing_is_written_elsewhere() -> None:
    source = Path(files.__file__).parent
    found = {
        path.relative_to(source).as_posix(): what_writes(path.read_text(encoding="utf-8"))
        for path in source.rglob("*.py")
        # What is isolated runs in another program's environment, and writes nothing.
        if path != Path(files.__file__) and "isolated" not in path.parts
    }
    found = {name: calls for name, calls in found.items() if calls}
    assert found == {name: set(calls) for name, calls in ALLOWED.items()}


@pytest.mark.parametrize(
    "code",
    ["open(p, 'w')", "open(p, mode='a+b')", "p.open('wb')", "tarfile.open(p, 'w')", "p.write_text('')",
     "os.replace(a, b)", "p.rename(q)", "p.replace(q)", "shutil.move(a, b)", "shutil.copy(a, b)", "import fcntl",
     "from tempfile import mkdtemp", "torch.save(x, p)", "np.savez(p, a=a)", "image.save(p / 'x.png')",
     "pq.write_table(t, p)", "os.open(p, os.O_RDWR | os.O_CREAT)", "json.dump(x, open(p))", "net.save_pretrained(p)",
     "from x import write_text\nwrite_text(p, t)"],
)  # fmt: skip
def test_what_writes_is_found(code: str) -> None:
    assert what_writes(code)


def test_what_does_not_write_is_not() -> None:
    code = """
from advflyp.files import move, write_text
open(p), open(p, "rb"), open(p, encoding="utf-8"), tar.extractfile("w"), os.open(p, os.O_RDONLY)
text.replace("a", "b"), dataclasses.replace(cell, n=1), replace(cell, n=1), model.copy(), copy.copy(x)
image.save(stream, "png"), write_text(p, text), move(a, b), file.truncate(0), tarfile.open(fileobj=f, mode="w")
"""
    assert not what_writes(code)
