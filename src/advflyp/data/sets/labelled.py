"""Labelled sets for zero-shot classification: images decoded when they are needed, from any dataset."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from advflyp.config import nearest_path
from advflyp.data.pairs.images import UNREADABLE, as_rgb
from advflyp.data.pairs.prefetch import stacked, threaded
from advflyp.data.sets.catalogue import Source, canonical, data_folder, open_set, parts, set_names
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
from advflyp.data.sets.images import DatasetImages, Images, NotAnItem, balanced, dataset_name
from advflyp.data.sets.prompts import PHOTO, choose_templates, describe, several_texts
from advflyp.errors import RunError, SkippedSample
from advflyp.plugins import is_import_path, load_object
from advflyp.wording import counted

# A set with more unreadable images than this is not the set its name promises.
TOLERATED = 0.01
IMAGENET_CLASSES = 1000
# Number of images whose pixels are part of `sha256`.
HASHED_IMAGES = 16

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(init=False, eq=False)
class LabelledSet:
    """Images with class indices, as evaluations and labelled training take them.

    Attributes:
        dataset: The images, with labels and keys that are known without decoding.
        unreadable: Images that `batches` skipped: {key: reason}.
    """

    dataset: Images
    classes: list[str]
    templates: list[str]
    name: str
    split: str
    info: dict[str, Any]
    unreadable: dict[str, str]
    own_names: list[str] | None
    remarks: tuple[str, ...]

    def __init__(
        self,
        dataset: Any = None,
        classes: Sequence[str] = (),
        templates: str | Sequence[str] = PHOTO,
        *,
        name: str = "",
        split: str = "all",
        info: dict[str, Any] | None = None,
        unreadable: dict[str, str] | None = None,
        own_names: list[str] | None = None,
        remarks: tuple[str, ...] = (),
        pictures: Any = None,
    ) -> None:
        """Wrap any dataset: `LabelledSet(torchvision.datasets.CIFAR10(root, train=False), classes, templates)`.

        Args:
            dataset: Any sequence of (image, label) with a length: a torch `Dataset`, a `Subset` of one, a list. An
                image is a PIL image or a tensor (3, H, W), or (1, H, W) for grey: floats in [0, 1], which are rounded
                to 8 bits, or uint8.
            classes: K names, in the order of the labels 0 to K-1.
            templates: Prompts, each with one "{}" for the class name; "openai" for OpenAI's 80.
            name: Its name in results. By default the type of the dataset and a part of `sha256`.
            split: Which part of the data this is.
            info: domain, source, licence, in_proxy (whether the labelled proxy set covers the classes).
            unreadable: Images that are known to be unreadable: {key: reason}.
            own_names: The classes as the authors' files write them, for the rules of `classnames.py`.
            remarks: Sentences for the user about data that is not used.
            pictures: The former name of `dataset`.

        Raises:
            ValueError: There is nothing to tell apart (no image, fewer than two classes, two of one name), a label is
                not one of 0 to K-1, or the first item is not (image, label).
        """
        if pictures is not None:
            warnings.warn("LabelledSet: `pictures` is now `dataset`", DeprecationWarning, stacklevel=2)
            dataset = pictures
        called = name or dataset_name(dataset)
        self.classes, self.templates = several_texts(classes, "classes"), choose_templates(templates)
        if isinstance(dataset, Images):
            self.dataset = dataset
        else:
            self.dataset = DatasetImages(dataset, called)
            check_distinct(self.classes, called)
        self.split, self.own_names, self.remarks = split, own_names, remarks
        self.info = {"domain": "own"} if info is None else info
        self.unreadable = {} if unreadable is None else unreadable
        self._check(called)
        self.name = name or f"{called}-{self.sha256[:8]}"

    def _check(self, called: str) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"{called} has {counted(len(self.classes), 'class')}; zero-shot classification needs at least two"
            )
        if not len(self.dataset):
            raise ValueError(f"{called} holds no images; choose a folder or shards that do")
        low, high = int(self.labels.min()), int(self.labels.max())
        if not 0 <= low <= high < len(self.classes):
            raise ValueError(
                f"{called} has labels from {low} to {high}; labels are indices into `classes`, with "
                f"{counted(len(self.classes), 'name')} 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def pictures(self) -> Images:
        """The former name of `dataset`."""
        warnings.warn("LabelledSet.pictures is now LabelledSet.dataset", DeprecationWarning, stacklevel=2)
        return self.dataset

    @property
    def prompt(self) -> str:
        """The templates as results record them."""
        return describe(self.templates)

    @property
    def labels(self) -> Tensor:
        """(n,) int64, known without decoding."""
        return self.dataset.labels

    @cached_property
    def sha256(self) -> str:
        """A hash of the class names, every label and key, and the pixels of 16 images; templates are not in it."""
        content = [self.classes, self.labels.tolist(), [self.key(index) for index in range(len(self))]]
        digest = hashlib.sha256(json.dumps(content).encode())
        for index in sorted({place * len(self) // HASHED_IMAGES for place in range(HASHED_IMAGES)}):
            digest.update(described(lambda index=index: self.image(index)))
        return digest.hexdigest()

    def key(self, index: int) -> str:
        """What image `index` is called: a path, or the name of a tar member."""
        return self.dataset.key(index)

    def image(self, index: int) -> Image.Image:
        """Image `index` as all parts of the program decode images: RGB, 8 bits, transparent parts white.

        Raises:
            SkippedSample: It cannot be decoded.
            ValueError: The dataset returns something that is not an image, or another label than at first.
        """
        try:
            return as_rgb(self.dataset.image(index))
        except (RunError, NotAnItem):
            raise  # of the machine, or of the dataset, not of the image
        except OSError as error:
            raise SkippedSample(error.strerror or "unreadable image") from None
        except UNREADABLE:
            raise SkippedSample("unreadable image") from None

    def subset(self, limit: int | None, seed: int) -> list[int]:
        """Positions of `limit` images as `balanced` chooses them; ValueError for a limit below 1."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        return balanced(self.labels.tolist(), limit, seed)

    def batches(
        self,
        preprocess: Callable[[Image.Image], Tensor],
        batch_size: int,
        index: Sequence[int] | None = None,
        workers: int = 4,
        of: int | None = None,
    ) -> Iterator[Batch]:
        """Batches of positions (N,) int64, images (N, 3, H, W) in [0, 1], and labels (N,).

        Args:
            preprocess: An RGB image → (3, H, W) in [0, 1]; runs in `workers` threads, two batches ahead.
            batch_size: N; the last batch may be smaller.
            index: Positions of the images that are wanted, in this order; None: all.
            workers: Threads.
            of: Number of images that those wanted are a part of, if they are.

        Raises:
            ValueError: More than 1 % (of `of`, or else of those wanted) cannot be decoded; up to that, an image is
                skipped and entered in `unreadable`.
        """
        wanted = range(len(self)) if index is None else index
        every = len(wanted) if of is None else of
        skipped: dict[str, str] = {}

        def skip(place: int, reason: str) -> None:
            key = self.key(place)
            skipped[key] = self.unreadable[key] = reason
            advice = "mend or remove them" if self.info.get("domain") == "own" else "fetch the set again"
            what = f"of {counted(every, 'image')} cannot be read; {advice}"
            check_tolerated(self.name, what, skipped, every)

        decoded = threaded(wanted, lambda place: preprocess(self.image(place)), workers, 2 * batch_size)
        for some, images in stacked(decoded, batch_size, skip):
            places = torch.tensor(some)
            yield places, images, self.labels[places]


