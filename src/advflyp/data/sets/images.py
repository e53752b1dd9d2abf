"""The images of a labelled set: labels are known at once, each image is decoded when it is requested."""

import operator
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from advflyp.data.filenames import IMAGE_SUFFIXES, LABEL_SUFFIX, is_extra
from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.tars import index_tar
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_LABEL_BYTES, open_regular, read_image_file, read_image_stream, reading

Class = TypeVar("Class")  # a name, or a place among names
# A larger number is not a label, and might not fit into a tensor.
MAX_LABEL = 1 << 31
# What torchvision's datasets call their lists of labels.
LABEL_LISTS = ("targets", "labels", "_labels")


class Images:
    """(image, class index) items whose labels and keys are known without decoding.

    A subclass defines either `encoded`, which returns an image's file, or `image`, which returns the image.

    Attributes:
        labels: (n,) int64.
        keys: Names of the images, unique and the same on every machine; None calls them by their position.
        upright: Whether the EXIF orientation of files is applied; else they are decoded as they are stored.
        border: Pixels to cut off on each side.

    `image` is called from several threads at once and raises `SkippedSample` or OSError if there is no image.
    """

    labels: Tensor
    keys: Sequence[str] | None = None
    upright: bool = True
    border: int = 0

    def __init__(self, labels: Sequence[int] | np.ndarray | Tensor) -> None:
        self.labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.image(index), int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        return map(self.__getitem__, range(len(self)))

    def encoded(self, index: int) -> bytes | None:
        """The file of an image, None if it has none; OSError or `SkippedSample` if the file cannot be read."""
        return None

    def image(self, index: int) -> Image.Image:
        """Decoded, of whatever size."""
        data = self.encoded(index)
        assert data is not None, "an image in no file needs an `image` of its own"
        return read_image(data, upright=self.upright, border=self.border, min_side=1)

    def key(self, index: int) -> str:
        """What the image is called."""
        return f"{index:05d}" if self.keys is None else self.keys[index]


class NotAnItem(ValueError):
    """A dataset, or an item of one, is not what it has to be; the message says what that is."""


class DatasetImages(Images):
    """Any sequence of (image, label): a torch `Dataset`, a list; see `LabelledSet`.

    Labels come from the dataset's own list of them, as in torchvision (each is checked when its image is read), else
    from one pass over all items. Items are requested one at a time, since not every dataset is thread-safe.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name, self.lock = dataset, name, Lock()
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise NotAnItem(
                f"{name} has no length or cannot be indexed; make a list of it, or a Dataset with __len__ and "
                "__getitem__"
            )
        super().__init__(_stored_labels(dataset) or [self._label(index) for index in range(len(dataset))])
        if len(dataset):
            # One that cannot be read is skipped and counted when it is asked for.
            with suppress(SkippedSample, OSError, Image.DecompressionBombError):
                self.image(0)

    def image(self, index: int) -> Image.Image:
        image, label = self._item(index)
        if label != int(self.labels[index]):
            raise NotAnItem(
                f"item {index} of {self.name} now has the label {label} instead of {int(self.labels[index])}"
            )
        return to_pil(image, f"image {index} of {self.name}")

    def _label(self, index: int) -> int:
        try:
            return self._item(index)[1]
        except OSError as error:
            raise NotAnItem(
                f"item {index} of {self.name} cannot be read ({error}), so its label is unknown; give the dataset a "
                "list `targets` of all labels, or leave the item out with torch.utils.data.Subset"
            ) from error

    def _item(self, index: int) -> tuple[Any, int]:
        with self.lock:
            item = self.dataset[index]
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise NotAnItem(f"item {index} of {self.name} is {_kind(item)}; it must be (image, label)")
        image, label = item
        try:
            return image, operator.index(label)
        except TypeError:
            raise NotAnItem(
                f"the label of item {index} of {self.name} is {_kind(label)}; labels are whole numbers from 0 on"
            ) from None


def dataset_name(dataset: Any) -> str:
    """What messages call a dataset without a name: its type, or that of the dataset behind a subset."""
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return type(dataset).__name__.lower()


def _stored_labels(dataset: Any) -> list[int] | None:
    """The labels that a torchvision dataset, or a subset of one, stores as a list; None if there are none."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        whole = _stored_labels(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    found = next((getattr(dataset, name) for name in LABEL_LISTS if hasattr(dataset, name)), None)
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole_numbers = not labels.is_floating_point() and labels.dtype != torch.bool
    return labels.tolist() if whole_numbers and labels.shape == (len(dataset),) else None


