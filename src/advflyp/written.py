"""Which files may be replaced: those that hold a mark of ours, and those that a folder's record says we wrote."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from advflyp.documents import parse_json
from advflyp.files import DRAFT, append, file_sha256, open_locked, write_text

# The record in a folder of files that may be replaced: lines of {name: SHA-256} for what was written.
RECORD = ".advflyp.jsonl"
# Bytes; more than a table or a model card has.
LONGEST = 1 << 24


def check_written_by_us(path: Path, *marks: bytes, option: str) -> None:
    """ValueError if `path` is a file with contents but none of `marks`.

    Args:
        path: The file to be replaced.
        marks: Byte strings: each file that we write there holds one of them, and hardly any other file does.
        option: The command-line option that names another file.
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
    """ValueError if a file in `folder` is not as `write_files` left it.

    Args:
        folder: A folder whose files are replaced one by one; other files may be in it.
        names: Patterns of the files to check: "index.html", "tables/*".
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


def write_files(folder: Path, contents: Mapping[str, str], *, instead_of: Iterable[str] = ()) -> None:
    """Write files into a folder, each whole or not at all, and note in `RECORD` that they are ours.

    Args:
        folder: It is made if missing.
        contents: Name → text; a name may lie in a subfolder ("tables/a.csv").
        instead_of: Patterns of files ("tables/*.csv"): those of an earlier call that `contents` lacks are removed.

    Raises:
        ValueError: If one of these files exists but is not as it was written here; then nothing is written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    check_files(folder, [*map(glob.escape, contents), *instead_of])
    with open_locked(folder / RECORD) as record:
        sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
        # Before the files, so that the record lists every file whenever this ends. The leading newline starts a new
        # line even if the last one was cut off.
        append(record, b"\n" + json.dumps(sums).encode() + b"\n")
        os.fsync(record.fileno())
        for name, text in contents.items():
            write_text(folder / name, text)
        for path in {path for pattern in instead_of for path in folder.glob(pattern)}:
            if path.relative_to(folder).as_posix() not in contents and not DRAFT.fullmatch(path.name):
                path.unlink()


def _written(folder: Path) -> dict[str, set[str]]:
    """Name → SHA-256 of every version that `write_files` has written under it."""
    found: dict[str, set[str]] = {}
    if (folder / RECORD).is_file():
        for line in (folder / RECORD).read_bytes().split(b"\n"):
            with suppress(ValueError, AttributeError, TypeError):  # cut off by a crash, or not ours
                for name, digest in parse_json(line).items():
                    found.setdefault(name, set()).add(digest)
    return found
