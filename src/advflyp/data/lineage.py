"""The data a model was finetuned on, per its model card: an evaluation on the same data is not zero-shot."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from operator import eq
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from advflyp.data.pairs.addresses import brace_count, expand, is_remote
from advflyp.data.sets.catalogue import canonical

KEY = "trained_on"
# Prefix for data passed as a Python object; no file or set has such a name.
OBJECT = "object:"
# Maximum characters read from a card, braces expanded: the card may come from a stranger.
MAX_CHARACTERS = 1 << 20


def trained_on(card: Mapping[str, Any], *data: str | None) -> list[str]:
    """The `KEY` entry for a new model card: the entry in `card`, the starting model's, plus this run's `data`.

    Paths are absolute, so that they mean the same from any folder.
    """
    return [*card.get(KEY, []), *(_absolute(name) for name in data if name is not None)]


def was_trained_on(card: Mapping[str, Any], data: str) -> bool:
    """Whether the model with `card` was trained on any file of `data`, by the names of folders, files and sets."""
    asked = [_parts(name) for name in _files(_absolute(data))]
    return any(_meet(known, one) for known in _known(card) for one in asked)


def _absolute(name: str) -> str:
    name = name.removeprefix("folder:").removeprefix("wds:")
    path = Path(name).expanduser()
    is_named = name == "mini" or name.startswith(("mini/", "hf:", OBJECT)) or is_remote(name)
    if is_named or (not path.exists() and canonical(name) is not None):
        return canonical(name) or name
    return str(path.absolute())


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
    return Path(name if Path(name).is_absolute() else f"{name}.set").parts


def _meet(known: tuple[str, ...], asked: tuple[str, ...]) -> bool:
    """Whether one path equals or contains the other; the last part of the card's name may be a pattern."""
    *folders, last = known
    return all(map(eq, folders, asked)) and all(
        one == last or fnmatchcase(one, last) for one in asked[len(folders) : len(known)]
    )
