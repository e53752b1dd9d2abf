"""JSON lines that a crash cannot spoil: one record a line, a line that was cut off does not count."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a JSON-lines file, made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        text = file.read()
        # A line that a crash cut off would swallow this one.
        file.truncate(text.rfind(b"\n") + 1)
        file.write(json.dumps(record).encode() + b"\n")


def read_lines(path: Path, make: Callable[[dict[str, Any]], T]) -> list[T]:
    """`make` of every record of a JSON-lines file; none where there is no file.

    A last line without its newline was cut off by a crash and is left out. ValueError naming the line that is not
    JSON or of which `make` raises a TypeError or KeyError, and where `path` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, for example {path / 'results.jsonl'}")
    result = []
    text = path.read_text() if path.is_file() else ""
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            result.append(make(json.loads(line)))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a result of ours: {error}") from None
    return result
