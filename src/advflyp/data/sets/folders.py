"""Sets from any source: one folder for each class, or webdataset shards with labels."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from advflyp.data.filenames import images_among, is_clutter, shards_in, walk
from advflyp.data.pairs.sources import find_shards
from advflyp.data.sets.images import Files, Shards
from advflyp.data.sets.prompts import words
from advflyp.documents import read_json, read_text
from advflyp.limits import MAX_NAME
from advflyp.wording import counted

CLASS_NAMES = ("classnames.txt", "classnames.json")
TEMPLATES = "zeroshot_classification_templates.txt"
# Maximum digits of the number of shards in nshards.txt.
MAX_SHARD_DIGITS = 6
# What folders of splits are called, in lower case.
SPLITS = {"train", "training", "trainval", "val", "valid", "validation", "dev", "test", "testing"}


def class_folders(folder: Path) -> list[str]:
    """The names of the visible folders in `folder`: sorted by number if all are numbers, else as text."""
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    found = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_clutter(entry.name)
    )
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found


def check_no_splits(folder: Path, likely: str = "test") -> None:
    """ValueError for a folder of whole splits, one of which the user has to choose.

    Args:
        likely: The split that is usually wanted.
    """
    found = class_folders(folder)
    if found and {name.lower() for name in found} <= SPLITS:
        chosen = next((name for name in found if name.lower() == likely), found[0])
        raise ValueError(f"{folder} holds the splits {', '.join(found)}; name one of them: {folder / chosen}")


def class_files(folder: Path, classes: Sequence[str], border: int = 0) -> Files:
    """All images below folder/CLASS, labelled with the class's place in `classes`, sorted by path.

    Raises:
        ValueError: A class has no images.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [
            (where / file).relative_to(folder).as_posix()
            for where, files in walk(folder / name)
            for file in images_among(files)
        ]
        if not found:
            raise ValueError(f"{folder / name} holds no images; fill the class or remove its folder")
        paths += sorted(found)
        labels += [label] * len(found)
    return Files(folder, paths, labels, border)


def images_beside(folder: Path) -> int:
    """How many images are in `folder` itself, beside the class folders, and so belong to no class."""
    return len(images_among([entry.name for entry in os.scandir(folder) if not is_clutter(entry.name)]))


def read_folder(folder: Path) -> tuple[Files, list[str]]:
    """Read one folder for each class; class names come from classnames.txt or .json, else from the folder names.

    Raises:
        ValueError: There are no folders, only splits, or not as many names as folders.
    """
    found = class_folders(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no class folders; make it CLASS/image.jpg, one folder for each class"
        )
    check_no_splits(folder)
    by_folder = _names_by_folder(folder)
    if by_folder is not None:
        unnamed = next((name for name in found if name not in by_folder), None)
        if unnamed is not None:
            raise ValueError(f"{folder / CLASS_NAMES[1]} has no name for the folder '{unnamed}'; add one")
        return class_files(folder, found), [by_folder[name] for name in found]
    names = _own_classes(folder)
    if names is None:
        return class_files(folder, found), [*map(words, found)]
    if len(names) != len(found):
        raise ValueError(
            f"{folder} has {counted(len(found), 'class folder')}, and {counted(len(names), 'name')} in "
            f"{CLASS_NAMES[0]}; give one name for each folder, in the order of the folders"
        )
    _check_order(folder, found)
    _check_named_alike(folder, found, names)
    return class_files(folder, found), names


def _check_order(folder: Path, found: list[str]) -> None:
    """ValueError for folders whose alphabetical and natural orders differ, such as class10 and class2."""

    def natural(name: str) -> list[tuple[bool, int, str]]:
        parts = [part for part in re.split(r"(\d+)", name) if part]
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]

    moved = next(
        (pair for pair in zip(found, sorted(found, key=natural), strict=True) if pair[0] != pair[1]), None
    )
    if moved is not None:
        raise ValueError(
            f"the folders of {folder} sort differently as text ('{moved[0]}' first) and by number ('{moved[1]}' "
            f"first), and a list of names does not say which it follows; write {CLASS_NAMES[1]} as "
            f'{{"{moved[0]}": "its name", …}}'
        )


def _check_named_alike(folder: Path, found: list[str], names: list[str]) -> None:
    """ValueError for names that are the folders' own in another order, which would label all images wrongly."""
    of_folders, given = ([_plain(name) for name in some] for some in (found, names))
    if of_folders != given and sorted(of_folders) == sorted(given):
        first = next(
            place for place, pair in enumerate(zip(of_folders, given, strict=True)) if len(set(pair)) > 1
        )
        raise ValueError(
            f"the list of names in {folder} has the folders' own names in another order: it calls the folder "
            f"'{found[first]}' '{names[first]}'; sort it like the folders, or remove it"
        )


