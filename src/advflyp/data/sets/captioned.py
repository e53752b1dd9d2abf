"""Images with their captions, for retrieval in both directions: any source of pairs, read in stored order.

Every line of a text is a caption, as in the shards of COCO Captions and Flickr30k that clip-benchmark reads
(`wds_mscoco_captions`: KEY.jpg, and KEY.txt with five lines).
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advflyp.data.filenames import shards_in
from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.prefetch import stacked, threaded
from advflyp.data.pairs.samples import Sample, Sharded, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.labelled import HASHED_IMAGES, check_tolerated, described
from advflyp.errors import SkippedSample
from advflyp.wording import counted


@dataclass(frozen=True)
class Entry:
    """An undecoded image and its captions, at least one.

    Attributes:
        key: Its name in the source: its path below the folder or table, or SHARD:KEY.
        place: Its number among all samples of the source.
    """

    key: str
    place: int
    captions: tuple[str, ...]


class CaptionedImages:
    """The images of `pairs` and their captions; samples that cannot be used are in `unreadable`, {key: reason}.

    Attributes:
        pairs: A folder, shards, a table or hf:NAME, as for `data.train`.
        limit: Use only this many images, drawn by `seed`; a smaller limit draws a subset of a larger one's.
        columns: The columns of a table.
        usable: Number of usable images before the limit.

    ValueError if there are fewer than two usable images, or more than 1 % of the samples cannot be used.
    """

    def __init__(
        self, pairs: str | Path, *, limit: int | None = None, seed: int = 0, columns: Columns | None = None
    ) -> None:
        if limit is not None and limit < 2:
            raise ValueError(f"limit must be at least 2, not {limit}; retrieval needs two or more images")
        self.name = str(pairs)
        # As in clip-benchmark's folders, which hold dataset_type.txt beside the splits.
        test = Path(self.name).expanduser() / "test"
        # Every sample is read here, so that nothing has to say beforehand how many there are.
        self.source = open_source(
            str(test) if test.is_dir() and shards_in(test) else self.name, size=1, columns=columns
        )
        self.unreadable: dict[str, str] = {}
        every = list(self._usable())
        self._check(self.unreadable, len(every) + len(self.unreadable))
        self.usable = len(every)
        order = list(range(len(every)))
        if limit is not None and limit < len(every):
            random.Random(seed).shuffle(order)
            order = sorted(order[:limit])
        self.entries = [every[number] for number in order]
        if len(self.entries) < 2:
            raise ValueError(
                f"{self.name} holds {counted(len(self.entries), 'image')} with captions; "
                "retrieval needs two or more"
            )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return [caption for entry in self.entries for caption in entry.captions]

    @property
    def owner(self) -> Tensor:
        """(captions,) int64: which image a caption belongs to."""
        return torch.tensor([row for row, entry in enumerate(self.entries) for _ in entry.captions])

    @property
    def places(self) -> Tensor:
        """(images,) int64: their places among all samples, whatever the limit."""
        return torch.tensor([entry.place for entry in self.entries])

    def sha256(self) -> str:
        """A hash of names, captions and the first images: the same pairs stored elsewhere have the same hash."""
        content = [[entry.key, *entry.captions] for entry in self.entries]
        digest = hashlib.sha256(json.dumps(content).encode())
        for sample in self._wanted(self.entries[:HASHED_IMAGES]):
            digest.update(described(lambda sample=sample: read_image(sample.image_bytes())))
        return digest.hexdigest()

    def batches(
        self, preprocess: Callable[[Image.Image], Tensor], batch_size: int, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (N,) int64 and images (N, 3, H, W) in [0, 1], in order; decoded in threads, two batches ahead.

        An image that cannot be decoded is skipped. After the last batch it moves from `entries` to `unreadable`.

        Args:
            preprocess: An RGB image → (3, H, W) in [0, 1].
            batch_size: N; the last batch may be smaller.
            start: The first row.
        """
        broken: list[tuple[str, int, str]] = []
        named: dict[str, str] = {}

        def skip(item: tuple[int, Sample], reason: str) -> None:
            entry = self.entries[item[0]]
            broken.append((entry.key, entry.place, reason))
            _enter(named, *broken[-1])
            self._check(named, len(self.entries))

        decoded = threaded(
            enumerate(self._wanted(self.entries[start:]), start),
            lambda item: preprocess(read_image(item[1].image_bytes())),
            workers=4,
            ahead=2 * batch_size,
            held=lambda item: item[1].held,
        )
        for items, images in stacked(decoded, batch_size, skip):
            yield torch.tensor([row for row, _ in items]), images
        for skipped in broken:
            _enter(self.unreadable, *skipped)
        gone = {place for _, place, _ in broken}  # keys may repeat
        self.entries = [entry for entry in self.entries if entry.place not in gone]

    def _usable(self) -> Iterator[Entry]:
        """Every sample that has an image and a caption; the others are entered in `unreadable`."""
        shards = {shard.name for shard in self.source.shards} if isinstance(self.source, Sharded) else set()
        for place, sample in enumerate(in_order(self.source)):
            if sample.problem is not None and sample.key in shards:
                # Without the rest of a shard it would be another benchmark, and nobody could tell.
                raise ValueError(f"{self.name}: {sample.key} is a {sample.problem}; fetch it again")
            try:
                captions = sample.captions()
            except SkippedSample as reason:
                _enter(self.unreadable, sample.key, place, str(reason))
                continue
            if sample.image is None:
                _enter(self.unreadable, sample.key, place, "no image")
                continue
            yield Entry(sample.key, place, captions)

    def _wanted(self, entries: Sequence[Entry]) -> Iterator[Sample]:
        """The samples of the entries, in their order."""
        if not isinstance(self.source, Sharded):
            return (self.source[entry.place] for entry in entries)
        wanted = {entry.place for entry in entries}
        every = islice(enumerate(in_order(self.source)), max(wanted, default=-1) + 1)
        return (sample for place, sample in every if place in wanted)

    def _check(self, skipped: dict[str, str], wanted: int) -> None:
        what = f"of {counted(wanted, 'pair')} cannot be used; mend or remove them"
        check_tolerated(self.name, what, skipped, wanted)


def _enter(skipped: dict[str, str], key: str, place: int, reason: str) -> None:
    """Enter a skipped sample by its key, and by its place, too, if another has that key: each of them counts."""
    skipped[f"{key} (sample {place})" if key in skipped else key] = reason
