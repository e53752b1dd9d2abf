"""An undecoded image–text pair, the two kinds of sources of pairs, and the count of skipped samples."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from PIL.Image import Image

from advflyp.data.pairs.addresses import read_named
from advflyp.data.pairs.cells import CAPTION_NAMES, captions_in, decoded
from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_CAPTION_BYTES, MAX_WORD, open_regular, reading

# Fewer samples than this say nothing about the data, except at the end of an epoch.
ENOUGH = 500
# From the beginning of a word only: from each of its letters, words that are just short enough take quadratic time.
_LONG_WORD = re.compile(rf"(?<![^\W\d_])[^\W\d_]{{{MAX_WORD + 1}}}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair as it is stored.

    Attributes:
        key: Its name, for messages.
        image: The encoded image, its path or address, or a decoded image.
        caption: Encoded text, a text or JSON file, or the captions themselves; every line is a caption.
        problem: Why it cannot be used, if that is known without decoding it.
        table: The address of the table that names the image's path or address; empty if none does.
    """

    key: str
    image: bytes | str | Image | None = None
    caption: bytes | Path | tuple[str, ...] | None = None
    problem: str | None = None
    table: str = ""

    @property
    def held(self) -> int:
        """Approximate memory use in bytes."""
        pixels = 4 * self.image.width * self.image.height if isinstance(self.image, Image) else 0
        parts = (self.image, *(self.caption if isinstance(self.caption, tuple) else (self.caption,)))
        return pixels + sum(len(part) for part in parts if isinstance(part, bytes | str))

    def image_bytes(self) -> bytes:
        """The encoded image; `SkippedSample` if there is none."""
        if self.problem is not None:
            raise SkippedSample(self.problem)
        if self.image is None:
            raise SkippedSample("no image")
        assert not isinstance(self.image, Image), "decoded already"
        return self.image if isinstance(self.image, bytes) else read_named(self.image, self.table)

    def captions(self) -> tuple[str, ...]:
        """The captions, at least one, each on one line; `SkippedSample` if there is none."""
        if self.problem is not None:
            raise SkippedSample(self.problem)
        caption = self.caption
        if isinstance(caption, Path):
            data = _bytes(caption)
            caption = (json_captions(data) or None) if caption.suffix.lower() == ".json" else data
        if caption is None:
            raise SkippedSample("no caption")
        if isinstance(caption, bytes):
            # Not splitlines, which also splits at U+2028, U+0085 and others.
            lines = re.split(r"\r\n|\r|\n", _text(caption))
        else:
            # JSON can hold lone surrogates, which cannot be encoded.
            text = "\n".join(caption).encode("utf-8", "replace")
            if len(text) > MAX_CAPTION_BYTES:
                raise SkippedSample("caption is too long")
            lines = [line.encode("utf-8", "replace").decode() for line in caption]
        found = tuple(caption for line in lines if (caption := " ".join(line.split())))
        if any(map(_LONG_WORD.search, found)):
            raise SkippedSample("caption with an overlong word")
        if not found:
            raise SkippedSample("empty caption")
        return found


def json_captions(data: bytes) -> tuple[str, ...]:
    """The captions in a file of JSON about one image: a text, a list of texts, or an object that holds one of these.

    Returns:
        The captions; none if an object has none under a known name.

    Raises:
        SkippedSample: The file is not JSON or too long, or the caption is not text.
    """
    try:
        found = parse_json(_text(data))
    except ValueError:
        raise SkippedSample("caption file is not JSON") from None
    if isinstance(found, dict) and not any(name.lower() in CAPTION_NAMES for name in found):
        return ()
    return tuple(captions_in(found))


def _text(caption: bytes) -> str:
    if len(caption) > MAX_CAPTION_BYTES:
        raise SkippedSample("caption is too long")
    return decoded(caption, "caption")


def _bytes(file: Path) -> bytes:
    """The contents of a caption file, at most one byte more than is allowed."""
    try:
        with open_regular(file) as stream, reading(file):
            return stream.read(MAX_CAPTION_BYTES + 1)
    except OSError:
        raise SkippedSample("caption file cannot be read") from None


@dataclass
class Skipped:
    """The samples skipped so far: {reason: number of samples} and {reason: key of the first one}."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, key: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, key)

    @classmethod
    def joined(cls, ranks: "Sequence[Skipped]") -> "Skipped":
        """Those of several ranks; an example is that of the first rank which has one."""
        result = cls()
        for one in ranks:
            result.counts += one.counts
            result.examples = one.examples | result.examples
        return result

    def copy(self) -> "Skipped":
        """An independent copy."""
        return Skipped(self.counts.copy(), dict(self.examples))

    def describe(self) -> str:
        """The reasons, the most frequent first: "12 truncated image (such as 00003.tar:0042), 1 no caption (…)"."""
        return ", ".join(
            f"{count:,} {reason}" + (f" (such as {self.examples[reason]})" if reason in self.examples else "")
            for reason, count in self.counts.most_common()
        )


class Indexed(Protocol):
    """Pairs that can be read in any order: an epoch is a permutation of all of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Sample:
        """Called from one thread; reads nothing large."""
        ...


class Shard(Protocol):
    """Pairs that are read one after the other.

    Attributes:
        name: For messages.
        count: Number of pairs; None if it is unknown before they are read.
    """

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int | None: ...

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        """Each pair with the offset after it, from which a later call resumes. Damage becomes a `Sample.problem`."""
        ...


@dataclass
class Sharded:
    """Pairs in shards.

    Attributes:
        total: Samples in all of them.
        limit: Use only the first N samples, in stored order.
    """

    shards: Sequence[Shard]
    total: int
    limit: int | None = None

    def __len__(self) -> int:
        return self.total if self.limit is None else min(self.limit, self.total)


def in_order(source: Indexed | Sharded) -> Iterator[Sample]:
    """Every sample once, as stored."""
    if isinstance(source, Sharded):
        every = (sample for shard in source.shards for sample, _ in shard.read())
        return islice(every, source.limit)
    return (source[number] for number in range(len(source)))
