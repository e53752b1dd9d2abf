"""Image–text pairs: webdataset shards, or a folder of name.jpg + name.txt, as shuffled batches.

The order of an epoch depends on (seed, epoch) alone, whatever the number of decoding threads, and a batch says
how many raw samples were consumed up to its end: that number is all a resumed run needs.
"""

import random
import tarfile
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import braceexpand
import torch
import webdataset
from PIL import Image
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from advflyp.data.pictures import UNREADABLE

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SHUFFLE_BUFFER = 2000

Raw = TypeVar("Raw")  # a sample before decoding
With = TypeVar("With")  # what its picture comes with: a caption, a label


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The training data (recipe table `data`).

    train:      pairs: "mini" (the corpus that comes with the package), "mini/proxy-captioned" (its labelled pictures
                with their captions), a folder that `advflyp data mini --build` made, a folder of name.jpg + name.txt,
                or webdataset shards: one file, a glob or "{000..099}.tar";
                labelled: "mini/proxy", any set of the table such as "imagenet@train", a folder of class folders,
                webdataset shards with .cls members
    batch_size: N of Eq. 1, pictures in a batch
    limit:      use only so many: the first pairs, or pictures with the classes evenly represented
    workers:    decoding threads
    """

    train: str
    batch_size: int = 256
    limit: int | None = None
    workers: int = 4

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
        if self.workers < 1:
            raise ValueError(f"data.workers must be at least 1, not {self.workers}")


class Pairs(Protocol):
    """A source of training batches."""

    skipped: Counter[str]  # unusable samples so far, by reason

    def __len__(self) -> int:
        """Full batches an epoch has if no sample is unusable."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Batches {"images": (N, 3, H, W) in [0, 1], "captions": [str], "position": int} of one epoch.

        start: the "position" of the last batch already seen in this epoch
        """
        ...


@dataclass(frozen=True)
class Sample:
    """One pair before decoding; a missing half is None."""

    key: str
    image: bytes | Path | None
    caption: bytes | Path | None


class Source(Protocol):
    """Undecoded pairs in an order that depends on the seed of the epoch alone."""

    def __len__(self) -> int: ...

    def samples(self, rng: random.Random) -> Iterator[Sample]: ...


class FolderSource:
    """Every image below `folder` that has a text file of the same name beside it."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        images = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)
        self.pairs = [image for image in images if image.with_suffix(".txt").is_file()][:limit]
        if not self.pairs:
            found = f"{len(images)} images but no caption" if images else "no image"
            raise ValueError(
                f"{folder} holds {found}: put a name.txt beside every name.jpg, or name *.tar shards"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def samples(self, rng: random.Random) -> Iterator[Sample]:
        order = self.pairs.copy()
        rng.shuffle(order)
        for image in order:
            yield Sample(image.stem, image, image.with_suffix(".txt"))


class ShardSource:
    """Webdataset tars (.tar, .tar.gz): members KEY.jpg and KEY.txt follow one another."""

    def __init__(self, shards: list[Path], limit: int | None) -> None:
        self.counts: dict[Path, int] = {}
        left = limit
        for shard in shards:
            count = _count_keys(shard)
            self.counts[shard] = count if left is None else min(count, left)
            left = None if left is None else left - self.counts[shard]
            if left == 0:
                break
        if not len(self):
            raise ValueError(f"{shards[0]}{' and the others' if len(shards) > 1 else ''} hold no pairs")

    def __len__(self) -> int:
        return sum(self.counts.values())

    def samples(self, rng: random.Random) -> Iterator[Sample]:
        shards = list(self.counts)
        rng.shuffle(shards)
        in_order = (sample for shard in shards for sample in self._read(shard))
        return iter(webdataset.filters.shuffle(SHUFFLE_BUFFER, initial=SHUFFLE_BUFFER, rng=rng)(in_order))

    def _read(self, shard: Path) -> Iterator[Sample]:
        with open(shard, "rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": str(shard), "stream": stream}])
            groups = webdataset.tariterators.group_by_keys(files)
            for _, group in zip(range(self.counts[shard]), groups, strict=False):
                image = next((group[suffix] for suffix in IMAGE_SUFFIXES if suffix in group), None)
                yield Sample(f"{shard.name}:{group['__key__']}", image, group.get("txt"))


def _count_keys(shard: Path) -> int:
    try:
        with tarfile.open(shard) as tar:
            return len({base_plus_ext(member.name)[0] for member in tar if member.isfile()})
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{shard} is not a readable tar file: {error}") from None


