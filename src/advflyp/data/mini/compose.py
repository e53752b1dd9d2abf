"""The mini corpus in memory: RGBA images composed on varied backgrounds, captions drawn anew each epoch.

An image is decoded once in a run, when a batch first asks for it; a whole batch is composed and augmented at once, on
the training device.
"""

import io
import json
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from advflyp.data.batch import Batch
from advflyp.data.mini import EMBEDDED, full_corpus_folder
from advflyp.data.mini.captions import caption
from advflyp.data.mini.shards import read_tar
from advflyp.data.pairs.dirt import Dirt
from advflyp.data.pairs.pairs import DataConfig
from advflyp.data.pairs.stream import Position, Share
from advflyp.data.sets.images import balanced
from advflyp.data.sets.prompts import fill
from advflyp.devices import to_device
from advflyp.wording import counted

MANIFEST = "manifest.json"


def corpus_folder(name: str) -> Path | None:
    """The mini corpus that `name` means ("mini", "mini-full" or a built folder), None if it is no mini corpus.

    ValueError where "mini-full" has not been built.
    """
    if name == "mini":
        return EMBEDDED
    if name == "mini-full":
        if not (full_corpus_folder() / MANIFEST).is_file():
            raise ValueError('there is no full mini corpus yet; make it with "advflyp data mini --build"')
        return full_corpus_folder()
    path = Path(name).expanduser()
    return path if (path / MANIFEST).is_file() and (path / "sets.json").is_file() else None


def read_shards(folder: Path) -> tuple["LazyImages", list[dict[str, Any]]]:
    """The images of a corpus, and a dict (name, tags, group, style, …) for each."""
    files: list[bytes] = []
    metas: list[bytes] = []
    for shard in sorted(folder.glob("train-*.tar.gz")):
        for name, data in read_tar(shard):
            if name.endswith(".webp"):
                files.append(data)
            elif name.endswith(".json"):
                metas.append(data)
    if not files:
        raise ValueError(
            f"{folder} holds no train-*.tar.gz shards; build it with `advflyp data mini --build`"
        )
    assert len(files) == len(metas)
    return LazyImages(files), json.loads(b"[" + b",".join(metas) + b"]")


class LazyImages:
    """Encoded RGBA images of one size, each decoded when it is first asked for: a short run needs few of them.

    Args:
        files: N encoded images.
    """

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files
        width, height = Image.open(io.BytesIO(files[0])).size
        # Memory that is not written to is not taken.
        self.pixels = np.empty((len(files), height, width, 4), np.uint8)
        self.decoded = np.zeros(len(files), bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """(n, H, W, 4) uint8 with straight alpha, for n indices or a slice."""
        wanted = np.arange(len(self))[rows]
        missing = np.unique(wanted[~self.decoded[wanted]]).tolist()
        # Pillow lets other threads run while it decodes.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for row, image in zip(missing, threads.map(self._decode, missing), strict=True):
                self.pixels[row] = image
        self.decoded[missing] = True
        return self.pixels[wanted]

    def subset(self, rows: Sequence[int]) -> "LazyImages":
        return LazyImages([self.files[row] for row in rows])

    def _decode(self, row: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.files[row])).convert("RGBA"))


class MiniPairs:
    """Batches from a mini corpus; see `advflyp.data.pairs.pairs.Pairs`.

    share:    which rows of a batch this process is given
    concepts: only the pictures of these; `config.limit` then takes them evenly
    An epoch draws as many pairs as the corpus has, with replacement, in proportion to their weights.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        seed: int,
        device: torch.device,
        share: Share | None = None,
        concepts: Sequence[str] | None = None,
    ) -> None:
        label = None if concepts is None else {concept: number for number, concept in enumerate(concepts)}
        images, metas = read_shards(folder)
        if label is not None:
            keep = [row for row, meta in enumerate(metas) if meta["concept"] in label]
            images, metas = images.subset(keep), [metas[row] for row in keep]
        if config.limit is not None and config.limit < len(metas):
            if label is None:
                # The shards are grouped by source: a random subset, not the first source.
                keep = random.Random(f"{seed}/limit").sample(range(len(metas)), config.limit)
            else:
                keep = balanced([label[meta["concept"]] for meta in metas], config.limit, seed)
            images, metas = images.subset(keep), [metas[row] for row in keep]
        self.images = images
        self.metas = metas
        self.mono = torch.tensor([meta["mono"] for meta in metas])
        self.mirror = torch.tensor([meta["mirror"] for meta in metas])
        self.weights = torch.tensor([float(meta["weight"]) for meta in metas])
        self.batch_size = config.batch_size
        self.share = share or Share(config.batch_size, drop_last=config.drop_last)
        self.seed = seed
        self.device = device
        self.dirt = Dirt()
        if len(metas) < config.batch_size:
            raise ValueError(
                f"the corpus holds {counted(len(metas), 'pair')}, not enough for one batch of {config.batch_size}; "
                "lower data.batch_size"
            )

    def __len__(self) -> int:
        return self.share.batches(len(self.metas))

    def epoch(self, epoch: int, start: Position | None = None) -> Iterator[Batch]:
        rng = random.Random(f"{self.seed}/{epoch}")
        draw = torch.Generator().manual_seed(rng.getrandbits(63))
        pairs = min(len(self) * self.batch_size, len(self.metas))
        order = torch.multinomial(self.weights, pairs, replacement=True, generator=draw)
        for batch in range(start["batch"] if start else 0, len(self)):
            rng = random.Random(f"{self.seed}/{epoch}/{batch}")
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            # On the CPU whatever the device: the same seed then means the same pictures everywhere.
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            rgba = to_device(torch.from_numpy(self.images[index.numpy()]), self.device).permute(0, 3, 1, 2)
            images = compose(rgba, self.mono[index], generator)
            images = augment(images, self.mirror[index], generator)
            # Made as a whole by every process, so that several see the pictures of one: composing costs little.
            mine = slice(*self.share.of_last(len(index)))
            about = {key: values[mine] for key, values in self.about(index, rng).items()}
            yield Batch(images=images[mine], **about, position={"batch": batch + 1})

    def about(self, index: Tensor, rng: random.Random) -> dict[str, Any]:
        """What the pictures at `index` come with."""
        return {"captions": [caption(self.metas[i], rng) for i in index.tolist()]}


class MiniClasses(MiniPairs):
    """The pictures of a mini corpus whose concept is a class, composed and augmented as the pairs are.

    classes:   concepts, in the order of the labels
    templates: prompts; the first makes the captions
    draw:      draw each caption from all templates instead
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        seed: int,
        device: torch.device,
        share: Share | None = None,
        classes: Sequence[str],
        templates: Sequence[str],
        draw: bool = False,
    ) -> None:
        super().__init__(folder, config, seed=seed, device=device, share=share, concepts=classes)
        self.classes = list(classes)
        self.templates, self.draws_captions = list(templates), draw
        number = {concept: label for label, concept in enumerate(classes)}
        self.labels = torch.tensor([number[meta["concept"]] for meta in self.metas])

    def about(self, index: Tensor, rng: random.Random) -> dict[str, Any]:
        labels = self.labels[index]
        templates = self.templates if self.draws_captions else self.templates[:1]
        captions = [fill(rng.choice(templates), self.classes[i]) for i in labels.tolist()]
        return {"labels": labels, "captions": captions}