def described(read: Callable[[], Image.Image]) -> bytes:
    """The size and pixels of an image, or the reason why it cannot be read, for a hash."""
    try:
        image = read()
    except SkippedSample as reason:
        return str(reason).encode()
    return str(image.size).encode() + image.tobytes()


def check_tolerated(name: str, what: str, skipped: Mapping[str, str], wanted: int) -> None:
    """ValueError, saying `what` is wrong with set `name`, if more than TOLERATED of the wanted images are skipped.

    Args:
        skipped: {key: reason}.
    """
    if len(skipped) > TOLERATED * wanted:
        some = [f"{key} ({reason})" for key, reason in skipped.items()][:3]
        more = ", …" if len(skipped) > 3 else ""
        raise ValueError(f"{name}: more than {TOLERATED:.0%} {what}: {', '.join(some)}{more}")


def load_set(
    name: "str | LabelledSet", templates: str | Sequence[str] | None = None, *, source: Source = "any"
) -> LabelledSet:
    """Load a labelled set by name; only labels and names are read, images when they are asked for.

    Args:
        name: NAME or NAME@SPLIT of the table in docs/sets.md, "mini/food", or a path; a set is returned as it is.
        templates: Other prompts than the set's: "openai" (80 templates), one template or several.
        source: For a set of the table: "any", the authors' files or else the webdataset; "webdataset", CLIP benchmark's
            copy with its own prompts.

    Raises:
        ValueError: It does not exist, is not on this machine, or is damaged.
    """
    if isinstance(name, LabelledSet):
        return name if templates is None else replace(name, templates=choose_templates(templates))
    names = set_names([name])
    if len(names) > 1:
        raise ValueError(f"'{name}' is a group; load one of its sets: {', '.join(names)}")
    if is_own(names[0]):
        # Its files may change between two calls.
        labelled = _own_set(names[0])
        check_distinct(labelled.classes, name)
    else:
        labelled = _load(names[0], data_folder(), source)
    # What the caller changes in it must not reach later calls.
    own = {"classes": [*labelled.classes], "templates": [*labelled.templates], "info": {**labelled.info}}
    return replace(labelled, **own if templates is None else own | {"templates": choose_templates(templates)})


