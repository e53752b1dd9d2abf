"""The mini corpus as batches: RGBA images composed on varied backgrounds, captions drawn anew each epoch.

An image is decoded once in a run, when a batch first asks for it; a whole batch is composed and augmented at once, on
the training device.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.data.batch import Batch
from advflyp.data.config import DataConfig
from advflyp.data.mini import BUILD, EMBEDDED, full_corpus_folder
from advflyp.data.mini.captions import caption
from advflyp.data.mini.shards import read_shards
from advflyp.data.pairs.pairs import Reading
from advflyp.data.pairs.samples import Skipped
from advflyp.data.pairs.stream import Position
from advflyp.data.sets.images import balanced, drawn_classes, represented
from advflyp.data.sets.prompts import fill
from advflyp.devices import to_device
from advflyp.wording import counted

MANIFEST = "manifest.json"


def corpus_folder(name: str) -> Path | None:
    """The folder of the mini corpus `name` ("mini", "mini-full" or a built folder); None if it is not a mini corpus.

    Raises:
        ValueError: "mini-full" has not been built.
    """
    if name == "mini":
        return EMBEDDED
    if name == "mini-full":
        if not (full_corpus_folder() / MANIFEST).is_file():
            raise ValueError(
                f"there is no full mini corpus yet; build it in a checkout of advflyp with `{BUILD}`"
            )
        return full_corpus_folder()
    path = Path(name).expanduser()
    return path if (path / MANIFEST).is_file() and (path / "sets.json").is_file() else None


def labelled_concepts(classes: Sequence[str], config: DataConfig, seed: int) -> list[str]:
    """The classes of the embedded labelled images: those in `config.source`, then `config.classes` drawn from them."""
    if (sources := config.chosen_sources()) is not None:
        there = {meta["concept"] for meta in read_shards(EMBEDDED)[1] if meta["source"] in sources}
        classes = [name for name in classes if name in there]
    return drawn_classes(classes, config.classes, seed)


class MiniPairs:
    """Batches from a mini corpus; see `advflyp.data.pairs.pairs.Pairs`.

    An epoch draws as many pairs as the corpus has, with replacement, in proportion to their weights.

    Args:
        folder: The corpus.
        how: Only `batch_size`, `limit` and `source` of its `config` are used. Images are composed on its `device`.
        concepts: Use only images of these concepts; `config.limit` then selects class-balanced images.

    Raises:
        ValueError: The corpus does not fill one batch, or lacks a source of `config.source`.
    """

    def __init__(self, folder: Path, how: Reading, concepts: Sequence[str] | None = None) -> None:
        config, seed = how.config, how.seed
        images, metas = read_shards(folder)
        keep = list(range(len(metas)))
        if (sources := config.chosen_sources()) is not None:
            if unknown := sources - (known := {meta["source"] for meta in metas}):
                raise ValueError(
                    f"data.source: the corpus has no source '{min(unknown)}'; it has {', '.join(sorted(known))}"
                )
            keep = [row for row in keep if metas[row]["source"] in sources]
        if concepts is not None:
            label = {concept: number for number, concept in enumerate(concepts)}
            keep = [row for row in keep if metas[row]["concept"] in label]
            places = balanced([label[metas[row]["concept"]] for row in keep], config.limit, seed)
            keep = [keep[place] for place in places]
        elif config.limit is not None and config.limit < len(keep):
            # The shards are grouped by source, so the subset is random: the first N would be of one source.
            keep = random.Random(f"{seed}/limit").sample(keep, config.limit)
        if len(keep) < config.batch_size:
            raise ValueError(
                f"the corpus holds {counted(len(keep), 'pair')}, not enough for one batch of {config.batch_size}; "
                "lower data.batch_size"
            )
        self.images = images.subset(keep)
        self.metas = metas = [metas[row] for row in keep]
        self.mono = torch.tensor([meta["mono"] for meta in metas])
        self.mirror = torch.tensor([meta["mirror"] for meta in metas])
        self.weights = torch.tensor([float(meta["weight"]) for meta in metas])
        self.batch_size, self.seed, self.device, self.share = config.batch_size, seed, how.device, how.share
        self.skipped, self.contents = Skipped(), counted(len(metas), "image")

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
            # On the CPU whatever the device: the same seed then means the same images everywhere.
            generator = torch.Generator().manual_seed(rng.getrandbits(63))
            rgba = to_device(torch.from_numpy(self.images[index.numpy()]), self.device).permute(0, 3, 1, 2)
            images = compose(rgba, self.mono[index], generator)
            images = augment(images, self.mirror[index], generator)
            # Every rank composes the whole batch, so that all ranks see what a single one would; composing is cheap.
            mine = slice(*self.share.of_last(len(index)))
            about = {key: values[mine] for key, values in self.about(index, rng).items()}
            yield Batch(images=images[mine], **about, position={"batch": batch + 1})

    def about(self, index: Tensor, rng: random.Random) -> dict[str, Any]:
        """The other fields of a batch of the images at `index`."""
        return {"captions": [caption(self.metas[i], rng) for i in index.tolist()]}


class MiniLabelled(MiniPairs):
    """The images of a mini corpus whose concept is a class, composed and augmented as the pairs are.

    Args:
        folder, how: As in `MiniPairs`.
        classes: Concepts, in the order of the labels.
        templates: Prompts; the first makes the captions. If the recipe names several, each caption draws one.
    """

    def __init__(self, folder: Path, how: Reading, classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__(folder, how, classes)
        chosen = how.config.chosen_templates()
        self.classes, self.templates = list(classes), chosen or list(templates)
        self.caption_templates = chosen or self.templates[:1]
        number = {concept: label for label, concept in enumerate(self.classes)}
        self.labels = torch.tensor([number[meta["concept"]] for meta in self.metas])
        self.represented = represented(self.classes, self.labels.tolist())

    def about(self, index: Tensor, rng: random.Random) -> dict[str, Any]:
        labels = self.labels[index]
        captions = [fill(rng.choice(self.caption_templates), self.classes[i]) for i in labels.tolist()]
        return {"labels": labels, "captions": captions}


def compose(images: Tensor, mono: Tensor, generator: torch.Generator) -> Tensor:
    """RGBA images on random backgrounds.

    Args:
        images: (N, 4, H, W) uint8, on any device.
        mono: (N,) bool, on the CPU: shapes without a colour of their own; they get one that contrasts with the
            background.
        generator: The source of the colours, on the CPU.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the device of `images`.
    """
    colours = (*_backdrops(len(images), images.shape[2], generator), mono.view(-1, 1, 1, 1))
    background, ink, mono = (to_device(part, images.device) for part in colours)
    alpha = images[:, 3:].float() / 255
    colour = torch.where(mono, ink, images[:, :3].float() / 255)
    return colour * alpha + background * (1 - alpha)


def _backdrops(n: int, height: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, 3, height, 1) background colours by row, and (n, 3, 1, 1) ink colours that contrast with them."""

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
        mirror: (N,) bool, on the CPU; False for flags and letters, whose mirror image means something else.
        generator: Source of all random numbers, on the CPU.

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
