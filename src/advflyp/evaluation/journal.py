"""The state of unfinished measurements: an interrupted one resumes from its last finished batch."""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from advflyp.evaluation.results import UNFINISHED
from advflyp.files import append, names_in, open_locked

# Before each record: its length in bytes and its CRC-32.
_HEAD = struct.Struct("<QI")


class Journal:
    """Arrays appended to one file, so that every batch costs the same, however many came before it.

    A record that a crash cut off is ignored, and so is anything after it. If another process runs the same measurement,
    the journal is left to that process. `beside` gives the journal of a measurement; that of each of several ranks is
    called NAME.RANK.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end: int | None = None  # end of the last whole record; None until the file has been read
        self._foreign = False  # another process writes it

    @classmethod
    def beside(cls, store: Path, name: str) -> "Journal":
        """The journal of the measurement `name`, whose result will go to `store`: results.unfinished/NAME.journal."""
        return cls(store.with_suffix(UNFINISHED) / f"{name}.journal")

    def read(self) -> dict[str, np.ndarray]:
        """Each array given to `append`, concatenated over the records; empty if there is no whole record."""
        records: list[dict[str, np.ndarray]] = []
        self._end = 0
        if not self.path.is_file():
            return {}
        with open(self.path, "rb") as file:
            for data, self._end in _records(file, 0):
                with np.load(io.BytesIO(data)) as arrays:
                    records.append(dict(arrays))
        return (
            {name: np.concatenate([record[name] for record in records]) for name in records[0]}
            if records
            else {}
        )

    def append(self, **arrays: Any) -> None:
        """Add a record of arrays, from NumPy or torch (on the CPU), with the same names as in earlier records."""
        if self._foreign:
            return
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        data = stream.getvalue()
        with open_locked(self.path) as file:
            if self._end is None:
                self._end = _end(file, 0)
            elif file.seek(0, os.SEEK_END) < self._end:
                self._end = 0  # removed by a process that had finished
            self._foreign = _end(file, self._end) > self._end
            if self._foreign:
                return
            # Overwrite whatever a crash or a full disk has cut off.
            file.truncate(self._end)
            self._end = append(file, _HEAD.pack(len(data), zlib.crc32(data)) + data)

    def remove(self) -> None:
        """Delete the journal once its measurement is stored, and its folder with the last journal.

        Rank 0, or a single process, also deletes those that another number of ranks left of the same measurement.
        """
        self.path.unlink(missing_ok=True)
        self._end = None
        base, rank = re.fullmatch(r"(.*?)(?:\.(\d+))?", self.path.stem).groups()  # type: ignore[union-attr]
        with suppress(OSError):  # missing, or other measurements are unfinished
            for name in names_in(self.path.parent) if rank in (None, "0") else ():
                if re.fullmatch(rf"{re.escape(base)}(\.\d+)?\.journal", name):
                    (self.path.parent / name).unlink(missing_ok=True)
            self.path.parent.rmdir()


def _records(file: IO[bytes], begin: int) -> Iterator[tuple[bytes, int]]:
    """The whole records from `begin` on, and where each ends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(begin)
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, crc = _HEAD.unpack(head)
        data = file.read(min(length, size))
        # After the machine went down, the file may end in zeros, which look like an empty record.
        if not length or len(data) < length or zlib.crc32(data) != crc:
            break
        yield data, file.tell()


def _end(file: IO[bytes], begin: int) -> int:
    """The end of the last whole record after `begin`."""
    return max((end for _, end in _records(file, begin)), default=begin)
