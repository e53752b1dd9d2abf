"""JSON lines that a crash cannot spoil: one record a line, a line that was cut off does not count."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.files import append, open_locked
from advflyp.limits import MAX_RESULTS_BYTES, open_regular, read_bounded

T = TypeVar("T")

BLOCK = 1 << 16
# What belongs to results.jsonl is in folders beside it: results.samples, results.unfinished.
SAMPLES, UNFINISHED = ".samples", ".unfinished"
# Every record begins with the name of the model: by that, a line that was cut off is told from a file of other things.
BEGINNING = b'{"model": "'


def check_store(path: Path) -> None:
    """ValueError where a file is in the place of a folder that is to be beside the results: measuring takes long."""
    for folder in (path.with_suffix(SAMPLES), path.with_suffix(UNFINISHED)):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, and the folder for what belongs to {path}; move it away")


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a JSON-lines file, made if it is not there; several processes may do so at once."""
    with open_locked(path) as file:
        end = _end_of_lines(file)
        file.seek(end)
        rest = file.read()
        line = json.dumps(record).encode() + b"\n"
        if _cut_off(rest):
            # It would swallow this one.
            file.truncate(end)
        elif _is_json(rest):
            line = b"\n" + line
        else:
            raise ValueError(f"{path} does not hold results; name another file for them")
        append(file, line)


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends, sought from the end of the file: what is before it is not read."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


def read_lines(path: Path, make: Callable[[Any], T]) -> list[T]:
    """`make` of every record of a JSON-lines file; none where there is no file.

    A last line that a crash cut off is left out. ValueError naming the line that is not JSON or of which `make` raises
    one, and where `path` is a folder or too large.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, for example {path / 'results.jsonl'}")
    lines = _read(path).split(b"\n") if path.is_file() else [b""]
    if _cut_off(lines[-1]):
        lines.pop()
    result = []
    for number, line in enumerate(lines, 1):
        try:
            result.append(make(parse_json(line)))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not a result of ours that fits here: {error} (`eval` and `retrieval` write "
                "different results)"
            ) from None
    return result


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return read_bounded(file, MAX_RESULTS_BYTES)
    except SkippedSample as reason:
        raise ValueError(f"{path} {reason}; name the results that you mean") from None


def _cut_off(line: bytes) -> bool:
    """Whether nothing of a last line without its newline counts: it is empty, or the beginning of a record of ours."""
    return BEGINNING.startswith(line[: len(BEGINNING)]) and not _is_json(line)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True
