"""Classify files by name: images, captions, parts of webdataset samples, and files that belong to no dataset."""

import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Written by cameras, but read by Pillow only with a plugin. They count as images, so that none is silently ignored.
PLUGIN_SUFFIXES = ("heic", "heif", "hif", "jxl")
IMAGE_SUFFIXES = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jp2", "ppm", "pgm", "pbm", "pnm",
    *PLUGIN_SUFFIXES,
)  # fmt: skip
# In order of preference: the first one present holds an image's captions.
CAPTION_SUFFIXES = ("txt", "caption", "json")
# Of a path in a tar, as in file systems; looking for the sample of an extra file takes quadratic time.
MAX_PATH = 4096
LABEL_SUFFIX = "cls"
KNOWN = {*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, LABEL_SUFFIX}
SHARD = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$", re.IGNORECASE)
# What operating systems leave behind, besides files and folders whose names begin with a dot.
CLUTTER = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "thumbs.db",
    "desktop.ini",
}
# Texts about a dataset, which are no image's caption.
DOCUMENTS = {"readme", "license", "licence", "copying", "notice", "changelog", "authors", "citation"}


@dataclass(frozen=True, slots=True)
class Member:
    """The name of a file that is part of a sample; `parse_member` makes one.

    Attributes:
        key: The sample's key.
        suffix: In lower case, one of KNOWN.
        base: webdataset's key, which ends at the first dot of the file name; differs from `key` if `key` has dots.
    """

    key: str
    suffix: str
    base: str


def parse_member(path: str) -> Member | None:
    """Parse the name of a file in a tar; None if the file is not part of a sample, or the name too long.

    As in webdataset, a key ends at the first dot of the file name: 0001.jpg, 0001.txt. If what follows is not a known
    suffix, the key ends at the last dot: the key of photo_v1.7.jpg is photo_v1.7. Such a file may also be an extra file
    of a webdataset sample, as 0001.mask.png is of 0001; see `is_extra`.
    """
    if len(path) > MAX_PATH:
        return None
    folder, slash, name = path.rpartition("/")
    base, _, rest = name.partition(".")
    if is_clutter(path) or not base or base.lower() == "readme":
        return None
    folder += slash
    if rest.lower() in KNOWN:
        return Member(folder + base, rest.lower(), folder + base)
    stem, _, last = name.rpartition(".")
    return Member(folder + stem, last.lower(), folder + base) if last.lower() in KNOWN else None


def writable(name: str) -> str:
    """The name with question marks in place of anything that cannot be encoded as UTF-8."""
    return name.encode("utf-8", "replace").decode()


def is_extra(key: str, known: Container[str]) -> bool:
    """Whether an incomplete sample is only an extra file of a sample in `known`, as 0001.mask.png is of 0001."""
    folder, slash, name = key.rpartition("/")
    while "." in name:
        name = name.rpartition(".")[0]
        if folder + slash + name in known:
            return True
    return False


def is_document(key: str) -> bool:
    """Whether a text without an image describes the dataset: README, LICENSE, …"""
    return key.rpartition("/")[2].lower() in DOCUMENTS


def is_image(path: str) -> bool:
    """Whether the suffix is that of an image."""
    return path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def images_among(files: Sequence[str]) -> list[str]:
    """The images among a folder's files. If one comes in several formats, those that need a plugin are dropped."""
    found = [(file, *file.rpartition(".")[::2]) for file in files if is_image(file)]
    plain = {stem for _, stem, suffix in found if suffix.lower() not in PLUGIN_SUFFIXES}
    return [
        file for file, stem, suffix in found if suffix.lower() not in PLUGIN_SUFFIXES or stem not in plain
    ]


def is_shard(path: str) -> bool:
    """Whether the suffix is that of a tar, compressed or not."""
    return SHARD.search(path) is not None and not is_clutter(path.rpartition("/")[2])


def shards_in(folder: Path) -> list[Path]:
    """The tars directly inside a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if is_shard(path.name) and path.is_file())


def is_clutter(path: str) -> bool:
    """Whether an operating system or a program made it for itself: .DS_Store, ._0001.jpg, __MACOSX/, Thumbs.db, …"""
    return any(
        part.lower() in CLUTTER or (part.startswith(".") and part not in (".", ".."))
        for part in path.split("/")
    )


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """`folder` and all folders below it with the names of their files, both sorted and without clutter.

    Links are followed; a folder that is reached in several ways is visited once. ValueError for one that cannot be
    read.
    """

    def failed(error: OSError) -> None:
        raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    visited: set[str] = set()
    for where, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(where)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_clutter(name))
        yield Path(where), sorted(name for name in files if not is_clutter(name))
