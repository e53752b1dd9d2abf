"""The recipe table `data`."""

import math
from dataclasses import dataclass
from typing import Literal

from advflyp.config import at_least
from advflyp.data.sets.prompts import choose_templates


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data (recipe table `data`).

    Attributes:
        train: Pairs: "mini" (the corpus that comes with the package), "mini/proxy-captioned" (its labelled images
            with their captions), a corpus that its builder made (docs/mini.md), a folder of name.jpg + name.txt,
            webdataset shards (one file, a folder, a glob or "{000..099}.tar"; also s3://, gs://, https://, hf://),
            a CSV, TSV, JSONL or Parquet table, a Hugging Face dataset "hf:NAME"; labelled: "mini/proxy", any set of
            the table such as "imagenet@train", a folder of class folders, webdataset shards with .cls members.
        also: A second source of pairs, mixed into the first.
        also_share: Fraction of the samples drawn from `also`.
        batch_size: N of Eq. 1, images in a batch.
        drop_last: Drop the samples left over at the end of an epoch, too few for a batch; false makes a smaller last
            batch of them.
        limit: The first N pairs, or N class-balanced images.
        classes: Only so many classes of labelled data (or of "mini/proxy-captioned"), drawn by train.seed; none takes
            all. `limit` then takes these evenly.
        source: Only the images of these sources of a mini corpus: one, or several with " | " between them, such as
            "noto | noto-v1" (docs/mini.md).
        size: Number of samples in `train`, where neither a manifest nor local files say so.
        workers: Number of decoding threads.
        loader: "threads" makes batches in the training's process, "process" in one of its own, which leaves the
            interpreter to the training: for a GPU that waits for data. The same batches.
        resize: Shorter side before the centre crop; none uses the model's own preprocessing, which crops
            nothing off it.
        interpolation: "bilinear" or "bicubic" resizing; none uses the model's own.
        templates: Prompts of labelled data in place of the set's: one, several with " | " between them, or
            "openai", the 80 of OpenAI for ImageNet. Classes are the mean of all; of several, an image's caption is
            drawn anew each epoch.
        schedule: Sizes of the images over a run: [[160, 0.8], [224, 0.2]] makes the first four fifths of the
            updates at 160 pixels a side, for less arithmetic, and the others at 224; none is the model's own size.
            Position embeddings are interpolated; validation is at the model's own size.
        shuffle_buffer: Samples of shards that are shuffled together, kept in memory undecoded, up to 1 GB of them.
        max_bad_fraction: Training stops when a larger fraction of the samples is skipped.
        image_column, caption_column: Column names of a table, if not detected.
        text_cache: Folder for embeddings of captions by a frozen text encoder, kept from run to run; none keeps
            them in memory only.
    """

    train: str
    also: str | None = None
    also_share: float = 0.5
    batch_size: int = 256
    drop_last: bool = True
    limit: int | None = None
    classes: int | None = None
    source: str | None = None
    size: int | None = None
    workers: int = 4
    loader: Literal["threads", "process"] = "threads"
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
        at_least(1, self, "data.", "workers", "shuffle_buffer", "size", "resize")
        at_least(2, self, "data.", "classes")
        self.chosen_templates()
        if self.schedule is not None:
            self._check_schedule(self.schedule)
        if not 0 < self.also_share < 1:
            raise ValueError(f"data.also_share must be between 0 and 1, not {self.also_share}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must be from 0 to 1, not {self.max_bad_fraction}")

    def chosen_sources(self) -> set[str] | None:
        """`source` one by one."""
        return None if self.source is None else set(self.source.split(" | "))

    def chosen_templates(self) -> list[str] | None:
        """`templates` one by one; ValueError for one without exactly one {}."""
        if self.templates is None:
            return None
        return choose_templates(self.templates.split(" | "))

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
