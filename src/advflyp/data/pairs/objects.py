"""Pairs from objects: any torch `Dataset`, list or other iterable of (image, caption)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from advflyp.data.pairs.cells import captions_in
from advflyp.data.pairs.images import UNREADABLE
from advflyp.data.pairs.samples import Indexed, Sample, Sharded
from advflyp.data.sets.images import NotAnItem, dataset_name, to_pil
from advflyp.errors import RunError, SkippedSample

ADVICE = "each must be (image, caption), the caption a text or a list of texts"


def open_objects(pairs: Any, size: int | None = None) -> Indexed | Sharded:
    """Wrap an object as a source of pairs.

    Args:
        pairs: (image, caption) items. Images are as in `LabelledSet`; a caption is a text, or a list of texts from
            which one is drawn each epoch. If it has a length and can be indexed (a map-style `Dataset`, a list), every
            epoch is a permutation; anything else is iterated anew each epoch and shuffled within data.shuffle_buffer.
        size: Number of items in an iterable without a length (data.size).

    Raises:
        ValueError: It is not such an object, can be iterated only once, or its number of items is unknown.
    """
    name = dataset_name(pairs)
    if hasattr(pairs, "__getitem__") and hasattr(pairs, "__len__"):
        return DatasetPairs(pairs, name)
    if not hasattr(pairs, "__iter__"):
        raise NotAnItem(f"pairs is a {name}; give a Dataset, a list or an iterable: {ADVICE}")
    if iter(pairs) is pairs:
        raise NotAnItem(
            f"{name} can be iterated only once, and every epoch needs it again; make a list of it"
        )
    count = len(pairs) if hasattr(pairs, "__len__") else size
    if count is None:
        raise NotAnItem(f"the number of pairs in {name} is unknown; set data.size")
    return Sharded([IterablePairs(pairs, name, count)], count)


class DatasetPairs:
    """Pairs that can be indexed. Items are requested one at a time, by one thread."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name
        if len(self):
            self[0]  # a mistake shows now

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Sample:
        key = f"{self.name}:{number}"
        try:
            item = self.dataset[number]
        except RunError:
            raise  # of the machine, not of the item
        except UNREADABLE:
            return Sample(key, problem="unreadable image")
        return _sample(key, item)


@dataclass
class IterablePairs:
    """An iterable of pairs, in its own order, as a `Shard`; an offset is the number of items to skip."""

    iterable: Any
    name: str
    count: int

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        for number, item in enumerate(islice(iter(self.iterable), offset, None), offset):
            yield _sample(f"{self.name}:{number}", item), number + 1


def _sample(key: str, item: Any) -> Sample:
    """An (image, caption) item as a sample; NotAnItem if it is not one."""
    if not (isinstance(item, tuple | list) and len(item) == 2):
        raise NotAnItem(f"{key} is a {type(item).__name__}; {ADVICE}")
    image = to_pil(item[0], f"the image of {key}")
    try:
        return Sample(key, image, tuple(captions_in(item[1])) or None)
    except SkippedSample as reason:
        return Sample(key, problem=str(reason))
