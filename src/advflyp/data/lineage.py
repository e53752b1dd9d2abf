"""The data a model was finetuned on, per its model card: an evaluation on the same data is not zero-shot."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from operator import eq
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from advflyp.data.pairs.addresses import GLOB, brace_count, expand, is_remote
from advflyp.data.sets.catalogue import canonical

KEY = "trained_on"
# Prefix for data passed as a Python object; no file or set has such a name.
OBJECT = "object:"
PATTERN = GLOB | {"{"}
# Maximum characters read from a card, braces expanded: the card may come from a stranger.
MAX_CHARACTERS = 1 << 20


def trained_on(card: Mapping[str, Any], *data: str | None) -> list[str]:
    """The `KEY` entry for a new model card: the entry in `card`, the starting model's, plus this run's `data`.

    Paths are absolute and without links, so that they mean the same from any folder and in any spelling.
    """
    return [*card.get(KEY, []), *(_absolute(name) for name in data if name is not None)]


def united(*cards: Mapping[str, Any]) -> dict[str, list[str]]:
    """The card of weights that several models had a part in: only the data of all of them."""
    return {KEY: list(dict.fromkeys(name for card in cards for name in card.get(KEY, [])))}


def was_trained_on(card: Mapping[str, Any], data: str) -> bool:
    """Whether the model with `card` was trained on any file of `data`, by the names of folders, files and sets."""
    # Older cards name links and not what they lead to; a pattern of a card may match a link.
    names = dict.fromkeys((_absolute(data), _absolute(data, follow=False)))
    files = [file for name in names for file in _files(name)]
    asked = {_parts(one) for file in files for one in (file, _real(file) if os.path.isabs(file) else file)}
    return any(_meet(known, one) for known in _known(card) for one in asked)


def _absolute(name: str, *, follow: bool = True) -> str:
    """A set's name or an address as it is; of a path one spelling, with its links followed if `follow`."""
    name = name.removeprefix("folder:").removeprefix("wds:")
    path = Path(name).expanduser()
    is_named = name == "mini" or name.startswith(("mini/", "hf:", OBJECT)) or is_remote(name)
    if is_named or (not path.exists() and canonical(name) is not None):
        return canonical(name) or name
    return _real(path) if follow else str(path.absolute())


def _real(path: str | Path) -> str:
    """An absolute path without links and "..", as far as it is no pattern."""
    if os.path.exists(path):
        return os.path.realpath(path)  # its name may contain pattern characters
    parts = Path(path).parts
    number = next((number for number, part in enumerate(parts) if PATTERN & set(part)), len(parts))
    return os.path.join(os.path.realpath(Path(*parts[:number])), *parts[number:])


def _files(name: str) -> list[str]:
    """The files that a local pattern names; any other name as it is."""
    if Path(name).is_absolute() and not Path(name).is_dir():
        with suppress(ValueError):
            return expand(name, "*")
    return [name]


def _known(card: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The parts of each name in a card. The disk is not accessed: the card may come from a stranger."""
    left = MAX_CHARACTERS
    for name in card.get(KEY, []):
        left -= len(name) + 1
        if left < 0:
            return
        yield _parts(name)
        cost = brace_count(name) * len(name)
        if "{" in name and cost <= left:
            left -= cost
            with suppress(ValueError):  # unbalanced braces
                yield from map(_parts, braceexpand(name))


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path or a set name; ".set" keeps "mini" from counting as a parent folder of "mini/food"."""
    return Path(os.path.normpath(name) if os.path.isabs(name) else f"{name}.set").parts


def _meet(known: tuple[str, ...], asked: tuple[str, ...]) -> bool:
    """Whether one path equals or contains the other; the last part of the card's name may be a pattern."""
    *folders, last = known
    return all(map(eq, folders, asked)) and all(
        one == last or fnmatchcase(one, last) for one in asked[len(folders) : len(known)]
    )
