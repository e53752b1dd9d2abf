"""`advflyp data overlap`: training images that are near-duplicates of evaluation images.

A perceptual hash (64 bits from the low cosine frequencies of the grey image) proposes pairs, mirrored ones too; if a
model is given, its image embeddings confirm them. Evaluation hashes are kept in memory, training pairs are streamed.
Dropping reads the pairs again; eight bytes for each image tell whether it is still the one that was compared.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor

from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.prefetch import threaded
from advflyp.data.pairs.samples import Sample, Skipped, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.labelled import LabelledSet, load_set, set_names
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_AHEAD_BYTES
from advflyp.model.clip import CLIP
from advflyp.model.precision import for_use

# Chosen by inspecting real images above and below; tests/data/tools/test_overlap.py pins what is found and what not.
HASH_LIMIT = 6
CANDIDATE_LIMIT = 12
COSINE_LIMIT = 0.95
THUMBNAIL = 160
SHOWN = 60
# Decoding threads, and the number of images decoded ahead.
WORKERS, AHEAD = 4, 64
# Training images and evaluation hashes that are compared at a time: small enough for the CPU cache.
_BLOCK = 64
_PIECE = 2048
CHANGED = "image is not the one that was compared"

Place = tuple[int, int]  # of an evaluation image: number of the set, and position in it


@dataclass(frozen=True)
class Match:
    """A training image and an evaluation image that are nearly the same.

    Attributes:
        number: Index of the training pair in stored order, since shards of one name in two folders share their keys.
        key: Its name.
        set, image: The evaluation set and the image's name in it.
        bits: How many of the 64 hash bits differ, for the plain or the mirrored image, whichever is nearer.
        mirrored: Whether the mirrored image was nearer.
        cosine: Cosine of the embeddings; None without a model.
    """

    number: int
    key: str
    set: str
    image: str
    bits: int
    mirrored: bool
    cosine: float | None


@dataclass
class Overlap:
    """The near-duplicates found.

    Attributes:
        seen: Training samples, unusable ones too.
        against: {set: number of images}.
        unreadable: {set: {image: reason}}; these are not compared.
        shown: Thumbnails of some matches: training image, evaluation image, match.
        compared: For each sample seen, in stored order, a fingerprint of its key and image; 0 if it was not compared.
    """

    name: str
    seen: int = 0
    against: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, dict[str, str]] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    shown: list[tuple[Image.Image, Image.Image, Match]] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)
    compared: "array[int]" = field(default_factory=lambda: array("Q"), repr=False)

    @property
    def keys(self) -> set[tuple[int, str]]:
        """Number and key of the training pairs that match anything."""
        return {(match.number, match.key) for match in self.matches}


def overlap(
    pairs: str,
    sets: Sequence[str],
    *,
    model: CLIP | None = None,
    bits: int | None = None,
    cosine: float = COSINE_LIMIT,
    limit: int | None = None,
    size: int | None = None,
    columns: Columns | None = None,
    progress: Callable[[int], None] | None = None,
) -> Overlap:
    """Compare the pairs that `pairs` names (see `open_source`) with evaluation sets (see `load_set`).

    Args:
        model: Confirms what the hash proposes; without it the hash decides, and its limit is stricter.
        bits: Maximum number of hash bits that differ.
        cosine: Minimum cosine similarity of the embeddings.

    ValueError if the pairs or a set cannot be read, or a limit is out of range.
    """
    allowed = bits if bits is not None else HASH_LIMIT if model is None else CANDIDATE_LIMIT
    if not 0 <= allowed <= 32:
        raise ValueError(f"--bits must be from 0 to 32, not {allowed}: unrelated images differ in about 32")
    if not -1 <= cosine <= 1:
        raise ValueError(f"--cosine must be from -1 to 1, not {cosine}")
    labelled = [load_set(name) for name in set_names(list(sets))]
    source = open_source(pairs, size=size or limit, columns=columns)
    found = Overlap(pairs, against={one.name: len(one) for one in labelled})
    comparison = _Comparison(found, labelled, model, allowed, cosine)
    held = 0  # bytes of the encoded images that wait
    hashes = threaded(
        islice(in_order(source), limit),
        _hashed,
        WORKERS,
        AHEAD,
        held=lambda sample: sample.held,
    )
    for sample, outcome in hashes:
        found.seen += 1
        if isinstance(outcome, str):
            found.skipped.add(outcome, sample.key)
            found.compared.append(0)
            continue
        code, fingerprint = outcome
        found.compared.append(fingerprint)
        comparison.waiting.append((found.seen - 1, sample, code))
        held += sample.held
        if len(comparison.waiting) == _BLOCK or held > MAX_AHEAD_BYTES:
            held = 0
            comparison.compare()
            if progress is not None:
                progress(found.seen)
    comparison.compare()
    return found


class _Comparison:
    """Compares training images with evaluation images, a block at a time.

    Embeddings of evaluation images are kept, since other candidates may need them.
    """

    def __init__(
        self,
        found: Overlap,
        labelled: Sequence[LabelledSet],
        model: CLIP | None,
        bits: int,
        cosine: float,
    ) -> None:
        self.found, self.labelled, self.model, self.bits, self.cosine = found, labelled, model, bits, cosine
        self.waiting: list[tuple[int, Sample, np.uint64]] = []
        self.places: list[Place] = []  # of every readable image of the evaluations
        self.known: dict[tuple[Place, bool], Tensor] = {}
        hashes: list[tuple[np.uint64, np.uint64]] = []
        every = ((number, index) for number, one in enumerate(labelled) for index in range(len(one)))
        for place, codes in threaded(every, self._evaluation_hashes, WORKERS, AHEAD):
            if isinstance(codes, str):
                one = labelled[place[0]]
                found.unreadable.setdefault(one.name, {})[one.key(place[1])] = codes
                continue
            self.places.append(place)
            hashes.append(codes)
        self.hashes = np.array(hashes, np.uint64).reshape(-1, 2)  # mirrored ones second

    def compare(self) -> None:
        """Compare the waiting training images, and record their matches."""
        hashes = np.array([code for _, _, code in self.waiting], np.uint64)
        candidates = within(hashes, self.hashes, self.bits)
        images = self._read_again({row for row, *_ in candidates})
        candidates = [one for one in candidates if one[0] in images]
        cosines: list[float | None] = [None] * len(candidates)
        if self.model is not None and candidates:
            wanted = [(row, self.places[place], flip) for row, place, _, flip in candidates]
            cosines = self._cosines(self.model, images, wanted)
        for (row, place, differing, flip), similarity in zip(candidates, cosines, strict=True):
            if similarity is not None and similarity < self.cosine:
                continue
            training, sample, _ = self.waiting[row]
            number, index = self.places[place]
            one = self.labelled[number]
            match = Match(training, sample.key, one.name, one.key(index), differing, flip, similarity)
            self.found.matches.append(match)
            if len(self.found.shown) < SHOWN:
                self.found.shown.append((_small(images[row]), _small(one.image(index)), match))
        self.waiting.clear()

    def _read_again(self, rows: set[int]) -> dict[int, Image.Image]:
        """Decode these rows' images again: keeping those of a whole block would fill the memory."""
        images: dict[int, Image.Image] = {}
        for row in sorted(rows):
            number, sample, _ = self.waiting[row]
            try:
                data = sample.image_bytes()
                if _fingerprint(sample.key, data) != self.found.compared[number]:
                    raise SkippedSample(CHANGED)
                images[row] = read_image(data)
            except SkippedSample as reason:  # a server may not answer twice
                self.found.skipped.add(str(reason), sample.key)
                self.found.compared[number] = 0
        return images

    def _evaluated(self, place: Place, mirrored: bool = False) -> Image.Image:
        image = self.labelled[place[0]].image(place[1])
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    def _evaluation_hashes(self, place: Place) -> tuple[np.uint64, np.uint64]:
        image = self._evaluated(place)
        return image_hash(image), image_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    def _cosines(
        self, model: CLIP, images: dict[int, Image.Image], candidates: Sequence[tuple[int, Place, bool]]
    ) -> list[float | None]:
        """The cosine of each candidate: (row of a training image, place of an evaluation image, whether mirrored)."""
        new = sorted({(place, flip) for _, place, flip in candidates} - self.known.keys())
        for start in range(0, len(new), _BLOCK):
            some = new[start : start + _BLOCK]
            self.known.update(zip(some, _embed(model, [self._evaluated(*one) for one in some]), strict=True))
        training = dict(zip(images, _embed(model, list(images.values())), strict=True))
        return [float(training[row] @ self.known[place, flip]) for row, place, flip in candidates]


