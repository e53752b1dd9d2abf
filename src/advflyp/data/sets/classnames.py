"""Class names for prompts, made from the names in a benchmark's own files: our rules, and those of released code.

A rule maps one such name (a folder, a line of a list, a WordNet number) to the words for it.
"""

from collections.abc import Callable, Mapping
from functools import cache

from advflyp.data.sets.countries import COUNTRIES, ISO_NAMES
from advflyp.data.sets.imagenet import names_by_wnid
from advflyp.data.sets.prompts import CALTECH101, EUROSAT, words

Rule = Callable[[str], str]


@cache
def wordnet_imagenet() -> dict[str, str]:
    """The first word of each class's WordNet synset."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {wnid: first_of(info.label_name_to_description(wnid)) for wnid in info.label_names()}


def first_of(synonyms: str) -> str:
    """ "goldfish, Carassius auratus" → "goldfish"."""
    return synonyms.split(",")[0]


def plain(name: str) -> str:
    """Lower case, with spaces for underscores and hyphens."""
    return name.lower().replace("_", " ").replace("-", " ")


def without_slashes(name: str) -> str:
    """As `plain`, with spaces for slashes too."""
    return plain(name).replace("/", " ")


def as_written(name: str) -> str:
    """As the authors write it."""
    return name


def _caltech256(folder: str) -> str:
    # "003.backpack", "251.airplanes-101"
    return words(folder.split(".", 1)[1].removesuffix("-101").replace("-", " "))


IMAGENET = ("imagenet", "imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")

OURS: Mapping[str, Rule] = {
    "cifar10": words,
    "cifar100": words,
    "stl10": as_written,
    "caltech101": lambda folder: CALTECH101.get(folder, words(folder).lower()),
    "caltech256": _caltech256,
    "oxford_pets": lambda breed: words(breed).title(),
    "flowers102": lambda name: name.rstrip("?"),
    "food101": words,
    "stanford_cars": as_written,
    "sun397": words,
    "country211": lambda code: COUNTRIES.get(code, code),
    "fgvc_aircraft": as_written,
    "eurosat": lambda folder: EUROSAT.get(folder, words(folder)),
    "dtd": words,
    **dict.fromkeys(IMAGENET, lambda wnid: names_by_wnid()[wnid]),
    "objectnet": lambda title: title.lower().replace("_", " "),
    "tiny-imagenet": first_of,
    "pcam": as_written,
}


# Land uses with an article; the others are as ours.
_EUROSAT = {
    "Forest": "a forest",
    "Highway": "a highway or a road",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}


# Whole prompts in place of class names, misspelled as released.
_PCAM = {
    "lymph node": "Tthis is a photo of healthy lymph node tissue.",
    "lymph node containing metastatic tumor tissue": "This is a photo of lymph node tumor tissue.",
}


def _face_is_person(folder: str) -> str:
    return "person" if folder in ("Faces", "Faces_easy") else folder


def _boeing(variant: str) -> str:
    return f"boeing {variant}" if variant.startswith("7") else variant.lower()


# What the released evaluations of AdvFLYP, TeCoA, PMG-AFT and TGA-ZSR have in common.
_SHARED: Mapping[str, Rule] = {
    "caltech256": lambda folder: plain(_caltech256(folder)),
    "oxford_pets": plain,
    "flowers102": plain,
    "food101": plain,
    "stanford_cars": lambda name: plain(name[:-5]),  # the year is cut off
    "country211": lambda code: ISO_NAMES.get(code, code).replace("-", " "),
    "fgvc_aircraft": _boeing,
    "eurosat": lambda folder: _EUROSAT.get(folder) or OURS["eurosat"](folder),
    "dtd": plain,
}

ADVFLYP_CODE: Mapping[str, Rule] = {
    **_SHARED,
    **dict.fromkeys(("cifar10", "cifar100", "stl10", "sun397"), as_written),
    "caltech101": _face_is_person,
    **dict.fromkeys(IMAGENET, lambda wnid: wordnet_imagenet()[wnid]),
    "tiny-imagenet": first_of,
}

TECOA: Mapping[str, Rule] = {
    **_SHARED,
    **dict.fromkeys(("cifar10", "cifar100", "stl10", "sun397"), plain),
    "caltech101": lambda folder: plain(_face_is_person(folder)),
    **dict.fromkeys(IMAGENET, lambda wnid: plain(wordnet_imagenet()[wnid])),
    "tiny-imagenet": lambda synonyms: plain(first_of(synonyms)),
    "pcam": lambda name: _PCAM.get(name, name),
}