def _plain(name: str) -> str:
    """A name of a class or its folder without case, hyphens, and a number before it ("001.Black_footed_Albatross")."""
    return re.sub(r"^\d+[\W_]+(?=\w)", "", words(name.replace("-", " "))).casefold()


def read_shards(shards: Sequence[Path], border: int = 0) -> tuple[Shards, list[str]]:
    """Read webdataset tars; the class names are beside them or one folder up, in the order of the labels.

    Raises:
        ValueError: There are no class names, folders of shards have different ones, or a shard is damaged.
    """
    first, *others = dict.fromkeys(shard.parent for shard in shards)
    names = _shard_classes(first)
    if names is None:
        raise ValueError(
            f"the shards in {first} have no class names: put a {CLASS_NAMES[0]} beside them, "
            "one name a line, in the order of the labels"
        )
    # The labels of a shard are places in its own list.
    other = next((folder for folder in others if (_shard_classes(folder) or names) != names), None)
    if other is not None:
        raise ValueError(
            f"the shards in {first} and {other} have different class names; name them as two sets"
        )
    return Shards(shards, border), names


def _shard_classes(folder: Path) -> list[str] | None:
    """The class names of the shards in a folder, if any."""
    return _own_classes(folder) or _own_classes(folder.parent)


def own_shards(pattern: str) -> list[Path]:
    """The shards of a pattern, one tar, or a folder of shards, in which a `test` folder takes precedence."""
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        return folder_shards(folder / "test" if (folder / "test").is_dir() else folder)
    try:
        return find_shards(pattern)
    except ValueError:
        raise ValueError(
            f'there are no shards at {pattern}; name a tar, a folder of tars or a pattern such as "{{0..9}}.tar"'
        ) from None


def folder_shards(folder: Path) -> list[Path]:
    """0.tar, 1.tar, …: as many as nshards.txt says, or else all tars, sorted by number.

    Raises:
        ValueError: There are none, or one is missing.
    """
    if not (folder / "nshards.txt").is_file():
        shards = sorted(shards_in(folder), key=lambda path: (len(path.stem), path.stem))
        if not shards:
            raise ValueError(f"{folder} holds no shards; put 0.tar, 1.tar, … there")
        return shards
    text = read_text(folder / "nshards.txt").strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_SHARD_DIGITS):
        raise ValueError(f"{folder / 'nshards.txt'} must be a number of shards, not '{text[:40]}'")
    shards = [folder / f"{number}.tar" for number in range(int(text))]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise ValueError(
            f"{missing} is missing, though nshards.txt says {counted(len(shards), 'shard')}; fetch the set again"
        )
    return shards


def has_shards(folder: Path) -> bool:
    """Whether `folder` is a webdataset: tars in it or in one of its folders."""
    inside = (path for path in folder.iterdir() if path.is_dir() and not is_clutter(path.name))
    return any(shards_in(place) for place in (folder, *inside))


def _own_classes(folder: Path) -> list[str] | None:
    """The class names that come with a set, if any."""
    found = (folder / name for name in CLASS_NAMES)
    return next((read_names(path) for path in found if path.is_file()), None)


def read_names(path: Path) -> list[str]:
    """Class names in the order of the labels: the lines of a text, or a JSON list; ValueError for another JSON."""
    if path.suffix.lower() != ".json":
        return read_lines(path)
    names = read_json(path)
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise ValueError(f"{path} must be a list of class names, in the order of the labels")
    return names


def _names_by_folder(folder: Path) -> dict[str, str] | None:
    """{folder: class name} of a classnames.json that holds an object, if there is one."""
    path = folder / CLASS_NAMES[1]
    names = read_json(path) if path.is_file() else None
    if not isinstance(names, dict):
        return None
    if not all(map(_is_name, names.values())):
        raise ValueError(f"{path} must hold the folders with their class names, as text")
    return names


def own_templates(folder: Path) -> list[str] | None:
    """The prompts that come with a set, if any."""
    path = folder / TEMPLATES
    return [line.replace("{c}", "{}") for line in read_lines(path)] if path.is_file() else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8, is too large, or has a line that is too long.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if any(len(line) > MAX_NAME for line in lines):
        raise ValueError(f"{path} has a line of more than {MAX_NAME:,} characters; shorten it")
    return lines
