"""Where the pictures of a labelled set are: labels at once, each picture decoded when it is asked for."""

import random
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advflyp.data.filenames import IMAGE_SUFFIXES, LABEL_SUFFIX, is_extra
from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.tars import index_tar
from advflyp.limits import (
    MAX_LABEL_BYTES,
    open_regular,
    read_image_file,
    read_image_stream,
    reading,
)

# A larger number is no label, and fits no tensor.
MAX_LABEL = 1 << 31


class Pictures(Sequence[tuple[Image.Image, int]]):
    """A sequence of (picture, class index) whose labels and keys are known without decoding.

    labels:  (n,) int64
    upright: whether the EXIF orientation of files is applied
    `picture` is called from several threads at once and raises `SkippedSample` or OSError where there is no picture.
    """

    labels: Tensor
    upright: bool = True

    def __init__(self, labels: Sequence[int] | np.ndarray | Tensor) -> None:
        self.labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.picture(index), int(self.labels[index])

    def ignore_orientation(self) -> None:
        """From now on decode files as they are stored, whatever their EXIF orientation."""
        self.upright = False

    def decode(self, data: bytes, border: int = 0) -> Image.Image:
        """An encoded picture, of whatever size, without `border` pixels on each side."""
        return read_image(data, upright=self.upright, border=border, min_side=1)

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """Decoded."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the picture is called: unique in the set, the same on every machine."""


class Files(Pictures):
    """Picture files, `paths` below `folder` with "/"; these are the keys.

    border: pixels to cut off on each side
    """

    def __init__(self, folder: Path, paths: Sequence[str], labels: Sequence[int], border: int = 0) -> None:
        super().__init__(labels)
        assert len(paths) == len(labels)
        self.folder, self.paths, self.border = folder, paths, border

    def picture(self, index: int) -> Image.Image:
        return self.decode(self.encoded(index), self.border)

    def encoded(self, index: int) -> bytes:
        """The file of a picture; OSError or `SkippedSample` where it cannot be read."""
        return read_image_file(self.folder / self.paths[index])

    def key(self, index: int) -> str:
        return self.paths[index]


class Arrays(Pictures):
    """(n, H, W, 3) uint8 pixels in memory, for sets that come as one array."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        super().__init__(labels)
        assert len(pixels) == len(self.labels)
        self.pixels = pixels

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))

    def key(self, index: int) -> str:
        return f"{index:05d}"


class Encoded(Pictures):
    """Picture files in memory, for small sets."""

    def __init__(self, files: Sequence[bytes], keys: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(labels)
        assert len(files) == len(keys) == len(labels)
        self.files, self.keys = files, keys

    def picture(self, index: int) -> Image.Image:
        return self.decode(self.files[index])

    def key(self, index: int) -> str:
        return self.keys[index]


class Shards(Pictures):
    """Samples KEY.jpg (or another image) + KEY.cls in webdataset tars, in any order; keys are SHARD/MEMBER.

    One pass over the headers at opening says where each picture is, so that any one is a seek and a read.
    ValueError for a shard that is no plain tar, a picture without a label and a label without a picture.
    """

    def __init__(self, shards: Sequence[Path], border: int = 0) -> None:
        self.shards, self.border = shards, border
        self.members: list[tuple[int, str, int, int]] = []  # shard, name, offset, size
        labels: list[int] = []
        for number, shard in enumerate(shards):
            found = _members(shard)
            labels += [label for label, _, _, _ in found]
            self.members += [(number, name, offset, size) for _, name, offset, size in found]
        super().__init__(labels)

    def picture(self, index: int) -> Image.Image:
        return self.decode(self.encoded(index), self.border)

    def encoded(self, index: int) -> bytes:
        """The file of a picture; OSError or `SkippedSample` where it cannot be read."""
        shard, _, offset, size = self.members[index]
        with open_regular(self.shards[shard]) as file, reading(self.shards[shard]):
            file.seek(offset)
            return read_image_stream(file, size)

    def key(self, index: int) -> str:
        shard, name, _, _ = self.members[index]
        return f"{self.shards[shard].name}/{name}"


def _members(shard: Path) -> list[tuple[int, str, int, int]]:
    """(label, name, offset, size) of each picture, in the order of the tar."""
    index = index_tar(shard, plain=True)
    found: list[tuple[int, str, int, int]] = []
    with open(shard, "rb") as file:
        for key, one in index.items():
            label = one.parts.get(LABEL_SUFFIX)
            picture = next((one.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in one.parts), None)
            if (label is None and picture is None) or (
                (label is None or picture is None) and is_extra(key, index)
            ):
                continue
            if label is None:
                raise ValueError(f"{shard}: {key} has a picture but no {key}.cls; labels are needed for all")
            if picture is None:
                raise ValueError(f"{shard}: {key} has a label but no picture; the shard seems damaged")
            file.seek(label[1])
            found.append((_whole_number(shard, file.read(min(label[2], MAX_LABEL_BYTES))), *picture))
    return found


def _whole_number(shard: Path, data: bytes) -> int:
    try:
        label = int(data)
    except ValueError as error:
        raise ValueError(f"{shard}: a .cls member is not a whole number ({error})") from None
    if abs(label) > MAX_LABEL:
        raise ValueError(f"{shard}: a .cls member is {label}; labels are numbers from 0 on")
    return label


class Part(Pictures):
    """The pictures at `places` of another sequence; they keep their keys."""

    def __init__(self, whole: Pictures, places: Sequence[int]) -> None:
        super().__init__(whole.labels[torch.as_tensor(places, dtype=torch.int64)])
        self.whole, self.places = whole, places

    def ignore_orientation(self) -> None:
        self.whole.ignore_orientation()

    def picture(self, index: int) -> Image.Image:
        return self.whole.picture(self.places[index])

    def key(self, index: int) -> str:
        return self.whole.key(self.places[index])


def held_out(whole: Pictures, share: float, *, rest: bool = False) -> Part:
    """A share of every class, or the rest: a split for sets that have none.

    The pictures of class c are put in the order of their keys, shuffled by random.Random(f"0/{c}"), and the first
    round(share × count) are held out. So the split depends on the names of the files alone.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(whole.labels.tolist()):
        members.setdefault(label, []).append(index)
    chosen: list[int] = []
    for label, places in members.items():
        places.sort(key=whole.key)
        random.Random(f"0/{label}").shuffle(places)
        cut = round(share * len(places))
        chosen += places[cut:] if rest else places[:cut]
    return Part(whole, sorted(chosen))


def balanced(labels: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Positions of `limit` labels, ascending, classes as evenly represented as they can be; None: all.

    Every class gives one before any gives a second, and so on: counts differ by at most one among classes that have
    some left. Which ones, and the order of the classes, are drawn by `seed`; a smaller limit takes a part of what a
    larger one takes.
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    classes = sorted(members)
    random.Random(f"{seed}/classes").shuffle(classes)
    for label in classes:
        random.Random(f"{seed}/{label}").shuffle(members[label])
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit:
        # Without the classes that are used up, which would be asked in vain every time.
        classes = [label for label in classes if turn < len(members[label])]
        chosen += [members[label][turn] for label in classes[: limit - len(chosen)]]
        turn += 1
    return sorted(chosen)