def to_pil(image: Any, what: str) -> Image.Image:
    """A PIL image as it is; a tensor, (3, H, W) or (1, H, W), in [0, 1] or uint8, as an image rounded to 8 bits.

    Raises:
        NotAnItem: It is neither; the message begins with `what`.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Tensor):
        raise NotAnItem(f"{what} is {_kind(image)}; give a PIL image, or a tensor (3, H, W) in [0, 1]")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise NotAnItem(f"{what} is {_kind(image)}; a tensor must be (3, H, W), or (1, H, W) for grey")
    if image.dtype != torch.uint8:
        low, high = float(image.min()), float(image.max())
        if not image.is_floating_point() or not (low >= 0 and high <= 1):
            raise NotAnItem(
                f"{what} is a tensor of {image.dtype} from {low:.3g} to {high:.3g}; give floats in [0, 1] or uint8, "
                "and leave the normalisation to the model"
            )
        image = (image.detach().float() * 255).round().to(torch.uint8)
    return to_pil_image(image.cpu())


def _kind(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""
    return f"a {type(value).__name__}{shape}"


class Files(Images):
    """Image files; their keys are paths relative to `folder`, with "/"."""

    keys: Sequence[str]

    def __init__(
        self, folder: Path, paths: Sequence[str], labels: Sequence[int] | Tensor, border: int = 0
    ) -> None:
        super().__init__(labels)
        assert len(paths) == len(labels)
        self.folder, self.keys, self.border = folder, paths, border

    def part(self, places: Sequence[int]) -> "Files":
        """The images at `places`; they keep their keys."""
        return Files(self.folder, [self.keys[i] for i in places], self.labels[list(places)], self.border)

    def encoded(self, index: int) -> bytes:
        return read_image_file(self.folder / self.keys[index])


class Arrays(Images):
    """(n, H, W, 3) uint8 pixels in memory, for sets that come as one array."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        super().__init__(labels)
        assert len(pixels) == len(self.labels)
        self.pixels = pixels

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))


