"""Labelled sets for zero-shot classification, one table."""

import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advflyp.config import suggest
from advflyp.data.mini.build import proxy_concepts
from advflyp.data.mini.compose import EMBEDDED, full_corpus_folder, read_shards
from advflyp.data.mini.sets import ON_DEMAND
from advflyp.data.pairs import on_white

# The training pictures whose concept is known, as labelled data for methods that need labels.
PROXY = "proxy"


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Pictures with class indices.

    name:      "mini/food"
    split:     which part of the data this is
    classes:   K names, in the order of the indices
    templates: prompts, each with one "{}" for the class name
    pictures:  (PIL image, class index), in a fixed order whose first n are a random sample
    info:      domain, source, licence, in_proxy (whether the labelled proxy set covers the classes)
    """

    name: str
    split: str
    classes: list[str]
    templates: list[str]
    pictures: list[tuple[Image.Image, int]]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def prompt(self) -> str:
        """The templates as results record them."""
        return " | ".join(self.templates)

    def batches(
        self, preprocess: Callable[[Image.Image], Tensor], batch_size: int, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """((N, 3, H, W) pixels in [0, 1], (N,) labels), the first `limit` pictures in their order."""
        chosen = self.pictures[:limit]
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            images = torch.stack([preprocess(on_white(picture)) for picture, _ in part])
            yield images, torch.tensor([label for _, label in part])


def mini_sets(folder: Path = EMBEDDED) -> dict[str, dict[str, Any]]:
    """The descriptions of the labelled sets of a mini corpus, by name."""
    return json.loads((folder / "sets.json").read_text()) if (folder / "sets.json").is_file() else {}


def set_names(groups: list[str]) -> list[str]:
    """Sets and groups of sets by name ("mini" is the embedded test sets) as single sets.

    ValueError for a name that is neither.
    """
    embedded = mini_sets()
    tests = [f"mini/{name}" for name, info in embedded.items() if info["split"] == "test"]
    known = [f"mini/{name}" for name in (*embedded, *ON_DEMAND, PROXY)]
    result: list[str] = []
    for name in groups:
        if name == "mini":
            result += tests
        elif name in known:
            result.append(name)
        else:
            raise ValueError(f"there is no set '{name}'{suggest(name, ['mini', *known])}")
    return list(dict.fromkeys(result))


@cache
def load_set(name: str) -> LabelledSet:
    """The set called `name`, pictures decoded; ValueError where it does not exist or is not on this machine."""
    (name,) = set_names([name])
    short = name.removeprefix("mini/")
    if short == PROXY:
        return _proxy_set()
    folder = full_corpus_folder() if short in ON_DEMAND else EMBEDDED
    info = mini_sets(folder).get(short)
    path = folder / ("val.tar.gz" if short == "val" else f"sets/{short}.tar.gz")
    if info is None or not path.is_file():
        raise ValueError(f"{name} is not on this machine; fetch it with `advflyp data mini --sets {short}`")
    return LabelledSet(
        name=name,
        split=info["split"],
        classes=info["classes"],
        templates=info["templates"],
        pictures=_read_pictures(path),
        info={key: value for key, value in info.items() if key not in ("classes", "templates")},
    )


def _proxy_set() -> LabelledSet:
    """One class for each concept of which the embedded corpus has enough renderings, on white."""
    pixels, metas = read_shards(EMBEDDED)
    classes = sorted(proxy_concepts(meta["concept"] for meta in metas))
    index = {concept: number for number, concept in enumerate(classes)}
    chosen = [number for number, meta in enumerate(metas) if meta["concept"] in index]
    random.Random(0).shuffle(chosen)
    return LabelledSet(
        name=f"mini/{PROXY}",
        split="train",
        classes=classes,
        templates=["{}", "a picture of a {}", "an image of {}"],
        pictures=[
            (Image.fromarray(np.ascontiguousarray(pixels[i])), index[metas[i]["concept"]]) for i in chosen
        ],
        info={"domain": "emoji", "source": "the embedded corpus", "in_proxy": True},
    )


def _read_pictures(path: Path) -> list[tuple[Image.Image, int]]:
    """KEY.webp and KEY.cls members of a tar as decoded pictures with labels."""
    pictures: list[Image.Image] = []
    labels: list[int] = []
    with tarfile.open(path) as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            if member.name.endswith(".cls"):
                labels.append(int(data.read()))
            else:
                picture = Image.open(io.BytesIO(data.read()))
                picture.load()
                pictures.append(picture)
    assert len(pictures) == len(labels)
    return list(zip(pictures, labels, strict=True))
