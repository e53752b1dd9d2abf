"""Table cells as captions and addresses: text, or whatever a library turned text into when it wrote the table.

pandas writes a missing caption as "nan" and a list of captions as "['one', 'two']"; Spark stores text as bytes; COCO on
the Hugging Face hub has {"raw": caption, "tokens": […]}. Anything that is not text is refused: otherwise its
Python notation would be trained on as a caption.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from advflyp.data.filenames import is_image
from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_IMAGE_BYTES

# What captions are called, the likeliest first; case does not matter.
CAPTION_NAMES = ("caption", "captions", "text", "txt", "title", "sentence", "sentences", "raw", "description")
# How Python, NumPy, pandas, JSON and SQL write a missing value.
MISSING = frozenset(("", "None", "nan", "NaN", "null", "NULL", "<NA>"))
# Python's or NumPy's notation of a list of texts; NumPy separates them by white space alone.
_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LIST = re.compile(rf"\[\s*(?:(?:{_TEXT}|None|nan)(?:\s*,)?\s*)*\]", re.DOTALL)
# Longer text is never a list of captions.
MAX_NOTATION = 100_000
MAX_PATH_BYTES = 4096
# Servers take no longer web addresses, in characters.
MAX_ADDRESS = 2 * MAX_PATH_BYTES


def captions_in(value: Any) -> list[str]:
    """The captions in a cell, none if it is empty. A cell is text, UTF-8 bytes, {"raw": …}, or a list of these.

    Raises:
        SkippedSample: It is anything else, such as a number.
    """
    value = _without_notation(value)
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, list | tuple) for part in parts):
        raise SkippedSample("caption is not text")
    return [text for part in parts for text in _captions_of_one(part)]


def _captions_of_one(value: Any) -> list[str]:
    if _is_missing(value):
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        return captions_in(decoded(value, "caption"))
    if isinstance(value, Mapping):
        lower = {name.lower(): inner for name, inner in value.items() if isinstance(name, str)}
        if name := next((name for name in CAPTION_NAMES if name in lower), None):
            return captions_in(lower[name])
    raise SkippedSample("caption is not text")


def image_in(value: Any) -> bytes | str | None:
    """The encoded image in a cell, its path or address, or None if there is none.

    A cell is one of these, Hugging Face's {"bytes": …, "path": …}, or a list of one.

    Raises:
        SkippedSample: It is anything else, or too large.
    """
    value = _only(value, "images")
    if isinstance(value, Mapping) and value.keys() & {"bytes", "path"}:
        data = value.get("bytes")
        value = value.get("path") if _is_missing(data) else data
    if _is_missing(value):
        return None
    if isinstance(value, str):
        if len(value) > MAX_ADDRESS:
            raise SkippedSample("image path is too long")
        return value.strip()
    if not isinstance(value, bytes):
        raise SkippedSample("neither an image nor the name of one")
    if len(value) > MAX_IMAGE_BYTES:
        raise SkippedSample("image file is too large")
    return value.decode().strip() if _is_path(value) else value


def address_in(value: Any) -> str | None:
    """The web address in a cell, None if there is none; `SkippedSample` for what is not text."""
    value = _only(value, "addresses")
    if _is_missing(value):
        return None
    if isinstance(value, bytes):
        value = decoded(value, "address")
    if not isinstance(value, str):
        raise SkippedSample("address is not text")
    return " ".join(value.split()) or None


def names_a_file(text: str) -> bool:
    """Whether a cell or the name of a column is the path of an image file or an address."""
    text = text.strip()
    return ("." in text and is_image(text)) or bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://\S+$", text))


def decoded(data: bytes, what: str) -> str:
    """Decode UTF-8; `SkippedSample` if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SkippedSample(f"{what} is not UTF-8") from None


def _only(value: Any, what: str) -> Any:
    """The value, or the only one of a list; None for an empty list."""
    value = _without_notation(value)
    if not isinstance(value, list | tuple):
        return value
    if len(value) > 1:
        raise SkippedSample(f"several {what} in one row")
    return value[0] if value else None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in MISSING
    return value is None or value == b"" or (isinstance(value, float) and value != value)


def _is_path(data: bytes) -> bool:
    """Whether bytes are the name of an image file, since some writers store text as bytes."""
    try:
        text = data.decode() if len(data) <= MAX_PATH_BYTES else ""
    except UnicodeDecodeError:
        return False
    return text.isprintable() and names_a_file(text)


def _without_notation(value: Any) -> Any:
    """Parse text that is JSON or Python notation for a list, mapping or bytes; return other values as they are."""
    if not isinstance(value, str) or len(value) > MAX_NOTATION:
        return value
    text = value.strip()
    if text[:1] + text[-1:] not in ("[]", "{}") and not text.startswith(("b'", 'b"')):
        return value
    if _LIST.fullmatch(text):
        return [found for one in re.findall(_TEXT, text) if (found := _literal(one)) is not None]
    found = _literal(text)
    parts = found if isinstance(found, list) else [found]
    # A caption may itself be in brackets: only notation that holds text is parsed.
    is_notation = all(isinstance(part, str | bytes | Mapping) or _is_missing(part) for part in parts)
    return found if found is not None and is_notation else value


def _literal(text: str) -> Any:
    """The value of JSON or Python notation; None if the text is neither."""
    for parse in (parse_json, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue  # TypeError: {{ 'Product' }}, a set in a set
    return None