class Encoded(Images):
    """Image files in memory, for small sets."""

    def __init__(self, files: Sequence[bytes], keys: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(labels)
        assert len(files) == len(keys) == len(labels)
        self.files, self.keys = files, keys

    def encoded(self, index: int) -> bytes:
        return self.files[index]


class Shards(Images):
    """Samples KEY.jpg (or another image) + KEY.cls in webdataset tars, in any order; keys are SHARD/MEMBER.

    Where shards of several folders share a name, SHARD is their path below the folder that they have in common.
    One pass over the headers, on opening, finds where each image is, so that reading one takes a seek and a read.
    ValueError for a shard that is not an uncompressed tar, an image without a label, or a label without an image.
    """

    def __init__(self, shards: Sequence[Path], border: int = 0) -> None:
        found = [(shard, *member) for shard in shards for member in _members(shard)]
        super().__init__([label for _, label, *_ in found])
        self.border = border
        self.members = [(shard, name, offset, size) for shard, _, name, offset, size in found]
        self.names = _names(shards)

    def encoded(self, index: int) -> bytes:
        shard, _, offset, size = self.members[index]
        with open_regular(shard) as file, reading(shard):
            file.seek(offset)
            return read_image_stream(file, size)

    def key(self, index: int) -> str:
        shard, name, _, _ = self.members[index]
        return f"{self.names[shard]}/{name}"


def _names(shards: Sequence[Path]) -> dict[Path, str]:
    """What each shard is called in keys."""
    names = {shard: shard.name for shard in shards}
    if len({*names.values()}) == len(names):
        return names
    whole = {shard: os.path.abspath(shard) for shard in names}
    common = os.path.commonpath([os.path.dirname(path) for path in whole.values()])
    return {shard: Path(os.path.relpath(path, common)).as_posix() for shard, path in whole.items()}


def _members(shard: Path) -> list[tuple[int, str, int, int]]:
    """(label, name, offset, size) of each image, in the order of the tar."""
    index = index_tar(shard, plain=True)
    found: list[tuple[int, str, int, int]] = []
    with open(shard, "rb") as file:
        for key, one in index.items():
            label = one.parts.get(LABEL_SUFFIX)
            image = next((one.parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in one.parts), None)
            if label is not None and image is not None:
                file.seek(label[1])
                found.append((_whole_number(shard, file.read(min(label[2], MAX_LABEL_BYTES))), *image))
            elif image is not None and not is_extra(key, index):
                raise ValueError(f"{shard}: {key} has an image but no {key}.cls; labels are needed for all")
            elif label is not None and not is_extra(key, index):
                raise ValueError(f"{shard}: {key} has a label but no image; the shard seems damaged")
    return found


def _whole_number(shard: Path, data: bytes) -> int:
    # Not what else `int` reads, such as 0_1.
    if not re.fullmatch(rb"\s*[+-]?[0-9]+\s*", data):
        raise ValueError(f"{shard}: a .cls member is not a whole number: {data!r}")
    label = int(data)
    if abs(label) > MAX_LABEL:
        raise ValueError(f"{shard}: a .cls member is {label}; labels are numbers from 0 on")
    return label


def _by_class(labels: Sequence[int]) -> dict[int, list[int]]:
    """The places of each label."""
    members: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    return members


def held_out(whole: Files, share: float, *, rest: bool = False) -> Files:
    """A share of every class, or the rest: a split for sets that have none.

    The images of class c are sorted by key, shuffled by random.Random(f"0/{c}"), and the first round(share × count) are
    held out. The split thus depends only on the file names.
    """
    chosen: list[int] = []
    for label, places in _by_class(whole.labels.tolist()).items():
        places.sort(key=whole.key)
        random.Random(f"0/{label}").shuffle(places)
        cut = round(share * len(places))
        chosen += places[cut:] if rest else places[:cut]
    return whole.part(sorted(chosen))


def drawn_classes(classes: Sequence[Class], count: int | None, seed: int) -> list[Class]:
    """`count` classes drawn by `seed`, in their order; None: all. A smaller count draws a subset of a larger one's.

    Raises:
        ValueError: There are fewer than `count` classes.
    """
    if count is None:
        return list(classes)
    if count > len(classes):
        raise ValueError(f"data.classes = {count}, but the data has {len(classes)}; lower it")
    order = list(range(len(classes)))
    random.Random(f"{seed}/breadth").shuffle(order)
    return [classes[place] for place in sorted(order[:count])]


def represented(classes: Sequence[str], labels: Iterable[int]) -> list[str]:
    """The classes that have at least one label, in their order."""
    known = set(labels)
    return [name for number, name in enumerate(classes) if number in known]


def balanced(labels: Sequence[int], limit: int | None, seed: int) -> list[int]:
    """Positions of `limit` labels, ascending, as class-balanced as possible; None: all.

    Every class contributes one before any contributes a second, and so on: counts differ by at most one among classes
    that have some left. The members and the order of the classes are drawn by `seed`; a smaller limit draws a subset of
    a larger one's.
    """
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    members = _by_class(labels)
    classes = sorted(members)
    random.Random(f"{seed}/classes").shuffle(classes)
    for label in classes:
        random.Random(f"{seed}/{label}").shuffle(members[label])
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit:
        # Drop the classes that are used up.
        classes = [label for label in classes if turn < len(members[label])]
        chosen += [members[label][turn] for label in classes[: limit - len(chosen)]]
        turn += 1
    return sorted(chosen)
