"""Webdataset shards: consecutive members KEY.jpg and KEY.txt of a tar are a sample."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from advflyp.data import filenames
from advflyp.data.filenames import (
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    MAX_PATH,
    is_extra,
    parse_member,
    writable,
)  # fmt: skip
from advflyp.data.pairs.addresses import is_remote, open_binary
from advflyp.data.pairs.samples import Sample, json_captions
from advflyp.data.pairs.tars import (
    DamagedTar,
    Member,
    Parts,
    index_tar,
    is_sample,
    is_whole,
    members,
    unpacked,
)  # fmt: skip
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, MAX_LABEL_BYTES

APART = "image and caption apart in the tar (it has to be sorted by name)"


@dataclass
class TarShard:
    """A tar (plain, or compressed with gzip, bzip2 or xz), local or remote; see `Shard`.

    Offsets are in the uncompressed stream.
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
                # The rest of a sample can be looked for, unless that means reading everything again.
                path = Path(self.address) if stream is file and not is_remote(self.address) else None
                samples = _Samples(self.name, path)
                if offset:
                    samples.replay(stream, offset, None if path is None else path.stat().st_size)
                    stream.seek(offset)
                for sample, end in samples.of(_grouped(members(stream, offset, _wanted))):
                    yield sample, end
        except DamagedTar as error:
            yield Sample(self.name, problem=str(error)), end
        except OSError as error:
            # A failing disk is an error: otherwise all the remaining samples would count as skipped.
            raise ValueError(f"cannot read {self.address} at byte {end}: {error}") from error


@dataclass(slots=True)
class _Group:
    """Consecutive members of one key, or a single member that is a problem."""

    key: str
    base: str
    begin: int  # the offset after the first of them
    end: int  # and after the last
    parts: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        return is_whole(self.parts)

    def passes_over(self, member: filenames.Member) -> bool:
        """Whether a member between image and caption is an extra file of the sample: 1.jpg, 1.mask.png, 1.txt."""
        return not self.is_whole and is_extra(member.key, (self.key,))


def _grouped(found: Iterator[Member]) -> Iterator[_Group]:
    """Group the members of a sample; others are passed over. Damage is raised after the last whole group."""
    group: _Group | None = None
    # They go out between samples: a resumed stream never begins in the middle of one.
    strange: list[_Group] = []
    try:
        for member in found:
            if problem := _problem(member):
                strange.append(_Group(member.name, member.name, member.end, member.end, problem=problem))
                continue
            name = parse_member(member.name) if member.is_file else None
            if name is None or (group is not None and group.passes_over(name)):
                continue
            if group is not None and name.key == group.key and name.suffix not in group.parts:
                group.parts[name.suffix] = member.data
                group.end = member.end
                continue
            if group is not None:
                yield group
            yield from strange
            strange = []
            group = _Group(name.key, name.base, member.end, member.end, {name.suffix: member.data})
    except (DamagedTar, OSError):
        # A sample that ends where the shard breaks may have lost its image or caption.
        if group is not None and group.is_whole:
            yield group
        yield from strange
        raise
    if group is not None:
        yield group
    yield from strange


