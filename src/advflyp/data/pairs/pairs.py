"""Image–text pairs as shuffled batches, wherever they are stored.

The order of an epoch depends only on (seed, epoch), not on the number of decoding threads. Every batch carries the
position of the source after it, which is all that a resumed run needs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import default_collate

from advflyp.data.batch import Batch
from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader, finish_image
from advflyp.data.pairs.prefetch import prefetched, threaded
from advflyp.data.pairs.process import BatchProcess
from advflyp.data.pairs.samples import ENOUGH, Sample, Skipped
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.stream import Mixed, Position, Stream, open_stream
from advflyp.data.pairs.tables import Columns
from advflyp.share import Share
from advflyp.wording import counted

Tokenizer = Callable[[list[str]], Tensor]
Raw = TypeVar("Raw")  # a sample before decoding


class Pairs(Protocol):
    """A source of training batches."""

    skipped: Skipped  # samples that could not be used, of all epochs so far

    @property
    def contents(self) -> str:
        """What it is made of, in words, so that a run is not resumed on other data."""
        ...

    def __len__(self) -> int:
        """Batches an epoch has if no sample is skipped."""
        ...

    def epoch(self, epoch: int, start: Position | None = None) -> Iterator[Batch]:
        """Batches of one epoch: images, captions and a position; for a labelled set, also labels.

        Args:
            start: The position of the last batch already seen in this epoch.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples become batches."""

    config: DataConfig
    reader: ImageReader
    seed: int  # what the order depends on, beside the epoch
    device: torch.device  # where images become floats; they get there as bytes
    share: Share  # which rows of a batch this rank makes
    tokenizer: Tokenizer | None = None  # makes "tokens" of the captions, if the batch is to have them


class Decoded(ABC, Generic[Raw]):
    """Batches of images decoded in threads; samples that cannot be used are skipped and counted in `skipped`.

    Args:
        how: How the samples become batches.
        stream: The undecoded samples.
        noun: What messages call a sample.
    """

    def __init__(self, how: Reading, stream: Stream[Raw], noun: str) -> None:
        self.how, self.stream, self.contents = how, stream, stream.contents
        self.skipped = Skipped()
        if len(stream) < how.config.batch_size:
            raise ValueError(
                f"{how.config.train} holds {counted(len(stream), noun)}, not enough for one batch of "
                f"{how.config.batch_size}; lower data.batch_size"
            )

    @abstractmethod
    def key(self, sample: Raw) -> str:
        """The name of a sample in messages."""

    @abstractmethod
    def decode(self, sample: Raw, epoch: int) -> dict[str, Any]:
        """A row of the batch: "images" (3, H, W) uint8, "captions" a text, and for a labelled set "labels".

        Called from several threads; `SkippedSample` if the sample cannot be used.
        """

    def held(self, sample: Raw) -> int:
        """Bytes of memory that a sample takes before it is decoded."""
        return 0

    def __len__(self) -> int:
        return self.how.share.batches(len(self.stream))

    def epoch(self, epoch: int, start: Position | None = None) -> Iterator[Batch]:
        request = (epoch, start, self.skipped)
        made = (
            prefetched(map(self._pinned, self.batches(request)))
            if self.how.config.loader == "threads"
            else self._process.batches(request)
        )
        for batch in made:
            self.skipped = batch.pop("skipped")
            if not batch:
                continue  # only the skipped samples, after the last batch
            batch["images"] = batch["images"].to(self.how.device, non_blocking=True).float() / 255
            yield Batch(**batch)

    @cached_property
    def _process(self) -> BatchProcess:
        height, width = self.how.reader.size
        return BatchProcess(self, 3 * height * width * self.how.share.size, self.how.device)

    def batches(self, request: tuple[int, Position | None, Skipped]) -> Iterator[dict[str, Any]]:
        """Batches of uint8 images, each with a copy of the skipped samples so far; then one more with only these.

        Args:
            request: The epoch, the position to start from, and the samples skipped before.
        """
        epoch, start, skipped = request
        skipped = skipped.copy()
        seen = bad = 0
        position: Position = start or {}
        rows: list[dict[str, Any]] = []
        decoded = threaded(
            self.stream.samples(epoch, start),
            lambda item: self.decode(item[0], epoch),
            self.how.config.workers,
            ahead=2 * self.how.share.size,
            held=lambda item: self.held(item[0]),
        )
        for (sample, position), row in decoded:
            seen += 1
            if isinstance(row, str):
                bad += 1
                skipped.add(row, self.key(sample))
                if seen >= ENOUGH:
                    self._check(bad, seen, skipped)
                continue
            rows.append(row)
            if len(rows) == self.how.share.size:
                yield self._batch(rows, position, skipped)
                rows = []
        if rows and not self.how.share.drop_last:
            yield self._batch(rows, position, skipped)
        if start is None:
            # The few samples that a resumed epoch may have left say nothing about the data.
            self._check(bad, seen, skipped)
        yield {"skipped": skipped}

    def _batch(self, rows: list[dict[str, Any]], position: Position, skipped: Skipped) -> dict[str, Any]:
        batch = {**default_collate(rows), "position": position, "skipped": skipped.copy()}
        if self.how.tokenizer is not None:
            batch["tokens"] = self.how.tokenizer(batch["captions"])
        return batch

    def _pinned(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.how.device.type == "cuda" and "images" in batch:
            batch["images"] = batch["images"].pin_memory()
        return batch

    def _check(self, bad: int, seen: int, skipped: Skipped) -> None:
        most = self.how.config.max_bad_fraction
        if bad > most * seen:
            raise ValueError(
                f"{bad:,} of {counted(seen, 'sample')} of {self.how.config.train} cannot be used, more than "
                f"data.max_bad_fraction = {most:g}: {skipped.describe()}; look at them with "
                "`advflyp data check`, or raise the fraction"
            )


class DecodedPairs(Decoded[Sample]):
    """Batches of pairs from a stream. If an image has several captions, one is drawn each epoch."""

    def __init__(self, stream: Stream[Sample], how: Reading, captions: bool) -> None:
        super().__init__(how, stream, "pair" if captions else "image")
        self.captions = captions

    def key(self, sample: Sample) -> str:
        return sample.key

    def held(self, sample: Sample) -> int:
        return sample.held

    def decode(self, sample: Sample, epoch: int) -> dict[str, Any]:
        captions = sample.captions() if self.captions else ("",)
        if isinstance(sample.image, Image):
            pixels = self.how.reader.from_image(finish_image(sample.image))
        else:
            pixels = self.how.reader.from_bytes(sample.image_bytes())
        caption = captions[0]
        if len(captions) > 1:
            caption = Random(f"{self.how.seed}/{epoch}/{sample.key}").choice(captions)
        return {"images": pixels, "captions": caption}


def open_pairs(how: Reading, *, captions: bool, pairs: Any = None) -> Pairs:
    """The pairs that `how.config.train` names.

    Args:
        how: How the samples become batches.
        captions: Whether captions are wanted. If not, they are never read, and an image without one is a sample too.
        pairs: An object to read instead of `config.train`; see `open_objects`.

    Raises:
        ValueError: The source does not exist, or holds too few pairs for a batch.
    """
    config, share = how.config, how.share
    columns = Columns(config.image_column, config.caption_column, captions)

    def stream(name: Any, limit: int | None, size: int | None, share: Share) -> Stream:
        source = open_source(name, limit=limit, size=size, columns=columns)
        return open_stream(source, seed=how.seed, buffer=config.shuffle_buffer, share=share)

    found = stream(config.train if pairs is None else pairs, config.limit, config.size, share)
    if config.also is not None:
        # Split sample by sample, so that even a small second source has something for every rank.
        also = stream(config.also, None, None, Share(share.ranks, share.rank, share.ranks))
        found = Mixed(found, also, config.also_share, share.ranks)
    return DecodedPairs(found, how, captions)
