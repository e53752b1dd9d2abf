"""Sets as they come from anyone: one folder for each class, or webdataset shards with labels."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from advflyp.config import read_text
from advflyp.data.pictures import SUFFIXES, Files, Shards
from advflyp.data.prompts import words
from advflyp.data.sources import find_shards

CLASS_NAMES = ("classnames.txt", "classnames.json")
TEMPLATES = "zeroshot_classification_templates.txt"


def class_folders(folder: Path) -> list[str]:
    """The names of the visible folders in `folder`, sorted."""
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def class_files(folder: Path, classes: Sequence[str], border: int = 0) -> Files:
    """All pictures below folder/CLASS, labelled with the class's place in `classes`, sorted by path.

    ValueError for a class without pictures.
    """
    paths: list[str] = []
    labels: list[int] = []
    start = len(str(folder)) + 1
    for label, name in enumerate(classes):
        found = [
            f"{parent[start:]}/{file}"
            for parent, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
        if not found:
            raise ValueError(f"{folder / name} holds no pictures; fill the class or remove its folder")
        paths += sorted(found)
        labels += [label] * len(found)
    return Files(folder, paths, labels, border)


def read_folder(folder: Path) -> tuple[Files, list[str]]:
    """One folder for each class; names are the folders' words, or the lines of classnames.txt in their order.

    ValueError where there are no folders, or as many names as folders.
    """
    found = class_folders(folder)
    if not found:
        raise ValueError(
            f"{folder} holds no class folders; make it CLASS/picture.jpg, one folder for each class"
        )
    names = own_classes(folder) or [*map(words, found)]
    if len(names) != len(found):
        raise ValueError(
            f"{folder} has {len(found)} class folders, and {len(names)} names in {CLASS_NAMES[0]}; "
            "give one name for each folder, in the folders' alphabetical order"
        )
    return class_files(folder, found), names


def read_shards(shards: Sequence[Path], border: int = 0) -> tuple[Shards, list[str]]:
    """Webdataset tars; the class names are beside them or one folder up, in the order of the labels.

    ValueError where there are none.
    """
    names = own_classes(shards[0].parent) or own_classes(shards[0].parent.parent)
    if names is None:
        raise ValueError(
            f"the shards in {shards[0].parent} have no class names: put a {CLASS_NAMES[0]} beside them, "
            "one name a line, in the order of the labels"
        )
    return Shards(shards, border), names


def own_shards(pattern: str) -> list[Path]:
    """Shards for a pattern, one tar, or a folder of shards in which a `test` folder has precedence."""
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
    """0.tar, 1.tar, … as many as nshards.txt says, or all tars there are by number.

    ValueError where there are none, or one is missing.
    """
    if not (folder / "nshards.txt").is_file():
        shards = sorted(folder.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
        if not shards:
            raise ValueError(f"{folder} holds no shards; put 0.tar, 1.tar, … there")
        return shards
    count = int((folder / "nshards.txt").read_text())
    shards = [folder / f"{number}.tar" for number in range(count)]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(
                f"{shard} is missing, though nshards.txt says {count} shards; fetch the set again"
            )
    return shards


def has_shards(folder: Path) -> bool:
    """Whether `folder` is a webdataset: tars in it or in one of its folders."""
    return any(folder.glob("*.tar")) or any(folder.glob("*/*.tar"))


def own_classes(folder: Path) -> list[str] | None:
    """The class names that a set brings along, if it does: lines of text, or a JSON list."""
    text, listed = (folder / name for name in CLASS_NAMES)
    if text.is_file():
        return read_lines(text)
    if not listed.is_file():
        return None
    names = json.loads(read_text(listed))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{listed} must be a list of class names, in the order of the labels")
    return names


def own_templates(folder: Path) -> list[str] | None:
    """The prompts that a set brings along, if it does."""
    path = folder / TEMPLATES
    return [line.replace("{c}", "{}") for line in read_lines(path)] if path.is_file() else None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty; ValueError where it is not UTF-8."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