class Decoded(ABC, Generic[Raw, With]):
    """Batches of pictures decoded in threads; samples that cannot be used are counted in `skipped`."""

    def __init__(
        self,
        config: DataConfig,
        preprocess: Callable[[Image.Image], Tensor],
        seed: int,
        count: int,
        noun: str,
    ) -> None:
        self.config = config
        self.preprocess = preprocess
        self.seed = seed
        self.count = count
        self.skipped: Counter[str] = Counter()
        if count < config.batch_size:
            raise ValueError(
                f"{config.train} holds {count} {noun}, which do not fill one batch of {config.batch_size}; "
                "lower data.batch_size"
            )

    @abstractmethod
    def samples(self, rng: random.Random) -> Iterator[Raw]:
        """Undecoded, in an order that depends on `rng` alone."""

    @abstractmethod
    def decode(self, sample: Raw) -> tuple[Tensor, With] | str:
        """The picture and what it comes with, or why it cannot be used; called from several threads at once."""

    @abstractmethod
    def collate(self, some: list[With]) -> dict[str, Any]:
        """The rest of the batch, "captions" among it."""

    def __len__(self) -> int:
        return self.count // self.config.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict[str, Any]]:
        samples = self.samples(random.Random(f"{self.seed}/{epoch}"))
        for _ in zip(range(start), samples, strict=False):
            pass
        images: list[Tensor] = []
        rest: list[With] = []
        for position, decoded in enumerate(self._decoded(samples), start + 1):
            if isinstance(decoded, str):
                self.skipped[decoded] += 1
                continue
            images.append(decoded[0])
            rest.append(decoded[1])
            if len(images) == self.config.batch_size:
                yield {"images": torch.stack(images), **self.collate(rest), "position": position}
                images, rest = [], []

    def _decoded(self, samples: Iterator[Raw]) -> Iterator[tuple[Tensor, With] | str]:
        # Threads, not processes: Pillow decodes and resizes outside the interpreter lock, and the order stays ours.
        ahead: deque[Future[tuple[Tensor, With] | str]] = deque()
        with ThreadPoolExecutor(self.config.workers) as pool:
            for sample in samples:
                ahead.append(pool.submit(self.decode, sample))
                if len(ahead) > 2 * self.config.batch_size:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


class DecodedPairs(Decoded[Sample, str]):
    """Batches of the pairs of a `Source`."""

    def __init__(
        self, source: Source, config: DataConfig, preprocess: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        super().__init__(config, preprocess, seed, len(source), "pairs")
        self.source = source

    def samples(self, rng: random.Random) -> Iterator[Sample]:
        return self.source.samples(rng)

    def decode(self, sample: Sample) -> tuple[Tensor, str] | str:
        if sample.image is None:
            return "no image"
        if sample.caption is None:
            return "no caption"
        raw = sample.caption.read_bytes() if isinstance(sample.caption, Path) else sample.caption
        caption = " ".join(raw.decode("utf-8", errors="replace").split())
        if not caption:
            return "empty caption"
        try:
            stream = BytesIO(sample.image) if isinstance(sample.image, bytes) else sample.image
            with Image.open(stream) as image:
                return self.preprocess(on_white(image)), caption
        except UNREADABLE:
            return "unreadable image"

    def collate(self, some: list[str]) -> dict[str, Any]:
        return {"captions": some}


def on_white(image: Image.Image) -> Image.Image:
    """RGB, transparent parts white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def open_pairs(
    config: DataConfig, preprocess: Callable[[Image.Image], Tensor], *, seed: int, device: torch.device
) -> Pairs:
    """The source that `config.train` names; ValueError where it does not exist or holds no pairs.

    preprocess: a picture → (3, H, W) in [0, 1], the model's
    device:     where a mini corpus keeps its pictures
    """
    from advflyp.data.mini.compose import MiniPairs, corpus_folder

    corpus = corpus_folder(config.train)
    if corpus is not None:
        return MiniPairs(corpus, config, seed=seed, device=device)
    path = Path(config.train).expanduser()
    if path.is_dir() and not list(path.glob("*.tar*")):
        return DecodedPairs(FolderSource(path, config.limit), config, preprocess, seed)
    return DecodedPairs(ShardSource(find_shards(config.train), config.limit), config, preprocess, seed)


def find_shards(pattern: str) -> list[Path]:
    """Existing tar files for a file, a folder, a glob or a brace pattern, sorted."""
    found: list[Path] = []
    for one in braceexpand.braceexpand(str(Path(pattern).expanduser())):
        path = Path(one)
        if path.is_dir():
            matches = sorted(path.glob("*.tar*"))
        elif path.is_file():
            matches = [path]
        else:
            anchor = Path(path.anchor) if path.is_absolute() else Path()
            matches = sorted(anchor.glob(str(path.relative_to(path.anchor)))) if path.name else []
        if not matches:
            raise ValueError(
                f"there are no training pairs at {one}; data.train is a folder of name.jpg + name.txt or "
                'webdataset shards such as "shards/{000..099}.tar"'
            )
        found += matches
    return list(dict.fromkeys(found))
