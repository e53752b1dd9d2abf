"""Which rendered pictures make up each labelled set, with its classes and prompt templates."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from advflyp.data.mini import ON_DEMAND
from tools.mini_corpus.read import Item
from tools.mini_corpus.render import MARGIN, SIZE

MAX_PER_SET = 1000
# A few more than the largest number of images from another domain in the experiment with proxies.
TRAINING = 2500

_PLAIN = ("{}", "a picture of a {}", "an image of {}", "this is a {}")
_EMOJI = (*_PLAIN, "{} emoji", "a drawing of a {}")
_3D = (*_PLAIN, "{} emoji", "{} 3d emoji")
_CLIPART = (*_PLAIN, "clip art of a {}", "{} clip art")
_ICON = (*_PLAIN, "{} icon", "icon of a {}")
_PHOTO = (*_PLAIN, "a photo of a {}", "clip art of a {}")
_FASHION = (*_PLAIN, "clothing, {}", "{} icon")
_CIFAR = (*_PLAIN, "a photo of a {}", "a drawing of a {}")

_OBJECTS = {
    "arts-crafts", "award-medal", "book-paper", "clothing", "computer", "game", "household", "light-video", "lock",
    "mail", "medical", "money", "music", "musical-instrument", "office", "phone", "science", "sound", "sport", "tool",
    "writing",
}  # fmt: skip
# Emoji subgroups as class names. Subgroups that cannot be told from an image ("other symbols") are left out.
_GROUPS = {
    "animal-bird": "bird", "animal-bug": "insect", "animal-mammal": "mammal", "animal-marine": "sea animal",
    "animal-reptile": "reptile", "arrow": "arrow", "av-symbol": "media player button", "award-medal": "medal",
    "body-parts": "body part", "book-paper": "book or paper", "cat-face": "cat face", "clothing": "clothing",
    "computer": "computer", "drink": "drink", "event": "holiday or party", "face-affection": "face in love",
    "face-concerned": "sad or worried face", "face-costume": "monster or robot face", "face-negative": "angry face",
    "face-neutral-skeptical": "neutral face", "face-smiling": "smiling face", "face-unwell": "sick face",
    "food-asian": "asian food", "food-fruit": "fruit", "food-prepared": "meal",
    "food-sweet": "dessert", "food-vegetable": "vegetable", "game": "game", "heart": "heart",
    "light-video": "film, video or light", "lock": "lock or key", "mail": "mail", "money": "money",
    "music": "music", "musical-instrument": "musical instrument", "office": "office supplies",
    "person-sport": "athlete", "phone": "telephone", "place-building": "building", "place-geographic": "landscape",
    "place-map": "globe or map", "plant-flower": "flower", "plant-other": "plant", "religion": "religious symbol",
    "sky-weather": "weather", "sound": "sound", "sport": "sport", "time": "clock", "tool": "tool",
    "transport-air": "aircraft", "transport-ground": "vehicle", "transport-water": "boat", "warning": "warning sign",
    "writing": "pen or pencil", "zodiac": "zodiac sign",
}  # fmt: skip
FASHION_CLASSES = (
    "t-shirt", "trousers", "pullover sweater", "dress", "coat", "sandal", "shirt", "sneaker", "handbag", "ankle boot",
)  # fmt: skip
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
# These territories fly the flag of another class of the set: no picture can tell them apart.
_SAME_FLAG = {
    "Bouvet Island", "Clipperton Island", "Heard & McDonald Islands", "Mayotte", "New Caledonia", "Réunion",
    "St. Martin", "Svalbard & Jan Mayen", "U.S. Outlying Islands", "Guadeloupe", "Martinique", "French Guiana",
    "St. Pierre & Miquelon", "Wallis & Futuna", "Caribbean Netherlands", "St. Barthélemy",
}  # fmt: skip
# Subgroups of OpenMoji whose members cannot be told apart at 64 pixels.
_ALIKE = ("person", "family", "skin", "hair", "alphanum", "keycap", "hand", "geometric")
# Stamps that resemble drawings which only the full corpus has, on which the mini models are pretrained; build_sets
# itself finds those that resemble the embedded corpus.
_IN_FULL_CORPUS = {
    "tuxpaint_animals-insects-cartoon-fly-png", "tuxpaint_animals-mammals-echidna-png",
    "tuxpaint_clothes-hats-crown1-svg",
    "tuxpaint_clothes-t-shirt-01-svg", "tuxpaint_food-fruit-cartoon-apple-core-01-svg",
    "tuxpaint_food-fruit-cartoon-apple-core-png", "tuxpaint_space-planets-7-uranus-png",
    "tuxpaint_symbols-money-us-coins-005nickel-png", "tuxpaint_symbols-money-us-coins-010dime-png",
    "tuxpaint_town-houses-cartoon-tower-flag-red-png", "tuxpaint_town-houses-cartoon-tower-flag-red-svg",
    "tuxpaint_vehicles-construction-cartoon-forklift-svg", "tuxpaint_vehicles-ship-sail-boat2-svg",
}  # fmt: skip


@dataclass
class SetPlan:
    """A labelled set before it is written.

    Attributes:
        members: Indices into the rendered items.
        pixels: (N, 64, 64, 3) uint8, if the set brings its own images.
        gives_way: Whether an image that resembles a training image leaves the set; if not, that one leaves training.
    """

    name: str
    classes: list[str]
    labels: list[int]
    templates: tuple[str, ...]
    domain: str
    sources: list[str]
    members: list[int]
    pixels: np.ndarray | None = None
    split: str = "test"
    gives_way: bool = False

    def __len__(self) -> int:
        return len(self.labels)


def embedded_sets(items: Sequence[Item], fashion_folder: Path, seed: int) -> list[SetPlan]:
    """The validation set and the ten embedded test sets."""
    # A concept that training never names cannot be a class.
    named = {item.concept for item in items if item.role == "train" and item.concept}

    def emoji(
        name: str, source: str, wanted: Callable[[Item], bool], domain: str, templates: tuple[str, ...]
    ) -> SetPlan:
        chosen = [n for n, i in enumerate(items) if i.source == source and i.concept in named and wanted(i)]
        return _plan(name, items, chosen, _label, templates, domain, seed)

    def subgroup(*heads: str) -> Callable[[Item], bool]:
        return lambda item: item.subgroup.startswith(heads)

    nature, food, places = ("animal", "plant"), ("food", "drink", "dishware"), ("transport", "place")
    flags = [
        n
        for n, i in enumerate(items)
        if i.source == "flagpack" and i.name.removeprefix("flag of ") not in _SAME_FLAG
    ]
    clipart = [n for n, i in enumerate(items) if i.source == "openclipart" and i.role == "test"]
    icons = [n for n, i in enumerate(items) if i.role == "test" and i.mono]
    groups = [
        n
        for n, i in enumerate(items)
        if i.source == "emojione" and i.concept in named and i.subgroup in _GROUPS
    ]
    # A family's members are too small for 64 pixels.
    val = emoji("val", "streamline-emojis", lambda item: item.subgroup != "family", "emoji", _EMOJI)
    # Plain discs and signs resemble one another: training keeps them, and this set gives them up.
    by_group = _plan(
        "emoji-groups", items, groups, lambda i: _GROUPS[i.subgroup], _EMOJI, "emoji", seed, least=6, most=25
    )
    return [
        replace(val, split="val"),
        emoji("animals", "emojione", subgroup(*nature), "emoji", _EMOJI),
        emoji("food", "emojione", subgroup(*food), "emoji", _EMOJI),
        emoji("travel", "emojione", subgroup(*places), "emoji", _EMOJI),
        emoji("objects-3d", "fluent-emoji-3d", lambda item: item.subgroup in _OBJECTS, "3D renderings", _3D),
        emoji("animals-3d", "fluent-emoji-3d", subgroup(*nature), "3D renderings", _3D),
        _plan("flags", items, flags, _label, _PLAIN, "flags", seed),
        fashion(fashion_folder, seed),
        _plan("clipart", items, clipart, _label, _CLIPART, "clip art", seed, least=8, most=60),
        _plan("icons", items, icons, _label, _ICON, "line icons", seed, least=6, most=11),
        replace(by_group, gives_way=True),
    ]


def on_demand_set(
    name: str, items: Sequence[Item], seed: int, folders: Mapping[str, Path], named: Collection[str | None]
) -> SetPlan:
    """A set that is built only on the user's machine.

    Args:
        name: One of `ON_DEMAND`.
        items: What the sources hold, as read.
        seed: Of every random choice.
        folders: Those of the sources.
        named: What the training pairs show, by name.
    """
    chosen = [n for n, i in enumerate(items) if i.source == ON_DEMAND[name] and i.label]
    match name:
        case "fashion-train":
            plan = fashion(folders["fashion-mnist"], seed, TRAINING, part="train")
            return replace(plan, name=name, split="train")
        case "photos":
            return cifar(folders["cifar10"], seed)
        case "photos-train":
            plan = cifar(folders["cifar10"], seed, TRAINING, part="train")
            return replace(plan, name=name, split="train")
        case "openmoji":
            chosen = [n for n in chosen if items[n].concept and not items[n].subgroup.startswith(_ALIKE)]
            plan = _plan(name, items, chosen, _label, _EMOJI, "emoji", seed)
        case "flashcards":
            chosen = [n for n in chosen if items[n].label in named]
            plan = _plan(name, items, chosen, _label, _CLIPART, "cartoons", seed)
        case _:
            chosen = [n for n in chosen if items[n].key not in _IN_FULL_CORPUS]
            plan = _plan(name, items, chosen, _label, _PHOTO, "photographs", seed, least=6, most=60)
    return replace(plan, gives_way=True)


def fashion(folder: Path, seed: int, n: int = MAX_PER_SET, part: str = "t10k") -> SetPlan:
    """Fashion-MNIST: n pictures of its standard test split (or of "train"), equally many of each class, 28 → 60 px."""
    root = folder / "usr/share/datasets/fashion-mnist"
    raw = gzip.decompress((root / f"{part}-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    raw = gzip.decompress((root / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    labels = np.frombuffer(raw, np.uint8, offset=8)
    chosen = _balanced(labels, n, f"{seed} fashion")
    inner = SIZE - 2 * MARGIN
    pixels = np.zeros((len(chosen), SIZE, SIZE, 3), np.uint8)
    for row, index in enumerate(chosen):
        large = Image.fromarray(images[index]).resize((inner, inner), Image.Resampling.BILINEAR)
        pixels[row, MARGIN:-MARGIN, MARGIN:-MARGIN] = np.asarray(large)[..., None]
    classes = [int(labels[index]) for index in chosen]
    return SetPlan(
        "fashion", list(FASHION_CLASSES), classes, _FASHION, "photographs", ["fashion-mnist"], [], pixels
    )


def cifar(folder: Path, seed: int, n: int = MAX_PER_SET, part: str = "test") -> SetPlan:
    """CIFAR-10: n images of its test split (or of the first batch of "train"), equally many of each class, 32 → 64 px.

    The package holds each batch as one PNG, an image a row.
    """
    batch = "test_batch.png" if part == "test" else "data_batch_1.png"
    with Image.open(folder / batch) as file:
        images = np.asarray(file.convert("RGB")).reshape(-1, 32, 32, 3)
    labels = np.array(json.loads((folder / f"{part}_lables.json").read_text("utf-8")))[: len(images)]
    chosen = _balanced(labels, n, f"{seed} cifar")
    larger = [Image.fromarray(images[row]).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for row in chosen]
    return SetPlan(
        "photos",
        list(CIFAR_CLASSES),
        [int(labels[row]) for row in chosen],
        _CIFAR,
        "photographs",
        ["cifar10"],
        [],
        np.stack([np.asarray(image) for image in larger]),
    )


def _balanced(labels: np.ndarray, n: int, seed: str) -> list[int]:
    """The rows of n images in random order, equally many of each class."""
    classes = range(int(labels.max()) + 1)
    chosen: list[int] = []
    for index in classes:
        of_class = np.flatnonzero(labels == index).tolist()
        chosen += random.Random(f"{seed} {index}").sample(of_class, n // len(classes))
    random.Random(seed).shuffle(chosen)
    return chosen


def without(plan: SetPlan, rows: set[int]) -> SetPlan:
    """The set without some of its rows; its classes stay."""
    kept = [row for row in range(len(plan)) if row not in rows]
    return replace(
        plan,
        labels=[plan.labels[row] for row in kept],
        members=[plan.members[row] for row in kept] if plan.members else [],
        pixels=None if plan.pixels is None else plan.pixels[kept],
    )


def _label(item: Item) -> str:
    assert item.label is not None
    return item.label


def _plan(
    name: str,
    items: Sequence[Item],
    chosen: Sequence[int],
    label: Callable[[Item], str],
    templates: tuple[str, ...],
    domain: str,
    seed: int,
    *,
    least: int = 1,
    most: int = MAX_PER_SET,
) -> SetPlan:
    """A shuffled set of at most 1,000 pictures, `least` to `most` of each class."""
    order = list(chosen)
    random.Random(f"{seed} {name}").shuffle(order)
    available = Counter(label(items[n]) for n in order)
    taken: Counter[str] = Counter()
    members = []
    for n in order:
        text = label(items[n])
        if available[text] >= least and taken[text] < most and len(members) < MAX_PER_SET:
            taken[text] += 1
            members.append(n)
    classes = sorted(taken)
    labels = [classes.index(label(items[n])) for n in members]
    return SetPlan(
        name, classes, labels, templates, domain, sorted({items[n].source for n in members}), members
    )
