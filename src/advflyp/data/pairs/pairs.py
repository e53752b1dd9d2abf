"""Image–text pairs as shuffled batches, wherever they are stored.

The order of an epoch depends on (seed, epoch) alone, whatever the number of decoding threads, and every batch says
where the source stands behind it: that position is all a resumed run needs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.data.pairs.dirt import ENOUGH, Dirt
from advflyp.data.pairs.images import PictureReader, finish_image
from advflyp.data.pairs.prefetch import prefetched, threaded
from advflyp.data.pairs.samples import Sample
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.stream import Mixed, Position, Share, Stream, open_stream
from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.prompts import choose_templates
from advflyp.errors import SkippedSample
from advflyp.wording import counted

Raw = TypeVar("Raw")  # a sample before decoding
With = TypeVar("With")  # what its picture comes with: a caption, a label


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data (recipe table `data`).

    train:      pairs: "mini" (the corpus that comes with the package), "mini/proxy-captioned" (its labelled pictures
                with their captions), a corpus that its builder made (docs/mini.md), a folder of name.jpg + name.txt,
                webdataset shards (one file, a folder, a glob or "{000..099}.tar"; also s3://, gs://, https://, hf://),
                a CSV, TSV, JSONL or Parquet table, a Hugging Face dataset "hf:NAME";
                labelled: "mini/proxy", any set of the table such as "imagenet@train", a folder of class folders,
                webdataset shards with .cls members
    also:       a second source of pairs, mixed into the first
    also_share: of the samples that come from it
    batch_size: N of Eq. 1, pictures in a batch
    drop_last:  leave out the samples of an epoch that fill no batch; false makes a smaller last batch of them
    limit:      use only so many: the first pairs, or pictures with the classes evenly represented
    size:       samples in the shards of `train`, where neither a manifest nor local files say so
    workers:    decoding threads
    resize:     shorter side before the centre crop; none is the model's own preprocessing, which crops nothing off it
    interpolation: "bilinear" or "bicubic" resizing; none is the model's own
    templates:  prompts of labelled data in place of the set's: one, several with " | " between them, or "openai", the
                80 of OpenAI for ImageNet. Classes are the mean of all; of several, an image's caption is drawn anew
                each epoch
    schedule:   sizes of the images over a run: [[160, 0.8], [224, 0.2]] makes the first four fifths of the updates at
                160 pixels a side, for less arithmetic, and the others at 224; none is the model's own size. Position
                embeddings are interpolated; validation is at the model's own size
    shuffle_buffer:    samples of shards that are shuffled together, kept in memory undecoded, up to
                       1 GB of them
    max_bad_fraction:  training stops when more of the samples than this cannot be used
    image_column, caption_column: of tables, where they have no name that is known
    text_cache: folder for embeddings of captions by a frozen text encoder, kept from run to run; none keeps them in
                memory only
    """

    train: str
    also: str | None = None
    also_share: float = 0.5
    batch_size: int = 256
    drop_last: bool = True
    limit: int | None = None
    size: int | None = None
    workers: int = 4
    resize: int | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    templates: str | None = None
    schedule: tuple[tuple[int, float], ...] | None = None
    shuffle_buffer: int = 2000
    max_bad_fraction: float = 0.2
    image_column: str | None = None
    caption_column: str | None = None
    text_cache: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(
                f"data.batch_size must be at least 2, not {self.batch_size}: "
                "the contrastive loss compares pairs with one another"
            )
        if self.limit is not None and self.limit < self.batch_size:
            raise ValueError(
                f"data.limit = {self.limit} does not fill one batch of {self.batch_size}; raise it or lower "
                "data.batch_size"
            )
        for name in ("workers", "shuffle_buffer", "size", "resize"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, not {value}")
        self.chosen_templates()
        if self.schedule is not None:
            self._check_schedule(self.schedule)
        if not 0 < self.also_share < 1:
            raise ValueError(f"data.also_share must be between 0 and 1, not {self.also_share}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be from 0 to 1, not {self.max_bad_fraction}")

    def chosen_templates(self) -> list[str] | None:
        """`templates` one by one; ValueError for one without exactly one {}."""
        if self.templates is None:
            return None
        return choose_templates("openai" if self.templates == "openai" else self.templates.split(" | "))

    def _check_schedule(self, schedule: tuple[tuple[int, float], ...]) -> None:
        if any(size < 1 or not share > 0 for size, share in schedule):
            raise ValueError("data.schedule: sizes must be at least 1 pixel, and shares of the run above 0")
        if not math.isclose(sum(share for _, share in schedule), 1, abs_tol=1e-6):
            raise ValueError(
                "data.schedule: the shares of the run must add up to 1, such as [[160, 0.8], [224, 0.2]], not "
                f"{sum(share for _, share in schedule):g}"
            )

    def size_at(self, step: int, steps: int) -> int | None:
        """A side of the images, in pixels, in update `step` (from 0) of so many; none is the model's own."""
        share = 0.0
        for size, part in self.schedule or ():
            share += part
            if step < round(share * steps):
                return size
        return None


class Pairs(Protocol):
    """A source of training batches."""

    dirt: Dirt  # samples that could not be used, of all epochs so far

    def __len__(self) -> int:
        """Batches an epoch has if no sample is unusable."""
        ...

    def epoch(self, epoch: int, start: Position | None = None) -> Iterator[Batch]:
        """Batches of one epoch: images, captions and a position, of a labelled set also labels.

        start: the position of the last batch already seen in this epoch
        """
        ...


class Decoded(ABC, Generic[Raw, With]):
    """Batches of pictures decoded in threads; samples that cannot be used are left out and counted in `dirt`.

    count:  samples an epoch, of all processes together
    device: where pictures become floats; they get there as bytes
    share:  which rows of a batch this process makes
    """

    def __init__(
        self,
        config: DataConfig,
        reader: PictureReader,
        seed: int,
        count: int,
        noun: str,
        device: torch.device,
        share: Share,
    ) -> None:
        self.config = config
        self.reader = reader
        self.seed = seed
        self.count = count
        self.device = device
        self.share = share
        self.dirt = Dirt()
        if count < config.batch_size:
            raise ValueError(
                f"{config.train} holds {counted(count, noun)}, not enough for one batch of {config.batch_size}; "
                "lower data.batch_size"
            )

    @abstractmethod
    def samples(self, epoch: int, start: Position | None) -> Iterator[tuple[Raw, Position]]:
        """Undecoded samples, each with the position behind it, in an order that depends on (seed, epoch) alone."""

    @abstractmethod
    def key(self, sample: Raw) -> str:
        """What messages call it."""

    def held(self, sample: Raw) -> int:
        """Bytes of memory that a sample takes before it is decoded."""
        return 0

    @abstractmethod
    def decode(self, sample: Raw, epoch: int) -> tuple[Tensor, With]:
        """The picture (3, H, W) uint8 and what it comes with, or `SkippedSample`; called from several threads."""

    @abstractmethod
    def collate(self, some: list[With]) -> dict[str, Any]:
        """The rest of the batch, "captions" among it."""

    def __len__(self) -> int:
        return self.share.batches(self.count)

    def epoch(self, epoch: int, start: Position | None = None) -> Iterator[Batch]:
        for batch in prefetched(self._batches(epoch, start)):
            self.dirt = batch.pop("dirt")
            if not batch:
                return  # behind the last full batch
            batch["images"] = batch["images"].to(self.device, non_blocking=True).float() / 255
            yield Batch(**batch)

    def _batches(self, epoch: int, start: Position | None) -> Iterator[dict[str, Any]]:
        """Batches with a copy of the dirt up to their end, and one of dirt alone at the end of the epoch."""
        dirt = self.dirt.copy()
        seen = bad = 0
        position: Position = start or {}
        images: list[Tensor] = []
        rest: list[With] = []
        for sample, position, decoded in self._decoded(epoch, start):
            seen += 1
            if isinstance(decoded, str):
                bad += 1
                dirt.add(decoded, self.key(sample))
                if seen >= ENOUGH:
                    self._check(bad, seen, dirt)
                continue
            images.append(decoded[0])
            rest.append(decoded[1])
            if len(images) == self.share.size:
                yield self._batch(images, rest, position, dirt)
                images, rest = [], []
        if images and not self.share.drop_last:
            yield self._batch(images, rest, position, dirt)
        if start is None:
            # The few samples that a resumed epoch may have left say nothing about the data.
            self._check(bad, seen, dirt)
        yield {"dirt": dirt}

    def _batch(
        self, images: list[Tensor], rest: list[With], position: Position, dirt: Dirt
    ) -> dict[str, Any]:
        stacked = torch.stack(images)
        if self.device.type == "cuda":
            stacked = stacked.pin_memory()
        return {"images": stacked, **self.collate(rest), "position": position, "dirt": dirt.copy()}

    def _check(self, bad: int, seen: int, dirt: Dirt) -> None:
        most = self.config.max_bad_fraction
        if bad > most * seen:
            raise ValueError(
                f"{bad:,} of {counted(seen, 'sample')} of {self.config.train} cannot be used, more than "
                f"data.max_bad_fraction = {most:g}: {dirt.describe()}; look at them with "
                "`advflyp data check`, or raise the fraction"
            )

    def _decoded(
        self, epoch: int, start: Position | None
    ) -> Iterator[tuple[Raw, Position, tuple[Tensor, With] | str]]:
        def decode(sample: Raw) -> tuple[Tensor, With] | str:
            try:
                return self.decode(sample, epoch)
            except SkippedSample as reason:
                return str(reason)

        ahead = 2 * self.share.size
        samples = self.samples(epoch, start)
        work = threaded(
            samples, lambda item: decode(item[0]), self.config.workers, ahead, lambda item: self.held(item[0])
        )
        return ((sample, position, decoded) for (sample, position), decoded in work)


class DecodedPairs(Decoded[Sample, str]):
    """Batches of the pairs of a stream. Of several captions one is drawn each epoch."""

    def __init__(
        self,
        stream: Stream,
        config: DataConfig,
        reader: PictureReader,
        seed: int,
        device: torch.device,
        share: Share,
        captions: bool,
    ) -> None:
        noun = "pair" if captions else "image"
        super().__init__(config, reader, seed, len(stream), noun, device, share)
        self.stream = stream
        self.captions = captions

    def samples(self, epoch: int, start: Position | None) -> Iterator[tuple[Sample, Position]]:
        return self.stream.samples(epoch, start)

    def key(self, sample: Sample) -> str:
        return sample.key

    def held(self, sample: Sample) -> int:
        return sample.held

    def decode(self, sample: Sample, epoch: int) -> tuple[Tensor, str]:
        captions = sample.captions() if self.captions or sample.caption is not None else ("",)
        if isinstance(sample.image, Image):
            pixels = self.reader.from_image(finish_image(sample.image))
        else:
            pixels = self.reader.from_bytes(sample.image_bytes())
        if len(captions) == 1:
            return pixels, captions[0]
        return pixels, Random(f"{self.seed}/{epoch}/{sample.key}").choice(captions)

    def collate(self, some: list[str]) -> dict[str, Any]:
        return {"captions": some}


def open_pairs(
    config: DataConfig,
    reader: PictureReader,
    *,
    seed: int,
    device: torch.device,
    share: Share | None = None,
    captions: bool = True,
    pairs: Any = None,
) -> Pairs:
    """The source that `config.train` names; ValueError where it does not exist or holds no pairs.

    device:   where the batches are wanted
    share:    which rows of them this process makes; all by default
    captions: whether they are wanted; without, an image that has none is a sample as well
    pairs:    an object to read in place of what `config.train` names; see `open_objects`
    """
    share = share or Share(config.batch_size, drop_last=config.drop_last)
    columns = Columns(config.image_column, config.caption_column)

    def stream(name: Any, limit: int | None, size: int | None, share: Share) -> Stream:
        source = open_source(name, limit=limit, size=size, columns=columns, captions=captions)
        return open_stream(source, seed=seed, buffer=config.shuffle_buffer, share=share)

    found = stream(config.train if pairs is None else pairs, config.limit, config.size, share)
    if config.also is not None:
        # Sample by sample: a small second source has something for every process.
        also = stream(config.also, None, None, Share(share.ranks, share.rank, share.ranks))
        found = Mixed(found, also, config.also_share, share.ranks)
    return DecodedPairs(found, config, reader, seed, device, share, captions)
