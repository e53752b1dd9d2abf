"""Read JSON, TOML and text from untrusted files, within limits.

Python's own parsers raise half a dozen kinds of errors: for nesting, for numbers with thousands of digits, for
encodings. Here anything wrong with a file is a ValueError with the reason, and `limits.py` says how large it may be.
"""

import codecs
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advflyp.errors import SkippedSample
from advflyp.limits import (
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    MAX_LIST_BYTES,
    MAX_RECIPE_BYTES,
    open_regular,
    read_bounded,
)

# Digits of a 64-bit integer, with its sign.
_DIGITS = 20
# tomllib takes quadratic time for a key of many parts, such as a.b.c.d. Quoted parts of more than 32 characters, of
# which few fit into a recipe, are left to it: looking for their ends would take quadratic time, too.
_PART = r"""(?:[\w-]++|"(?:[^"\\\n]|\\.){0,32}+"|'[^'\n]{0,32}+')[ \t]*+"""
_LONG_KEY = re.compile(rf"(?<![\w\\-]){_PART}(?:\.[ \t]*+{_PART}){{{MAX_DEPTH}}}")


def decode(data: bytes) -> str:
    """Decode UTF-8, or the encoding that a byte order mark names, as Windows editors write it; the mark is dropped."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def parse_json(data: bytes | str) -> Any:
    """Parse JSON.

    Whole numbers of more than 64 bits become floats, as in most languages. NaN and Infinity, which are not JSON but
    which Python writes, are accepted: a caller that needs a finite number has to check.

    Args:
        data: The text, or its bytes in UTF-8 (or UTF-16 with a byte order mark).

    Raises:
        ValueError: It is not JSON, an object in it has a key twice, or it is nested more than MAX_DEPTH levels deep.
            The message is the reason alone.
    """
    try:
        text = data if isinstance(data, str) else decode(data)
        found = json.loads(text, parse_int=_whole_number, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(found)
    return found


def read_json(path: Path, advice: str = "") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        advice: End of the message if the file is damaged.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, is larger than MAX_DOCUMENT_BYTES, or is damaged; see `parse_json`.
    """
    try:
        with open_regular(path) as file:
            data = read_bounded(file, MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        raise
    except SkippedSample as reason:
        raise ValueError(f"cannot read {path}: {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}{advice}") from None


def read_json_object(path: Path, advice: str = "") -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object."""
    found = read_json(path, advice)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it does not hold an object{advice}")
    return found


def parse_toml(data: bytes | str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: It is not TOML, larger than MAX_RECIPE_BYTES, nested more than MAX_DEPTH levels deep, or a whole
            number in it has more than 64 bits. The message is the reason alone.
    """
    if len(data) > MAX_RECIPE_BYTES:
        raise ValueError(f"it is larger than {MAX_RECIPE_BYTES >> 10} kB")
    try:
        text = data if isinstance(data, str) else decode(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error})") from None
    if _LONG_KEY.search(text):
        raise ValueError(_TOO_DEEP)
    try:
        found = tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's own, for thousands of digits
        raise ValueError(_TOO_LARGE) from None
    _check_depth(found)
    _check_integers(found)
    return found


def read_bytes(path: str | Path, limit: int) -> bytes:
    """Read a user's file; ValueError if it cannot be read or is larger than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            return read_bounded(file, limit)
    except SkippedSample as reason:
        raise ValueError(f"{path} {reason}; name another file") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """Read a user's text file; ValueError if it cannot be read, is too large or is not Unicode."""
    data = read_bytes(path, MAX_LIST_BYTES)
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} in line {line}); save it as UTF-8"
        ) from None


_TOO_DEEP = f"it is nested more than {MAX_DEPTH} levels deep"
_TOO_LARGE = "a whole number in it has more than 64 bits"


def _whole_number(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS else float(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object in it has the key '{twice[:60]}' twice")
    return found


def _inner(values: Iterable[Any]) -> list[Any]:
    """The values in lists and objects among `values`."""
    return [
        inner
        for value in values
        if isinstance(value, dict | list)
        for inner in (value.values() if isinstance(value, dict) else value)
    ]


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = _inner(level)
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _check_integers(tree: dict[str, Any]) -> None:
    level: list[Any] = [tree]
    while level := _inner(level):
        if any(isinstance(value, int) and not -(1 << 63) <= value < 1 << 63 for value in level):
            raise ValueError(_TOO_LARGE)
