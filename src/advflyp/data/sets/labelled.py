"""Labelled sets for zero-shot classification: one table, pictures decoded when they are needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from advflyp.config import nearest_path
from advflyp.data.mini import mini_sets as mini_sets
from advflyp.data.pairs.images import UNREADABLE, as_rgb
from advflyp.data.pairs.prefetch import threaded
from advflyp.data.sets.catalogue import Source, canonical, data_folder, open_set, parts
from advflyp.data.sets.catalogue import set_names as set_names
from advflyp.data.sets.classnames import IMAGENET, OURS
from advflyp.data.sets.embedded import mini_set
from advflyp.data.sets.folders import (
    SPLITS,
    TEMPLATES,
    has_shards,
    images_beside,
    own_shards,
    own_templates,
    read_folder,
    read_shards,
)
from advflyp.data.sets.imagenet import names_by_wnid
from advflyp.data.sets.pictures import Pictures, balanced
from advflyp.data.sets.prompts import PHOTO, choose_templates, describe
from advflyp.errors import RunError, SkippedSample
from advflyp.plugins import is_import_path, load_object
from advflyp.wording import counted

# A set with more unreadable pictures than this is not the set its name promises.
TOLERATED = 0.01
IMAGENET_CLASSES = 1000

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
    own_names:  the classes as the authors' files write them, for the rules of `classnames.py`; None where not known
    remarks:    what of the data is not used, in sentences for the user
    ValueError where there is nothing to tell apart: no picture, or fewer than two classes.
    """

    name: str
    split: str
    classes: list[str]
    templates: list[str]
    pictures: Sequence[tuple[Image.Image, int]]
    info: dict[str, Any]
    unreadable: dict[str, str] = field(default_factory=dict)
    own_names: list[str] | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"{self.name} has {counted(len(self.classes), 'class')}; "
                "zero-shot classification needs at least two"
            )
        if not len(self.pictures):
            raise ValueError(f"{self.name} holds no pictures; point to a folder or to shards that do")
        labels = self.labels
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise ValueError(
                f"{self.name} has labels from {int(labels.min())} to {int(labels.max())} and "
                f"{counted(len(self.classes), 'class name')}; give one name for each label from 0 on"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def prompt(self) -> str:
        """The templates as results record them."""
        return describe(self.templates)

    @property
    def labels(self) -> Tensor:
        """(n,) int64, known without decoding."""
        if isinstance(self.pictures, Pictures):
            return self.pictures.labels
        return torch.tensor([label for _, label in self.pictures], dtype=torch.int64)

    def key(self, index: int) -> str:
        """What picture `index` is called: a path, or the name of a tar member."""
        return self.pictures.key(index) if isinstance(self.pictures, Pictures) else f"{index:05d}"

    def image(self, index: int) -> Image.Image:
        """Picture `index` as all parts of the program decode images: RGB, 8 bits, transparent parts white.

        Raises:
            SkippedSample: It cannot be decoded.
        """
        try:
            return as_rgb(self.pictures[index][0])
        except RunError:
            raise  # of the machine, not of the image
        except OSError as error:
            raise SkippedSample(error.strerror or "unreadable image") from None
        except UNREADABLE:
            raise SkippedSample("unreadable image") from None

    def subset(self, limit: int | None, seed: int) -> list[int]:
        """Positions of `limit` pictures as `balanced` chooses them; ValueError for a limit below 1."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return balanced(self.labels.tolist(), limit, seed)

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
        labels = self.labels
        bad: list[str] = []
        part: list[tuple[int, Tensor]] = []
        for place, image in self._decoded(wanted, preprocess, workers, 2 * batch_size):
            if isinstance(image, str):
                self.unreadable[self.key(place)] = image
                bad.append(f"{self.key(place)} ({image})")
                if len(bad) > TOLERATED * len(wanted):
                    is_own_set = self.info.get("domain") == "own"
                    advice = "mend or remove them" if is_own_set else "fetch the set again"
                    raise ValueError(
                        f"{self.name}: more than {TOLERATED:.0%} of {counted(len(wanted), 'picture')} cannot be read; "
                        f"{advice}: {', '.join(bad[:3])}{', …' if len(bad) > 3 else ''}"
                    )
                continue
            part.append((place, image))
            if len(part) == batch_size:
                yield _stack(part, labels)
                part = []
        if part:
            yield _stack(part, labels)

    def _decoded(
        self, wanted: Sequence[int], preprocess: Callable[[Image.Image], Tensor], workers: int, ahead: int
    ) -> Iterator[tuple[int, Tensor | str]]:
        def load(place: int) -> Tensor | str:
            try:
                picture = self.image(place)
            except SkippedSample as reason:
                return str(reason)
            return preprocess(picture)

        return threaded(wanted, load, workers, ahead)


def _stack(part: list[tuple[int, Tensor]], labels: Tensor) -> Batch:
    places = torch.tensor([place for place, _ in part])
    return places, torch.stack([image for _, image in part]), labels[places]


def load_set(
    name: str, templates: str | Sequence[str] | None = None, *, source: Source = "any"
) -> LabelledSet:
    """The set called `name`; of the sets that are not embedded only labels and names are read.

    name:      one of the table, NAME or NAME@SPLIT; "mini/food"; a path, see `docs/sets.md`
    templates: other prompts than the set's: "openai" (80 templates), one template or several
    source:    of a set of the table: "any", the authors' files or else the webdataset; "webdataset", CLIP benchmark's
               copy with the prompts that it brings along
    ValueError where it does not exist, is not on this machine, or is damaged.
    """
    names = set_names([name])
    if len(names) > 1:
        raise ValueError(f"'{name}' is a group; load one of its sets: {', '.join(names)}")
    labelled = _load(names[0], data_folder(), source)
    return labelled if templates is None else replace(labelled, templates=choose_templates(templates))


def remarks_on(groups: Sequence[str]) -> list[str]:
    """What of some sets, as `set_names` takes them, is not used; only a user's own leave anything out."""
    own_sets = [name for name in set_names(list(groups)) if canonical(name) is None]
    return [remark for name in own_sets for remark in load_set(name).remarks]


@cache
def _load(name: str, root: Path, source: Source = "any") -> LabelledSet:
    """`root` only tells apart what is cached."""
    if name.startswith("mini/"):
        return LabelledSet(**mini_set(name))
    if canonical(name) is None:
        return _own_set(name)
    opened = open_set(name, source)
    base, entry, split = parts(name)
    own_names, classes, templates = opened.names, opened.names, [entry.prompt]
    if not opened.is_webdataset:
        classes = [OURS[base](own) for own in own_names]
    elif base in IMAGENET and len(classes) == IMAGENET_CLASSES:
        own_names = list(names_by_wnid())
    else:
        own_names = None
    if source == "webdataset":
        if opened.templates is None:
            raise ValueError(
                f"the webdataset of {name} lacks {TEMPLATES}; fetch it again with `advflyp data fetch --wds {name}`"
            )
        templates = choose_templates(opened.templates)
    return LabelledSet(
        name=name,
        split=split,
        classes=classes,
        templates=templates,
        pictures=opened.pictures,
        own_names=own_names,
        info={
            "domain": entry.domain,
            "source": entry.home,
            "licence": entry.licence,
            "in_proxy": False,
            "published": entry.n if split == entry.splits[0] else None,
            "read_from": "webdataset" if opened.is_webdataset else "files",
        },
    )


def _own_set(name: str) -> LabelledSet:
    """A folder of class folders, webdataset shards with .cls members, or what a function of the user's returns.

    Under the name it was called by.
    """
    if is_import_path(name) and not name.startswith(("folder:", "wds:")):
        return with_distinct_names(replace(load_object(name)(), name=name))
    remarks: tuple[str, ...] = ()
    kind, _, path = name.partition(":") if name.startswith(("folder:", "wds:")) else ("", "", name)
    folder = Path(path).expanduser()
    if kind == "folder" and not folder.is_dir():
        hint = nearest_path(path) or "; name one that holds a folder for each class"
        raise ValueError(f"there is no folder {path}{hint}")
    if kind == "folder" or (folder.is_dir() and not kind and not has_shards(folder)):
        pictures, classes = read_folder(folder)
        templates = own_templates(folder)
        if beside := images_beside(folder):
            loose = counted(beside, "image")
            remarks = (f"{name}: {loose} beside the class folders, in no class: left out",)
    else:
        shards = own_shards(path)
        folder = shards[0].parent
        pictures, classes = read_shards(shards)
        templates = own_templates(folder) or own_templates(folder.parent)
    split = folder.resolve().name
    labelled = LabelledSet(
        name=name,
        split=split if split.lower() in SPLITS else "all",
        classes=classes,
        templates=choose_templates(templates or PHOTO),
        pictures=pictures,
        remarks=remarks,
        info={"domain": "own", "source": name, "licence": "", "in_proxy": False},
    )
    return with_distinct_names(labelled)


def with_distinct_names(labelled: LabelledSet) -> LabelledSet:
    """The set; ValueError where two classes have one name, whose logits would tie on every picture."""
    first: dict[str, int] = {}
    for number, name in enumerate(labelled.classes):
        if first.setdefault(name, number) != number:
            raise ValueError(
                f"{labelled.name} has two classes called '{name}', numbers {first[name]} and {number}, which zero-shot "
                "classification cannot tell apart; merge them, or give them names of their own in classnames.txt"
            )
    return labelled
