"""Parquet files, which may be damaged: Arrow has a dozen errors for that, the program one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# What Arrow raises where the bytes of a file are wrong, or a value is none that Python can hold.
ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)


class DamagedFile(ValueError):
    """A file that is not what its name says; the message is for the user."""


def is_damage(error: Exception) -> bool:
    """Whether one of ERRORS is about the file: those of a disk or a network have a number, Arrow's have none."""
    return not isinstance(error, OSError) or error.errno is None


@contextmanager
def parquet_file(address: str, source: Any) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is open for as long as the block takes.

    Args:
        address: What messages call it.
        source: A path or a stream.

    Raises:
        DamagedFile: As far as Arrow finds that while it is opened, or in the block.
    """
    with reading(address), pq.ParquetFile(source) as file:
        yield file


@contextmanager
def reading(address: str) -> Iterator[None]:
    """`DamagedFile`, naming the file, where Arrow finds in the block that it is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if not is_damage(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DamagedFile(f"{address} is not a readable Parquet file: {reason}") from None