class _Samples:
    """The samples of a shard's groups; `path` is the shard, if it can be read from any offset."""

    def __init__(self, shard: str, path: Path | None) -> None:
        self.shard, self.path = shard, path
        self.seen: dict[str, bool] = {}  # key: whether the sample was whole
        self.index: dict[str, Parts] | None = None

    def replay(self, stream: Any, offset: int, length: int | None) -> None:
        """Pass over the members before `offset`, so that a resumed stream knows the keys that it must not repeat."""

        def earlier() -> Iterator[Member]:
            for member in members(stream, 0, lambda *_: 0, length):
                yield member
                if member.end >= offset:
                    return  # without reading on: a compressed stream cannot go back

        for _ in self.of(_grouped(earlier())):
            pass

    def of(self, groups: Iterator[_Group]) -> Iterator[tuple[Sample, int]]:
        # Incomplete samples of one base with dots in their keys; they may turn out to be extra files of a later sample.
        lonely: list[tuple[str, Sample, int]] = []
        # The last sample goes out once its extra files are passed: a resumed stream begins after them.
        held: list[tuple[Sample, int]] = []
        base = last = ""
        try:
            for group in groups:
                sample = self._sample(group)
                if sample is None:
                    continue
                may_be_extra = group.key != group.base and not group.is_whole
                if may_be_extra and is_extra(group.key, (last,)):
                    held = [(one, group.end) for one, _ in held]
                    continue
                yield from held
                held = []
                if not may_be_extra or group.base != base:
                    yield from ((one, end) for key, one, end in lonely if not is_extra(key, (group.key,)))
                    lonely, base = [], group.base
                if may_be_extra:
                    lonely.append((group.key, sample, group.end))
                else:
                    held, last = [(sample, group.end)], group.key
        except (DamagedTar, OSError):
            yield from held
            raise
        yield from held
        yield from ((one, end) for _, one, end in lonely)

    def _complete(self, group: _Group) -> bool:
        """Complete the group from elsewhere in the shard; False if it is only a part of an earlier one."""
        # JSON beside an image is a caption only if there is no text.
        is_complete = group.is_whole and CAPTION_SUFFIXES[0] in group.parts
        if is_complete or self.path is None:
            return True
        if self.index is None:
            self.index = index_tar(self.path)
        whole = self.index.get(group.key)
        if whole is None or not is_whole(whole.parts):
            # An extra file may follow its sample, also where a resumed stream begins.
            return not is_extra(group.key, self.index)
        if whole.begin != group.begin:
            # A second copy of the sample, or a part of the first.
            return group.is_whole and group.parts.keys() == whole.parts.keys()
        with open(self.path, "rb") as file:
            for suffix, (_, offset, size) in whole.parts.items():
                if suffix not in group.parts:
                    file.seek(offset)
                    group.parts[suffix] = file.read(_kept(suffix, size))
        return True

    def _sample(self, group: _Group) -> Sample | None:
        """The group as a sample; None if it is not one."""
        label = f"{self.shard}:{writable(group.key)}"
        if group.problem is not None:
            return Sample(label, problem=group.problem)
        if not self._complete(group) or not is_sample(group.key, group.parts):
            return None
        if group.key in self.seen:
            is_repeated = group.is_whole or self.seen[group.key]
            return Sample(label, problem="duplicate key" if is_repeated else APART)
        self.seen[group.key] = group.is_whole
        image = next((group.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in group.parts), None)
        suffix = next((suffix for suffix in CAPTION_SUFFIXES if suffix in group.parts), None)
        text = None if suffix is None else group.parts[suffix]
        if text is not None and len(text) > MAX_CAPTION_BYTES:
            return Sample(label, problem="caption is too long")  # not kept in the shuffle buffer
        if text is None or suffix != "json":
            return Sample(label, image, text)
        try:
            return Sample(label, image, json_captions(text) or None)
        except SkippedSample as reason:
            return Sample(label, problem=str(reason))


def _wanted(name: str, size: int) -> int:
    parsed = parse_member(name)
    return 0 if parsed is None else _kept(parsed.suffix, size)


def _kept(suffix: str, size: int) -> int:
    """How many bytes of a file are kept: none of an image that is too large, at most one too many of a text."""
    if suffix in IMAGE_SUFFIXES:
        return size if size <= MAX_IMAGE_BYTES else 0
    return min(size, (MAX_CAPTION_BYTES if suffix in CAPTION_SUFFIXES else MAX_LABEL_BYTES) + 1)


def _problem(member: Member) -> str | None:
    """What is wrong with a member: an unsafe name, a link, a huge image; harmless here, but perhaps malicious."""
    if len(member.name) > MAX_PATH:
        return "member name is too long"
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
