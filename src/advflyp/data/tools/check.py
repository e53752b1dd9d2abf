"""`advflyp data check`: read every pair once, as training would; report skipped samples, and statistics of the rest."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from PIL import Image

from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.prefetch import threaded
from advflyp.data.pairs.samples import Sample, Skipped, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns

SHEET = 48
THUMBNAIL = 160
# Duplicates are counted among the first N distinct captions, whose hashes are kept: about 100 MB.
REMEMBERED = 1_000_000


@dataclass(frozen=True)
class Shown:
    """A pair of the contact sheet."""

    key: str
    image: Image.Image
    captions: tuple[str, ...]


@dataclass
class Checked:
    """What `check` found.

    Attributes:
        seen: Samples, usable or not.
        captions: Captions of usable pairs.
        repeated: Captions that have occurred before.
        words: {number of words: number of captions}.
        sides: {length of the shorter side: number of images}.
        sheet: Some usable pairs, drawn uniformly.
    """

    name: str
    seen: int = 0
    usable: int = 0
    captions: int = 0
    repeated: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    words: Counter[int] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    sheet: list[Shown] = field(default_factory=list)

    def share_of(self, reason: str) -> float:
        """Fraction of all samples that were skipped for `reason`, from 0 to 1."""
        return self.skipped.counts[reason] / max(1, self.seen)


def check(
    pairs: str,
    *,
    limit: int | None = None,
    size: int | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    workers: int = 4,
    progress: Callable[[int], None] | None = None,
) -> Checked:
    """Look at the pairs that `pairs` names (see `open_source`), or at the first `limit` of them.

    Memory use does not grow with the number of pairs.

    Args:
        pairs, limit, size, columns: As in `open_source`.
        seed: Random seed of the contact sheet.
        workers: Decoding threads.
        progress: Called with the samples seen so far.

    Raises:
        ValueError: There are none.
    """
    damaged: list[str] = []
    source = open_source(pairs, size=size or limit, columns=columns, damaged=damaged)
    found = Checked(pairs)
    for address in damaged:
        found.seen += 1
        found.skipped.add("damaged Parquet file", address)
    rng = random.Random(seed)
    known: set[int] = set()
    samples = islice(in_order(source), limit)
    for sample, outcome in threaded(samples, _look, workers, 16 * workers, held=lambda one: one.held):
        found.seen += 1
        if progress is not None and found.seen % 100 == 0:
            progress(found.seen)
        if isinstance(outcome, str):
            found.skipped.add(outcome, sample.key)
            continue
        captions, side, thumbnail = outcome
        found.usable += 1
        found.sides[side] += 1
        for caption in captions:
            found.captions += 1
            found.words[len(caption.split())] += 1
            found.repeated += hash(caption) in known
            if len(known) < REMEMBERED:
                known.add(hash(caption))
        # Every usable pair is kept with the same probability (reservoir sampling).
        if len(found.sheet) < SHEET:
            found.sheet.append(Shown(sample.key, thumbnail, captions))
        elif (place := rng.randrange(found.usable)) < SHEET:
            found.sheet[place] = Shown(sample.key, thumbnail, captions)
    return found


def _look(sample: Sample) -> tuple[tuple[str, ...], int, Image.Image]:
    """The captions of a sample, its shorter side and its thumbnail."""
    captions = sample.captions()
    image = read_image(sample.image_bytes())
    side = min(image.size)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return captions, side, image
