"""Read tars as a stream, detecting damage, or by an index of their headers.

Python's `tarfile` stops silently at the first damaged header and reads extended headers of any size, so this module
walks over the members itself and leaves only the parsing of a header to `tarfile`.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from advflyp.data.filenames import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    is_document,
    is_extra,
    parse_member,
    writable,
)
from advflyp.errors import SkippedSample
from advflyp.limits import FREE_BYTES, MAX_MEMBER_BYTES, MAX_RATIO, MAX_TAR_HEADER_BYTES, open_regular

BLOCK = 512
# Zeros at the end of a tar: 1,024 bytes, then up to a whole record, of 10,240 bytes unless `tar -b` says otherwise.
# More than MAX_PADDING are a hole, except in records of a power of two, at most MAX_RECORD.
MAX_PADDING, MAX_RECORD = 1 << 16, 1 << 20
# Bytes read at a time when passing over unwanted data.
PIECE = 1 << 20
# How compressed files begin → what decompresses them, here and on a command line.
PACKED: dict[bytes, tuple[Any, str]] = {
    b"\x1f\x8b": (gzip.open, "gunzip"), b"BZh": (bz2.open, "bunzip2"), b"\xfd7zXZ": (lzma.open, "unxz"),
}  # fmt: skip
# How other files begin that are sometimes called tars.
FOREIGN = {
    b"PK\x03\x04": "zip file", b"7z\xbc\xaf": "7z file", b"\x28\xb5\x2f\xfd": "zstd file", b"Rar!\x1a": "rar file",
    b"\x04\x22\x4d\x18": "lz4 file", b"LZIP\x01": "lzip file", b"\x1f\x9d": "compress file",
}  # fmt: skip


class DamagedTar(Exception):
    """The tar is truncated or damaged; the message says which."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or something else (a link, a folder, a sparse file), which has no data."""

    name: str
    is_file: bool
    offset: int  # where its data begin, in bytes
    size: int
    end: int  # where the next header begins
    data: bytes  # as much of them as was wanted


def unpacked(file: BinaryIO) -> "BinaryIO | _Unpacked":
    """The stream, decompressed if needed; `DamagedTar` if it is another kind of archive."""
    magic = file.read(6)
    file.seek(0)
    foreign = next((kind for sign, kind in FOREIGN.items() if magic.startswith(sign)), None)
    if foreign is not None:
        raise DamagedTar(f"{foreign} instead of a tar")
    unpack = next((unpack for sign, (unpack, _) in PACKED.items() if magic.startswith(sign)), None)
    return file if unpack is None else _Unpacked(unpack(file), file)


class _Unpacked(io.BufferedIOBase):
    """A decompressed stream of limited size: 1 MB of a compressed tar can be a terabyte of zeros, and hours of work."""

    def __init__(self, stream: BinaryIO, packed: BinaryIO) -> None:
        self.stream, self.packed = stream, packed

    def read(self, size: int | None = -1) -> bytes:
        try:
            data = self.stream.read(-1 if size is None else size)
        except (EOFError, zlib.error, lzma.LZMAError):
            raise DamagedTar("truncated shard") from None
        except OSError as error:
            # What bz2 and gzip raise for damaged data, while other errors are those of a disk or a network.
            if error.args == ("Invalid data stream",) or isinstance(error, gzip.BadGzipFile):
                raise DamagedTar("damaged shard") from None
            raise
        if self.stream.tell() > FREE_BYTES + MAX_RATIO * self.packed.tell():
            raise DamagedTar("shard compressed beyond the limit")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        super().close()


