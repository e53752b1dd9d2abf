"""What is known of a measurement in work: an interrupted one goes on from its last finished batch."""

import io
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

# Before each record: its length in bytes and its CRC-32.
_HEAD = struct.Struct("<QI")


class Journal:
    """Arrays appended to one file, so that a batch costs the same however many came before it.

    A record that a crash cut off does not count, nor does anything behind it. `beside` says where measurements have
    their journals.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end: int | None = None  # of the last whole record; None until the file has been read

    @classmethod
    def beside(cls, store: Path, name: str) -> "Journal":
        """That of the measurement `name` which will go to `store`: results.unfinished/NAME.journal."""
        return cls(store.with_suffix(".unfinished") / f"{name}.journal")

    def read(self) -> dict[str, np.ndarray]:
        """Each array that `append` was given, one record behind the other; nothing where there is no whole record."""
        records: list[dict[str, np.ndarray]] = []
        self._end = 0
        if not self.path.is_file():
            return {}
        with open(self.path, "rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                length, crc = _HEAD.unpack(head)
                data = file.read(length)
                # Where the machine went down the file may end in zeros, which are a record of nothing.
                if not length or len(data) < length or zlib.crc32(data) != crc:
                    break
                with np.load(io.BytesIO(data)) as arrays:
                    records.append(dict(arrays))
                self._end = file.tell()
        return (
            {name: np.concatenate([record[name] for record in records]) for name in records[0]}
            if records
            else {}
        )

    def append(self, **arrays: Any) -> None:
        """Add a record of arrays, numpy's or torch's (on the CPU), with the same names as the records before."""
        if self._end is None:
            self.read()
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        data = stream.getvalue()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            # Over whatever a crash or a full disk has cut off.
            file.truncate(min(self._end or 0, file.seek(0, os.SEEK_END)))
            file.seek(0, os.SEEK_END)
            file.write(_HEAD.pack(len(data), zlib.crc32(data)) + data)
            file.flush()
            self._end = file.tell()

    def remove(self) -> None:
        """The measurement is stored: forget it, and the folder with the last one."""
        self.path.unlink(missing_ok=True)
        self._end = None
        with suppress(OSError):  # not there, or others are in work
            self.path.parent.rmdir()
