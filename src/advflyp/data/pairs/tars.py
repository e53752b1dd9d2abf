"""Webdataset tars: members KEY.jpg and KEY.txt follow one another. Read as a stream, damage and all.

Python's `tarfile` ends quietly at the first damaged header and reads extended headers of any size, so the walk over the
members is done here; what a header means is left to it.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from advflyp.data import filenames
from advflyp.data.filenames import CAPTION_SUFFIXES, IMAGE_SUFFIXES, is_document, is_extra, parse_member
from advflyp.data.pairs.addresses import is_remote, open_binary
from advflyp.data.pairs.samples import Sample, json_captions
from advflyp.errors import SkippedSample
from advflyp.limits import (
    FREE_BYTES,
    MAX_CAPTION_BYTES,
    MAX_IMAGE_BYTES,
    MAX_LABEL_BYTES,
    MAX_MEMBER_BYTES,
    MAX_RATIO,
    MAX_TAR_HEADER_BYTES,
    open_regular,
)

BLOCK = 512
# What is read at once of what nobody wants.
PIECE = 1 << 20
# How packed files begin, with what unpacks them; and what else is sometimes called a tar.
PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz"}
FOREIGN = {b"PK\x03\x04": "zip file", b"7z\xbc\xaf": "7z file", b"\x28\xb5\x2f\xfd": "zstd file"}
APART = "image and caption apart in the tar (it has to be sorted by name)"


class Damaged(Exception):
    """The tar is cut off or broken; the message says which."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, or something else (a link, a folder, a file with holes), which has no data.

    offset, size: of its data
    end:          where the next header begins
    data:         as much of it as was wanted
    """

    name: str
    is_file: bool
    offset: int
    size: int
    end: int
    data: bytes = b""


@dataclass
class TarShard:
    """A tar (.tar, or packed by gzip, bzip2 or xz) on this machine or anywhere; see `Shard`.

    Offsets are in the unpacked stream.
    """

    address: str
    count: int | None = None

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        end = offset
        try:
            with open_binary(self.address) as file, unpacked(file) as stream:
                stream.seek(offset)
                # The rest of a sample can be looked for where that does not mean to read everything again.
                path = Path(self.address) if stream is file and not is_remote(self.address) else None
                for sample, end in _Samples(self.name, path).of(_grouped(members(stream, offset, _wanted))):
                    yield sample, end
        except Damaged as error:
            yield Sample(self.name, problem=str(error)), end
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
            yield Sample(self.name, problem="truncated shard"), end
        except OSError as error:
            # A disk or a network that fails is not dirt: all the rest would be counted as such.
            raise ValueError(f"cannot read {self.address} at byte {end}: {error}") from error


def unpacked(file: BinaryIO) -> "BinaryIO | _Unpacked":
    """The stream itself, or what is packed into it; `Damaged` where it is something else than a tar."""
    magic = file.read(6)
    file.seek(0)
    foreign = next((kind for sign, kind in FOREIGN.items() if magic.startswith(sign)), None)
    if foreign is not None:
        raise Damaged(f"{foreign} in place of a tar")
    if magic.startswith(b"\x1f\x8b"):
        return _Unpacked(gzip.GzipFile(fileobj=file), file)
    if magic.startswith(b"BZh"):
        return _Unpacked(bz2.BZ2File(file), file)
    return _Unpacked(lzma.LZMAFile(file), file) if magic.startswith(b"\xfd7zXZ") else file


class _Unpacked(io.BufferedIOBase):
    """A packed stream that does not grow without end: 1 MB of a tar can be a terabyte of zeros, and hours of work."""

    def __init__(self, stream: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile, packed: BinaryIO) -> None:
        self.stream, self.packed = stream, packed

    def read(self, size: int | None = -1) -> bytes:
        data = self.stream.read(-1 if size is None else size)
        if self.stream.tell() > FREE_BYTES + MAX_RATIO * self.packed.tell():
            raise Damaged("shard packed beyond measure")
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
    """The members of a tar from a header on.

    Args:
        stream: Unpacked, at `offset`.
        offset: Where a header begins.
        wanted: Name and size of a file → how many bytes of it are kept.
        length: Bytes of the stream, where it is a file in which what is not wanted can be skipped.

    Raises:
        Damaged: The tar is cut off or broken.
    """
    name: str | None = None  # from an extended header before the member
    size: int | None = None
    while True:
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise Damaged("truncated shard" if header or offset else "empty shard")
        if not any(header):
            return
        offset += BLOCK
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise Damaged("damaged shard") from None
        if info.type == tarfile.GNUTYPE_SPARSE:
            offset += _pass_over_map(stream, header)
        whole = info.size if size is None else size
        is_header = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
        if not 0 <= whole <= (MAX_TAR_HEADER_BYTES if is_header else MAX_MEMBER_BYTES):
            raise Damaged("damaged shard")
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


def _pass_over(stream: "BinaryIO | _Unpacked", count: int, padding: int) -> None:
    """Read on; `Damaged` where the stream ends before that, but for the padding of the last member."""
    while count > 0:
        piece = len(stream.read(min(count, PIECE)))
        if not piece and count > padding:
            raise Damaged("truncated shard")
        if not piece:
            return
        count -= piece


def _pass_over_map(stream: "BinaryIO | _Unpacked", header: bytes) -> int:
    """The blocks of GNU's map of a file with holes, before its data; how many bytes they are."""
    passed = 0
    extended = header[482]
    while extended:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise Damaged("truncated shard")
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
            raise Damaged("damaged shard")
        record = data[place + len(length) + 1 : place + int(length)]
        place += int(length)
        key, _, value = record.rstrip(b"\n").partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    size = fields.get("size", "0")
    if not (size.isascii() and size.isdecimal() and len(size) <= 20):
        raise Damaged("damaged shard")
    return fields


