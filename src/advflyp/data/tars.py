"""Webdataset tars: members KEY.jpg and KEY.txt follow one another. Read as a stream, damage and all.

Python's `tarfile` ends quietly at the first damaged header, so the walk over the members is done here; what a header
means is left to it.
"""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from webdataset.tariterators import base_plus_ext

from advflyp.data.addresses import open_binary
from advflyp.data.images import IMAGE_SUFFIXES
from advflyp.data.samples import MAX_CAPTION_BYTES, Sample

BLOCK = 512
# A picture larger than this is not one anybody trains on, and a damaged header can promise anything.
MAX_MEMBER = 1 << 28


class Damaged(Exception):
    """The tar is cut off or broken; the message says which."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar; `end` is where the next header begins. Other kinds (links, …) have no data."""

    name: str
    data: bytes | None
    end: int


@dataclass
class TarShard:
    """A tar (.tar, .tar.gz) on this machine or anywhere; see `Shard`. Offsets are in the unpacked stream."""

    address: str
    count: int | None = None

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        seen: set[str] = set()
        end = offset
        try:
            with open_binary(self.address) as file, unpacked(file) as stream:
                stream.seek(offset)
                for sample, end in _grouped(members(stream, offset), self.name, seen):
                    yield sample, end
        except Damaged as error:
            yield Sample(self.name, problem=str(error)), end
        except (EOFError, zlib.error, gzip.BadGzipFile):
            yield Sample(self.name, problem="truncated shard"), end
        except OSError as error:
            # A disk or a network that fails is not dirt: all the rest would be counted as such.
            raise ValueError(f"cannot read {self.address} at byte {end}: {error}") from error


def unpacked(file: BinaryIO) -> BinaryIO:
    """The stream itself, or what gzip packed into it."""
    magic = file.read(2)
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if magic == b"\x1f\x8b" else file


def members(stream: BinaryIO, offset: int = 0) -> Iterator[Member]:
    """The members of a tar from a header on; `Damaged` where it is cut off or broken."""
    name: str | None = None  # from an extended header before the member
    size: int | None = None
    while True:
        header = stream.read(BLOCK)
        offset += len(header)
        if len(header) < BLOCK:
            raise Damaged("truncated shard" if header or offset else "empty shard")
        if not any(header):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise Damaged("damaged shard") from None
        length = info.size if size is None else size
        if length < 0 or length > MAX_MEMBER:
            raise Damaged("damaged shard")
        special = info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE)
        wanted = special or info.isreg()
        padded = -(-length // BLOCK) * BLOCK
        data = stream.read(padded)
        offset += len(data)
        if len(data) < length:
            raise Damaged("truncated shard")
        if info.type == tarfile.GNUTYPE_LONGNAME:
            name = data[:length].rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.XHDTYPE:
            fields = _extended(data[:length])
            name, size = fields.get("path", name), int(fields["size"]) if "size" in fields else size
        else:
            yield Member(name or info.name, data[:length] if wanted else None, offset)
            name = size = None


def _extended(data: bytes) -> dict[str, str]:
    """The "LENGTH KEY=VALUE" lines of a POSIX extended header."""
    fields: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) < len(length) + 3:
            raise Damaged("damaged shard")
        record, data = data[: int(length)], data[int(length) :]
        key, _, value = record[len(length) + 1 :].rstrip(b"\n").partition(b"=")
        fields[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    if not fields.get("size", "0").isdigit():
        raise Damaged("damaged shard")
    return fields


def _grouped(found: Iterator[Member], shard: str, seen: set[str]) -> Iterator[tuple[Sample, int]]:
    """Members of one key that follow one another are a sample; a key that comes again is not a second one."""
    key: str | None = None
    parts: dict[str, bytes] = {}
    strange: list[Sample] = []
    end = 0
    damage: Exception | None = None
    while True:
        try:
            member = next(found, None)
        except (Damaged, EOFError, zlib.error, OSError) as error:
            member, damage = None, error
        if member is not None and (problem := _problem(member)):
            strange.append(Sample(f"{shard}:{_shown(member.name)}", problem=problem))
            if not parts:
                end = member.end
            continue
        name, suffix = (None, None) if member is None else base_plus_ext(member.name)
        repeated = suffix is not None and suffix.lower() in parts
        if parts and (member is None or name != key or repeated):
            # A sample that ends where the shard breaks may lack a half that was there once.
            if damage is None or _is_whole(parts):
                yield _sample(shard, str(key), parts, seen), end
            parts = {}
        if not parts:
            # Between samples, so that a resumed stream never begins in the middle of one.
            yield from ((sample, end) for sample in strange)
            strange = []
        if member is None:
            if damage is not None:
                raise damage
            return
        if name is None or suffix is None or member.data is None:
            continue  # folders, and files without a suffix, belong to no sample
        key, end = name, member.end
        parts[suffix.lower()] = member.data


def _is_whole(parts: dict[str, bytes]) -> bool:
    return "txt" in parts and any(suffix in parts for suffix in IMAGE_SUFFIXES)


def _sample(shard: str, key: str, parts: dict[str, bytes], seen: set[str]) -> Sample:
    label = f"{shard}:{_shown(key)}"
    if key in seen:
        return Sample(label, problem="duplicate key")
    seen.add(key)
    image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    text = parts.get("txt")
    if text is not None and len(text) > MAX_CAPTION_BYTES:
        return Sample(label, problem="caption is too long")  # not kept in the shuffle buffer
    return Sample(label, image, text)


def _problem(member: Member) -> str | None:
    """Names that would lead out of a folder, and links: harmless here, but a sign of a shard made to harm."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "unsafe member name"
    suffix = path.suffix.lower().lstrip(".")
    return "link in place of a file" if member.data is None and suffix in (*IMAGE_SUFFIXES, "txt") else None


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def count_keys(shard: str | Path) -> int:
    """How many samples a tar holds, by its headers alone; ValueError where it cannot be opened at all."""
    keys: set[str] = set()
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _ = base_plus_ext(member.name)
                if member.isfile() and key is not None:
                    keys.add(key)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile):
        pass  # what is there until it breaks; the stream says so when it gets there
    except OSError as error:
        raise ValueError(f"cannot read {shard}: {error.strerror or error}") from None
    return len(keys)