def remarks_on(groups: Sequence[str]) -> list[str]:
    """Remarks on data that is not used in some sets (named as in `set_names`); only a user's own sets have any."""
    own_sets = [name for name in set_names(list(groups)) if is_own(name)]
    return [remark for name in own_sets for remark in load_set(name).remarks]


def is_own(name: str) -> bool:
    """Whether a name, as `set_names` writes it, is the path of a user's own set."""
    return canonical(name) is None and not name.startswith("mini/")


@cache
def _load(name: str, root: Path, source: Source = "any") -> LabelledSet:
    """Load a set; `root` is used only as a part of the cache key."""
    if name.startswith("mini/"):
        return LabelledSet(**mini_set(name))
    images, names, webdataset = open_set(name, source)
    base, entry, split = parts(name)
    own_names, classes, templates = None, names, [entry.prompt]
    if webdataset is None or entry.read is None:
        own_names, classes = names, [OURS[base](own) for own in names]
    elif base in IMAGENET and len(names) == IMAGENET_CLASSES:
        own_names = list(names_by_wnid())
    if source == "webdataset" and webdataset is not None:
        templates = own_templates(webdataset) or own_templates(webdataset.parent)
        if templates is None:
            raise ValueError(
                f"the webdataset of {name} lacks {TEMPLATES}; fetch it again with `advflyp data fetch --wds {name}`"
            )
    info = {
        "domain": entry.domain,
        "source": entry.home,
        "licence": entry.licence,
        "in_proxy": False,
        "read_from": "files" if webdataset is None else "webdataset",
    }
    return LabelledSet(images, classes, templates, name=name, split=split, own_names=own_names, info=info)


def _own_set(name: str) -> LabelledSet:
    """A folder of class folders, webdataset shards with .cls members, or the result of a function of the user's.

    The set is named as it was requested.
    """
    has_kind = name.startswith(("folder:", "wds:"))
    if is_import_path(name) and not has_kind:
        made = load_object(name)()
        if not isinstance(made, LabelledSet):
            raise ValueError(f"'{name}' must return a LabelledSet, not {type(made).__name__}")
        return replace(made, name=name)
    kind, _, path = name.partition(":") if has_kind else ("", "", name)
    folder = Path(path).expanduser()
    if kind == "folder" and not folder.is_dir():
        hint = nearest_path(path) or "; name one that holds a folder for each class"
        raise ValueError(f"there is no folder {path}{hint}")
    remarks: tuple[str, ...] = ()
    if kind == "folder" or (folder.is_dir() and not kind and not has_shards(folder)):
        images, classes = read_folder(folder)
        templates = own_templates(folder)
        if beside := images_beside(folder):
            remarks = (f"{name}: {counted(beside, 'image')} beside the class folders, in no class: skipped",)
    else:
        shards = own_shards(path)
        folder = shards[0].parent
        images, classes = read_shards(shards)
        templates = own_templates(folder) or own_templates(folder.parent)
    split = folder.resolve().name
    return LabelledSet(
        images,
        classes,
        templates or PHOTO,
        name=name,
        split=split if split.lower() in SPLITS else "all",
        remarks=remarks,
        info={"domain": "own", "source": name, "licence": "", "in_proxy": False},
    )


def check_distinct(classes: Sequence[str], name: str) -> None:
    """ValueError if two classes of a set have the same name: their logits would tie on every image.

    CLIP's tokenizers ignore case and the amount of white space.
    """
    numbers: dict[str, int] = {}
    for number, title in enumerate(classes):
        first = numbers.setdefault(" ".join(title.casefold().split()), number)
        if first != number:
            other = "" if classes[first] == title else f" and '{classes[first]}'"
            raise ValueError(
                f"{name} has two classes called '{title}'{other}, numbers {first} and {number}, which zero-shot "
                "classification cannot tell apart; merge them, or give them names of their own in classnames.txt"
            )