def compose(pictures: Tensor, mono: Tensor, generator: torch.Generator) -> Tensor:
    """RGBA pictures on random backgrounds.

    Args:
        pictures: (N, 4, H, W) uint8, on any device.
        mono: (N,) bool, on the CPU: shapes without a colour of their own; they get one that contrasts with the
            background.
        generator: The source of the colours, on the CPU.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the device of `pictures`.
    """
    colours = (*_backdrops(len(pictures), pictures.shape[2], generator), mono.view(-1, 1, 1, 1))
    background, ink, mono = (to_device(part, pictures.device) for part in colours)
    alpha = pictures[:, 3:].float() / 255
    colour = torch.where(mono, ink, pictures[:, :3].float() / 255)
    return colour * alpha + background * (1 - alpha)


def _backdrops(n: int, height: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 3, height, 1) colours of each row of a background, and (n, 3, 1, 1) of an ink that stands out from it."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    kind = uniform(n, 1, 1, 1)
    white_or_pale = torch.where(uniform(n, 1, 1, 1) < 0.45, 1.0, 0.72 + 0.28 * uniform(n, 3, 1, 1))
    black_or_dark = torch.where(uniform(n, 1, 1, 1) < 0.4, 0.0, 0.3 * uniform(n, 3, 1, 1))
    background = torch.where(kind < 0.2, black_or_dark, white_or_pale)
    background = torch.where(kind > 0.88, uniform(n, 3, 1, 1), background)
    slope = torch.randn(n, 3, 1, 1, generator=generator) * (uniform(n, 1, 1, 1) < 0.25)
    ramp = torch.linspace(-0.25, 0.25, height).view(1, 1, height, 1)
    background = (background + ramp * slope).clamp(0, 1)

    dark = torch.where(uniform(n, 1, 1, 1) < 0.4, 0.0, 0.6 * uniform(n, 3, 1, 1))
    return background, torch.where(background.mean((1, 2, 3), keepdim=True) > 0.5, dark, 1 - dark)


def augment(images: Tensor, mirror: Tensor, generator: torch.Generator) -> Tensor:
    """Random scale, aspect, rotation, shift, mirroring (where allowed), brightness and grey-scale.

    Args:
        images: (N, 3, H, W) in [0, 1], on any device.
        mirror: (N,) bool, on the CPU; False for flags and letters, which mean something else mirrored.
        generator: The source of all of it, on the CPU.

    Returns:
        (N, 3, H, W) in [0, 1], on the device of `images`.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    scale, aspect = uniform(0.8, 1.15), uniform(0.88, 1.14)
    angle = torch.randn(n, generator=generator) * 0.12
    flip = torch.where((uniform(0, 1) < 0.3) & mirror, -1.0, 1.0)
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = scale * aspect * torch.cos(angle) * flip
    affine[:, 0, 1] = -scale * torch.sin(angle)
    affine[:, 1, 0] = scale * torch.sin(angle) * flip
    affine[:, 1, 1] = scale / aspect * torch.cos(angle)
    affine[:, :, 2] = uniform(-0.15, 0.15, 2)
    gain, offset = uniform(0.8, 1.15, 1, 1, 1), uniform(-0.08, 0.08, 1, 1, 1)
    drawn = (affine, gain, offset, uniform(0, 1, 1, 1, 1) < 0.1)
    affine, gain, offset, is_grey = (to_device(part, images.device) for part in drawn)

    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * gain + offset
    grey = images.mean(1, keepdim=True).expand_as(images)
    return torch.where(is_grey, grey, images).clamp(0, 1)