@torch.no_grad()
def _embed(model: CLIP, images: Sequence[Image.Image]) -> Tensor:
    """(N, d) unit norm."""
    pixels = torch.stack([model.preprocess(image) for image in images])
    with for_use(model), model.computing_in("fp32"):
        return model.encode_image(pixels.to(model.device)).cpu()


def image_hash(image: Image.Image) -> np.uint64:
    """64 bits: which of the 8×8 lowest cosine frequencies of the grey 32×32 image are above their median.

    Re-encoding, resizing and changes of brightness leave most bits as they are.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float32)
    low = np.asarray(dctn(grey, norm="ortho"))[:8, :8].ravel()
    low[0] = 0  # the mean brightness says nothing about the content
    return np.packbits(low > np.median(low)).view(np.uint64)[0]


def within(queries: np.ndarray, references: np.ndarray, bits: int) -> list[tuple[int, int, int, bool]]:
    """Pairs of a query (N,) and a reference (M, 2: plain, mirrored) whose hashes differ in at most `bits` bits.

    Each is (query, reference, differing bits of the nearer hash, whether that is the mirrored one).
    """
    found: list[tuple[int, int, int, bool]] = []
    for start in range(0, len(references), _PIECE):
        piece = references[start : start + _PIECE]
        plain, mirrored = (np.bitwise_count(queries[:, None] ^ piece[:, side]) for side in (0, 1))
        distances = np.minimum(plain, mirrored)
        rows, columns = np.nonzero(distances <= bits)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            flip = bool(mirrored[row, column] < plain[row, column])
            found.append((row, start + column, int(distances[row, column]), flip))
    return sorted(found)


def without(found: Overlap, *, size: int | None = None, columns: Columns | None = None) -> Iterator[Sample]:
    """The samples of the pairs that were compared, except those that match.

    A sample that was not compared, or whose image is another one by now, has a `problem`: writing it to a shard skips
    and counts it.

    Args:
        found: The comparison.
        size: As for `overlap`.
        columns: As for `overlap`.
    """
    keys = found.keys
    for number, sample in enumerate(in_order(open_source(found.name, size=size, columns=columns))):
        if (number, sample.key) not in keys:
            yield _as_compared(sample, found.compared[number] if number < len(found.compared) else 0)


def _as_compared(sample: Sample, fingerprint: int) -> Sample:
    """The sample with the image read for good, or with the problem why it cannot be used."""
    try:
        sample.captions()
        data = sample.image_bytes()
        if not fingerprint:
            read_image(data)  # nearly always what kept it from being compared
    except SkippedSample as reason:
        return replace(sample, problem=str(reason))
    if _fingerprint(sample.key, data) != fingerprint:
        return replace(sample, problem=CHANGED)
    return replace(sample, image=data)


def _hashed(sample: Sample) -> tuple[np.uint64, int]:
    data = sample.image_bytes()
    return image_hash(read_image(data)), _fingerprint(sample.key, data)


def _fingerprint(key: str, image: bytes) -> int:
    """64 bits of a hash, never 0."""
    digest = hashlib.blake2b(
        image, digest_size=8, key=hashlib.sha256(key.encode("utf-8", "replace")).digest()
    )
    return int.from_bytes(digest.digest(), "little") or 1


def _small(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image
