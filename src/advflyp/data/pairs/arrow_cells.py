"""Cells of Arrow as Python values, of which no more is decoded than a pair may hold.

A few kilobytes of Parquet can repeat one value in every item of a list; Arrow holds it once, Python once for each item.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from advflyp.errors import SkippedSample
from advflyp.limits import MAX_IMAGE_BYTES

# A cell of captions, with whatever else is in it: "tokens" in COCO's.
MAX_CELL_BYTES = 1 << 20
# What Python needs for a value besides its text or bytes.
VALUE_BYTES = 64


def from_arrow(cell: Any, what: str) -> Any:
    """The Python value of a cell of Arrow; other values stay as they are.

    Arrow does not check text when it reads it, so that one bad value need not cost more than its own row.

    Raises:
        SkippedSample: It is too long, holds text that is not UTF-8, or a value that Python has no room for.
    """
    return _decoded(cell, what, MAX_CELL_BYTES, f"{what} is too long")


def image_from_arrow(cell: Any) -> Any:
    """`from_arrow` for an image or its path."""
    # A file that is a little too large is refused by `image_in`.
    return _decoded(cell, "image path", MAX_IMAGE_BYTES + MAX_CELL_BYTES, "image file is too large")


def _decoded(cell: Any, what: str, most: int, refusal: str) -> Any:
    if not isinstance(cell, pa.Scalar):
        return cell
    left = most
    try:
        for size in _sizes(cell):
            left -= size
            if left < 0:
                raise SkippedSample(refusal)
        return cell.as_py()
    except UnicodeDecodeError:
        raise SkippedSample(f"{what} is not UTF-8") from None
    except (ValueError, OverflowError, LookupError):  # a date far away, a time zone unknown
        raise SkippedSample(f"{what} is not text") from None


def _sizes(cell: pa.Scalar) -> Iterator[int]:
    """What each value in a cell takes in Python, in bytes, without decoding it."""
    yield VALUE_BYTES
    if not cell.is_valid:
        return
    if isinstance(cell, pa.DictionaryScalar | pa.ExtensionScalar):
        yield from _sizes(cell.value)
    elif isinstance(cell, pa.StructScalar):
        for value in cell.values():
            yield from _sizes(value)
    elif isinstance(cell, pa.ListScalar):  # and maps
        for value in cell.values:
            yield from _sizes(value)
    elif isinstance(cell, pa.BinaryScalar):  # and text
        yield cell.as_buffer().size
