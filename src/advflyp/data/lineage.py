"""Which data a model was finetuned on, as its card says: what is measured on the same data is not zero-shot."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advflyp.data.pairs.addresses import GLOB, brace_count, expand, is_remote
from advflyp.data.sets.catalogue import canonical

KEY = "trained_on"
# Before the name of what Python gave as an object: no file or set is called that.
OBJECT = "object:"
# Of a card, which may be a stranger's: names that are looked at, and files that the braces of one may name.
MAX_KNOWN, MAX_PATTERN = 1_000, 10_000


def trained_on(card: Mapping[str, Any], *data: str | None) -> list[str]:
    """The entry `KEY` of a model's card: the data of the model with `card`, from which the run starts, and the run's.

    Paths are absolute, so that they mean the same from any folder.
    """
    return [*card.get(KEY, []), *(_absolute(name) for name in data if name is not None)]


def was_trained_on(card: Mapping[str, Any], data: str) -> bool:
    """Whether the model with `card` was trained on any file of `data`, by the names of folders, files and sets."""
    asked = _places(_absolute(data))
    return any(
        one == other or one in other.parents or other in one.parents
        for known in card.get(KEY, [])[:MAX_KNOWN]
        for one in _places(known, MAX_PATTERN)
        for other in asked
    )


def _absolute(name: str) -> str:
    name = name.removeprefix("folder:").removeprefix("wds:")
    path = Path(name).expanduser()
    is_named = name == "mini" or name.startswith(("mini/", "hf:", OBJECT)) or is_remote(name)
    if is_named or (not path.exists() and canonical(name) is not None):
        return canonical(name) or name
    return str(path.absolute())


def _places(name: str, most: int | None = None) -> list[Path]:
    """The files of a pattern, or what is named as it is; "mini" has nothing in common with "mini/food".

    Args:
        most: Files that may come of the pattern of a stranger, who may look into one folder.
    """
    if not Path(name).is_absolute():
        return [Path(f"{name}.set")]
    if most is not None and (brace_count(name) > most or GLOB & set(os.path.dirname(name))):
        return [Path(name)]
    try:
        return [Path(file) for file in expand(name, "*")] if not Path(name).is_dir() else [Path(name)]
    except ValueError:
        return [Path(name)]