@dataclass(slots=True)
class _Group:
    """Members of one key that follow one another, or one that is a problem.

    begin, end: offsets behind the first of them and behind the last
    """

    key: str
    base: str
    begin: int
    end: int
    parts: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        return is_whole(self.parts)

    def takes(self, member: filenames.Member) -> bool:
        return member.key == self.key and member.suffix not in self.parts

    def passes_over(self, member: filenames.Member) -> bool:
        """Whether a member between this sample's halves is a further file of it: 1.jpg, 1.mask.png, 1.txt."""
        return not self.is_whole and is_extra(member.key, (self.key,))


def _grouped(found: Iterator[Member]) -> Iterator[_Group]:
    """What belongs to no sample is passed over. Damage is raised behind the last whole group."""
    group: _Group | None = None
    strange: list[_Group] = []
    damage: Exception | None = None
    while True:
        try:
            member = next(found, None)
        except (Damaged, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            member, damage = None, error
        if member is not None and (problem := _problem(member)):
            strange.append(_Group(member.name, member.name, member.end, member.end, problem=problem))
            continue
        name = None if member is None or not member.is_file else parse_member(member.name)
        if member is not None and (name is None or (group is not None and group.passes_over(name))):
            continue
        if member is not None and name is not None and group is not None and group.takes(name):
            group.parts[name.suffix] = member.data
            group.end = member.end
            continue
        # A sample that ends where the shard breaks may lack a half that was there once.
        if group is not None and (damage is None or group.is_whole):
            yield group
        # Between samples, so that a resumed stream never begins in the middle of one.
        yield from strange
        strange = []
        if member is None or name is None:
            if damage is not None:
                raise damage
            return
        group = _Group(name.key, name.base, member.end, member.end, {name.suffix: member.data})


class _Samples:
    """The samples of a shard's groups.

    path: of the shard, where it can be read from any place on
    """

    def __init__(self, shard: str, path: Path | None) -> None:
        self.shard, self.path = shard, path
        self.seen: dict[str, bool] = {}  # key: whether the sample was whole
        self.index: dict[str, Indexed] | None = None

    def of(self, groups: Iterator[_Group]) -> Iterator[tuple[Sample, int]]:
        # Halves with dots in their keys, all of one base: samples, unless they are the extras of one that follows.
        lonely: list[tuple[str, Sample, int]] = []
        base = last = ""
        for found in groups:
            group = self._completed(found)
            sample = None if group is None else self._sample(group)
            if group is None or sample is None:
                continue
            may_be_extra = group.key != group.base and not group.is_whole
            if may_be_extra and is_extra(group.key, (last,)):
                continue
            if not may_be_extra or group.base != base:
                yield from ((one, end) for key, one, end in lonely if not is_extra(key, (group.key,)))
                lonely, base = [], group.base
            if may_be_extra:
                lonely.append((group.key, sample, group.end))
            else:
                yield sample, group.end
                last = group.key
        yield from ((one, end) for _, one, end in lonely)

    def _completed(self, group: _Group) -> _Group | None:
        """The group with what stands elsewhere in the shard; None where it was part of an earlier one."""
        if group.problem is not None or group.is_whole or self.path is None:
            return group
        if self.index is None:
            self.index = index_tar(self.path)
        whole = self.index.get(group.key)
        if whole is None or not is_whole(whole.parts):
            return group
        if whole.begin != group.begin:
            return None
        with open(self.path, "rb") as file:
            for suffix, (_, offset, size) in whole.parts.items():
                if suffix not in group.parts:
                    file.seek(offset)
                    group.parts[suffix] = file.read(_kept(suffix, size))
        return group

    def _sample(self, group: _Group) -> Sample | None:
        """None for a group that is no sample."""
        label = f"{self.shard}:{_shown(group.key)}"
        if group.problem is not None:
            return Sample(label, problem=group.problem)
        if not is_sample(group.key, group.parts):
            return None
        if group.key in self.seen:
            is_repeated = group.is_whole or self.seen[group.key]
            return Sample(label, problem="duplicate key" if is_repeated else APART)
        self.seen[group.key] = group.is_whole
        image = next((group.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in group.parts), None)
        suffix = next((suffix for suffix in CAPTION_SUFFIXES if suffix in group.parts), None)
        text = None if suffix is None else group.parts[suffix]
        return stored_sample(label, image, suffix, text)


def _wanted(name: str, size: int) -> int:
    parsed = parse_member(name)
    return 0 if parsed is None else _kept(parsed.suffix, size)


def _kept(suffix: str, size: int) -> int:
    """How many bytes of a file are kept: none of an image that is too large, one more than are allowed of a text."""
    if suffix in IMAGE_SUFFIXES:
        return size if size <= MAX_IMAGE_BYTES else 0
    return min(size, (MAX_CAPTION_BYTES if suffix in CAPTION_SUFFIXES else MAX_LABEL_BYTES) + 1)


def stored_sample(key: str, image: bytes | None, suffix: str | None, text: bytes | None) -> Sample:
    """A sample whose captions are the content of a member, JSON where its suffix says so."""
    if text is not None and len(text) > MAX_CAPTION_BYTES:
        return Sample(key, problem="caption is too long")  # not kept in the shuffle buffer
    if text is None or suffix != "json":
        return Sample(key, image, text)
    try:
        return Sample(key, image, json_captions(text) or None)
    except SkippedSample as reason:
        return Sample(key, problem=str(reason))


def has_image(suffixes: Collection[str]) -> bool:
    """Whether there is an image among files of one key."""
    return any(suffix in suffixes for suffix in IMAGE_SUFFIXES)


def is_whole(suffixes: Collection[str]) -> bool:
    """Whether files of one key are an image and something that can hold its captions."""
    return has_image(suffixes) and any(suffix in suffixes for suffix in CAPTION_SUFFIXES)


def is_sample(key: str, suffixes: Collection[str]) -> bool:
    """Whether files of one key are a sample, or a half of one: an image, or a text that is not about the dataset."""
    return has_image(suffixes) or (not is_document(key) and ("txt" in suffixes or "caption" in suffixes))


def _problem(member: Member) -> str | None:
    """Names that would lead out of a folder, links and images of any size: harmless here, but signs of a shard made to
    harm.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "unsafe member name"
    name = parse_member(member.name)
    if name is None:
        return None
    if not member.is_file:
        return "link in place of a file"
    is_huge = name.suffix in IMAGE_SUFFIXES and member.size > MAX_IMAGE_BYTES
    return "image file is too large" if is_huge else None


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


@dataclass(slots=True)
class Indexed:
    """Where the members of one key are.

    begin: offset behind the first of them
    parts: {suffix: (name, offset of the data, size)}
    """

    begin: int
    parts: dict[str, tuple[str, int, int]] = field(default_factory=dict)


def index_tar(shard: Path, *, plain: bool = False) -> dict[str, Indexed]:
    """The members of a tar by the keys of their samples, wherever they stand, read from the headers alone.

    Args:
        shard: A file on this machine.
        plain: Whether the tar must be whole and not packed. If not, what there is until it breaks is enough.

    Returns:
        The keys in the order of their first members.

    Raises:
        ValueError: The file cannot be read.
    """
    index: dict[str, Indexed] = {}
    end, size = 0, shard.stat().st_size if shard.is_file() else None
    try:
        with open_regular(shard) as file, file if plain else unpacked(file) as stream:
            for member in members(stream, 0, lambda *_: 0, size if stream is file else None):
                end = member.end
                name = parse_member(member.name) if member.is_file else None
                if name is None:
                    continue
                parts = index.setdefault(name.key, Indexed(member.end)).parts
                parts.setdefault(name.suffix, (member.name, member.offset, member.size))
    except (Damaged, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        # Some writers leave the mark of the end out.
        if plain and not 0 < end == size:
            raise ValueError(f"{shard} is not a readable tar file: {error}{_how_to_unpack(shard)}") from None
    except SkippedSample as reason:
        raise ValueError(f"cannot read {shard}: {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {shard}: {error.strerror or error}") from None
    return index


def _how_to_unpack(shard: Path) -> str:
    with open(shard, "rb") as file:
        magic = file.read(6)
    tool = next((tool for sign, tool in PACKED.items() if magic.startswith(sign)), None)
    return f"; unpack it with {tool} first" if tool else ""


def count_keys(shard: str | Path) -> int:
    """How many samples a tar holds, by its headers alone; ValueError where it cannot be opened at all."""
    index = index_tar(Path(shard))
    return sum(
        is_sample(key, one.parts) and (is_whole(one.parts) or not is_extra(key, index))
        for key, one in index.items()
    )
