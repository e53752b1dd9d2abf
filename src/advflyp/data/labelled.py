"""Labelled sets for zero-shot classification: one table, pictures decoded when they are needed."""

import json
import random
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
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
from advflyp.data.pictures import UNREADABLE, Memory, Pictures, decode

# The training pictures whose concept is known, as labelled data for methods that need labels.
PROXY = "proxy"
# A set with more unreadable pictures than this is not the set its name promises.
TOLERATED = 0.01

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSet:
    """Pictures with class indices.

    name:       "mini/food", "cifar10", "eurosat@test", a path
    split:      which part of the data this is
    classes:    K names, in the order of the indices
    templates:  prompts, each with one "{}" for the class name
    pictures:   (PIL image, class index); a list, or `Pictures`, which decodes them when they are asked for
    info:       domain, source, licence, in_proxy (whether the labelled proxy set covers the classes)
    unreadable: pictures that `batches` left out: {key: reason}
    ValueError where there is nothing to tell apart: no picture, or fewer than two classes.
    """

    name: str
    split: str
    classes: list[str]
    templates: list[str]
    pictures: Sequence[tuple[Image.Image, int]]
    info: dict[str, Any]
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.name} has {len(self.classes)} class{'' if len(self.classes) == 1 else 'es'}; "
                "zero-shot classification needs at least two"
            )
        if not len(self.pictures):
            raise ValueError(f"{self.name} holds no pictures; point to a folder or to shards that do")
        labels = self.labels
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"{self.name} has labels from {int(labels.min())} to {int(labels.max())} and "
                f"{len(self.classes)} class names; give one name for each label from 0 on"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def prompt(self) -> str:
        """The templates as results record them."""
        return " | ".join(self.templates)

    @property
    def labels(self) -> Tensor:
        """(n,) int64, known without decoding."""
        if isinstance(self.pictures, Pictures):
            return self.pictures.labels
        return torch.tensor([label for _, label in self.pictures], dtype=torch.int64)

    def key(self, index: int) -> str:
        """What picture `index` is called: a path, or the name of a tar member."""
        return self.pictures.key(index) if isinstance(self.pictures, Pictures) else f"{index:05d}"

    def subset(self, limit: int | None, seed: int) -> list[int]:
        """Positions of `limit` pictures, ascending, classes as evenly represented as the set allows; None: all.

        Every class gives one picture before any gives a second, and so on: counts differ by at most one among
        classes that have pictures left. Pictures and the order of the classes are drawn by `seed`; a smaller
        limit takes a part of what a larger one takes. ValueError for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        if limit is None or limit >= len(self):
            return list(range(len(self)))
        members: dict[int, list[int]] = {}
        for index, label in enumerate(self.labels.tolist()):
            members.setdefault(label, []).append(index)
        classes = sorted(members)
        random.Random(f"{seed}/classes").shuffle(classes)
        for label in classes:
            random.Random(f"{seed}/{label}").shuffle(members[label])
        rounds = range(max(map(len, members.values())))
        turns = (members[label][turn] for turn in rounds for label in classes if turn < len(members[label]))
        return sorted(index for index, _ in zip(turns, range(limit), strict=False))

    def batches(
        self,
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int,
        index: Sequence[int] | None = None,
        workers: int = 4,
    ) -> Iterator[Batch]:
        """Positions (N,) int64, images (N, 3, H, W) in [0, 1], labels (N,), in the order of `index` (None: all).

        preprocess: an RGB picture → (3, H, W) in [0, 1]; runs in `workers` threads, two batches ahead
        A picture that cannot be decoded is left out and entered in `unreadable`; ValueError when these are more
        than 1 % of those wanted.
        """
        wanted = range(len(self)) if index is None else index
        bad: list[str] = []
        part: list[tuple[int, Tensor]] = []
        for place, image in self._decoded(wanted, preprocess, workers, 2 * batch_size):
            if isinstance(image, str):
                self.unreadable[self.key(place)] = image
                bad.append(f"{self.key(place)} ({image})")
                if len(bad) > TOLERATED * len(wanted):
                    raise ValueError(
                        f"{self.name}: more than {TOLERATED:.0%} of {len(wanted)} pictures cannot be read; "
                        f"fetch the set again: {', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}"
                    )
                continue
            part.append((place, image))
            if len(part) == batch_size:
                yield self._batch(part)
                part = []
        if part:
            yield self._batch(part)

    def _batch(self, part: list[tuple[int, Tensor]]) -> Batch:
        places = torch.tensor([place for place, _ in part])
        return places, torch.stack([image for _, image in part]), self.labels[places]

    def _decoded(
        self, wanted: Sequence[int], preprocess: Callable[[Image.Image], Tensor], workers: int, ahead: int
    ) -> Iterator[tuple[int, Tensor | str]]:
        def load(place: int) -> Tensor | str:
            try:
                picture = on_white(self.pictures[place][0])
            except UNREADABLE as error:
                return f"{error}" or type(error).__name__
            return preprocess(picture)

        # Threads, not processes: Pillow decodes and resizes outside the interpreter lock.
        waiting: deque[tuple[int, Future[Tensor | str]]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            for place in wanted:
                waiting.append((place, pool.submit(load, place)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            # A consumer that stops early does not wait for pictures nobody wants.
            pool.shutdown(wait=False, cancel_futures=True)


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
        pictures=Memory(
            [Image.fromarray(np.ascontiguousarray(pixels[i])) for i in chosen],
            [f"{i:05d}" for i in chosen],
            [index[metas[i]["concept"]] for i in chosen],
        ),
        info={"domain": "emoji", "source": "the embedded corpus", "in_proxy": True},
    )


def _read_pictures(path: Path) -> Memory:
    """KEY.webp and KEY.cls members of a tar, decoded."""
    pictures: list[Image.Image] = []
    keys: list[str] = []
    labels: list[int] = []
    with tarfile.open(path) as tar:
        for member in tar:
            data = tar.extractfile(member)
            assert data is not None
            if member.name.endswith(".cls"):
                labels.append(int(data.read()))
            else:
                pictures.append(decode(data.read()))
                keys.append(member.name)
    return Memory(pictures, keys, labels)
