"""Which files are ours to replace: those that hold a mark of ours, and those that a folder's record says we wrote."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from advflyp.documents import parse_json
from advflyp.files import DRAFT, append, file_sha256, open_locked, write_text

# In a folder of files that may be replaced: lines of {name: SHA-256} of what was written.
RECORD = ".advflyp.jsonl"
# More bytes than a table or a card has.
LONGEST = 1 << 24


def check_written_by_us(path: Path, *marks: bytes, option: str) -> None:
    """ValueError where there is a file with contents at `path` that holds none of `marks`.

    Args:
        path: A file that is to be replaced.
        marks: Each kind of file that we write there holds one of them, and hardly any other file does.
        option: What names another file.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        data = file.read(LONGEST)
    if data and not any(mark in data for mark in marks):
        raise ValueError(
            f"{path} was not written by advflyp and is not replaced; name another file with {option}"
        )


def check_files(folder: Path, names: Iterable[str]) -> None:
    """ValueError where a file of `folder` is not as `write_files` left it there.

    Args:
        folder: A folder for files that are replaced one by one; others may be in it.
        names: Which files, as patterns: "index.html", "tables/*".
    """
    written = _written(folder)
    found = (path for name in names for path in sorted(folder.glob(name)))
    for path in (path for path in found if not DRAFT.fullmatch(path.name)):
        known = written.get(path.relative_to(folder).as_posix(), ())
        if not known or not path.is_file() or file_sha256(path) not in known:
            raise ValueError(
                f"{path} was not written by advflyp, or was changed since, and is not replaced; move it away, or name "
                "another folder"
            )


def write_files(folder: Path, contents: Mapping[str, str]) -> None:
    """Write files of a folder, each whole or not at all, and note in `RECORD` that they are ours.

    Args:
        folder: It is made if it is not there.
        contents: Text by name, which may be that of a file in a folder below.

    Raises:
        ValueError: Where one of them is there and is not as it was written here; then nothing is written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    check_files(folder, map(glob.escape, contents))
    with open_locked(folder / RECORD) as record:
        sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
        # Before the files: there is none, whenever this ends, that is not in it. On a line of its own, too, where the
        # last one was cut off.
        append(record, b"\n" + json.dumps(sums).encode() + b"\n")
        os.fsync(record.fileno())
        for name, text in contents.items():
            write_text(folder / name, text)


def _written(folder: Path) -> dict[str, set[str]]:
    """Name → SHA-256 of all that `write_files` has written under it."""
    found: dict[str, set[str]] = {}
    if (folder / RECORD).is_file():
        for line in (folder / RECORD).read_bytes().split(b"\n"):
            with suppress(ValueError, AttributeError, TypeError):  # cut off by a crash, or not ours
                for name, digest in parse_json(line).items():
                    found.setdefault(name, set()).add(digest)
    return found