def members(
    stream: "BinaryIO | _Unpacked", offset: int, wanted: Callable[[str, int], int], length: int | None = None
) -> Iterator[Member]:
    """The members of an uncompressed tar, from the header at `offset` on; `DamagedTar` if it is truncated or damaged.

    Args:
        stream: The tar, positioned at `offset`.
        offset: Where a header begins.
        wanted: Name and size of a file → how many bytes of it are kept.
        length: Size of the stream in bytes, if it is a file, in which seeking skips unwanted data.
    """
    name: str | None = None  # from an extended header before the member
    size: int | None = None
    while True:
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise DamagedTar("truncated shard" if header or offset else "empty shard")
        if not any(header):
            _check_end(stream, offset)
            return
        offset += BLOCK
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise DamagedTar("damaged shard") from None
        if info.type == tarfile.GNUTYPE_SPARSE:
            offset += _pass_over_map(stream, header)
        whole = info.size if size is None else size
        is_header = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
        if not 0 <= whole <= (MAX_TAR_HEADER_BYTES if is_header else MAX_MEMBER_BYTES):
            raise DamagedTar("damaged shard")
        is_file = info.isreg() and info.type != tarfile.GNUTYPE_SPARSE
        shown = name or info.name
        kept = whole if is_header else min(whole, wanted(shown, whole)) if is_file else 0
        data = stream.read(kept)
        padded = -(-whole // BLOCK) * BLOCK
        if length is not None and offset + whole <= length:
            stream.seek(offset + padded)
        else:
            _pass_over(stream, padded - len(data), padded - whole)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            fields = _extended(data)
            name, size = fields.get("path", name), int(fields["size"]) if "size" in fields else size
        else:
            yield Member(shown, is_file, offset, whole, offset + padded, data)
            name = size = None
        offset += padded


def _check_end(stream: "BinaryIO | _Unpacked", begin: int) -> None:
    """Read what follows the first block of zeros, at `begin`; `DamagedTar` if that is not the end of a tar.

    Reading to the end also verifies the checksum of a compressed tar.
    """
    zeros = BLOCK
    while piece := stream.read(MAX_PADDING):
        zeros += len(piece)
        if any(piece) or zeros > MAX_RECORD + 2 * BLOCK:
            raise DamagedTar("damaged shard")
    # The smallest record that could be padded with so many zeros.
    record = MAX_PADDING
    while zeros > record + 2 * BLOCK:
        record *= 2
    if zeros > MAX_PADDING and (begin + zeros) % record:
        raise DamagedTar("damaged shard")


def _pass_over(stream: "BinaryIO | _Unpacked", count: int, padding: int) -> None:
    """Read past `count` bytes; `DamagedTar` if the stream ends early, except in the padding of the last member."""
    while count > 0:
        piece = len(stream.read(min(count, PIECE)))
        if not piece and count > padding:
            raise DamagedTar("truncated shard")
        if not piece:
            return
        count -= piece


def _pass_over_map(stream: "BinaryIO | _Unpacked", header: bytes) -> int:
    """Read past the blocks of GNU's sparse map, before the data of a file; return their size in bytes."""
    passed = 0
    extended = header[482]
    while extended:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise DamagedTar("truncated shard")
        passed += BLOCK
        extended = block[504]
    return passed


def _extended(data: bytes) -> dict[str, str]:
    """The "LENGTH KEY=VALUE" lines of a POSIX extended header."""
    fields: dict[str, str] = {}
    place = 0
    while place < len(data):
        length = data[place : place + 20].partition(b" ")[0]
        if not length.isdigit() or int(length) < len(length) + 3:
            raise DamagedTar("damaged shard")
        record = data[place + len(length) + 1 : place + int(length)]
        place += int(length)
        key, _, value = record.rstrip(b"\n").partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    size = fields.get("size", "0")
    if not (size.isascii() and size.isdecimal() and len(size) <= 20):
        raise DamagedTar("damaged shard")
    return fields


def is_whole(suffixes: Collection[str]) -> bool:
    """Whether the files of one key include an image and something that can hold its captions."""
    return all(any(one in suffixes for one in known) for known in (IMAGE_SUFFIXES, CAPTION_SUFFIXES))


def is_sample(key: str, suffixes: Collection[str]) -> bool:
    """Whether the files of one key are a sample, complete or not: an image, or a text that is not about the dataset."""
    has_image = any(suffix in suffixes for suffix in IMAGE_SUFFIXES)
    return has_image or (not is_document(key) and ("txt" in suffixes or "caption" in suffixes))


@dataclass(slots=True)
class Parts:
    """Where the members of one key are."""

    begin: int  # the offset after the first of them
    # suffix: name, offset of the data, size
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict)


def index_tar(shard: Path, *, plain: bool = False) -> dict[str, Parts]:
    """The members of a tar by the key of their sample, in order of first appearance, from the headers alone.

    Args:
        shard: A file on this machine; ValueError if it cannot be read.
        plain: Whether the tar must be undamaged and uncompressed, without links and repeated names; if not, the
            members before any damage are enough.
    """
    index: dict[str, Parts] = {}
    end, size = 0, shard.stat().st_size if shard.is_file() else None
    try:
        with open_regular(shard) as file, file if plain else unpacked(file) as stream:
            for member in members(stream, 0, lambda *_: 0, size if stream is file else None):
                end = member.end
                name = parse_member(member.name)
                if plain and name is not None and not member.is_file:
                    raise ValueError(
                        f"{shard}: {writable(member.name)} is not a file but a link or the like; pack the file itself"
                    )
                if name is None or not member.is_file:
                    continue
                parts = index.setdefault(name.key, Parts(member.end)).parts
                if plain and name.suffix in parts:
                    raise ValueError(
                        f"{shard}: {writable(member.name)} is there twice; give every sample its own key"
                    )
                parts.setdefault(name.suffix, (member.name, member.offset, member.size))
    except DamagedTar as error:
        # Some writers omit the end-of-archive marker.
        if plain and not 0 < end == size:
            with open(shard, "rb") as file:
                magic = file.read(6)
            tools = (tool for sign, (_, tool) in PACKED.items() if magic.startswith(sign))
            advice = "".join(f"; unpack it with {tool} first" for tool in tools)
            raise ValueError(f"{shard} is not a readable tar file: {error}{advice}") from None
    except SkippedSample as reason:
        raise ValueError(f"cannot read {shard}: {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {shard}: {error.strerror or error}") from None
    return index


def count_keys(shard: str | Path) -> int:
    """How many samples a tar holds, by its headers alone; ValueError if it cannot be opened at all."""
    index = index_tar(Path(shard))
    return sum(
        is_sample(key, one.parts) and (is_whole(one.parts) or not is_extra(key, index))
        for key, one in index.items()
    )
