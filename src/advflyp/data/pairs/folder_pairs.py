"""Pairs as files: name.jpg with name.txt beside it, or images/name.jpg with captions/name.txt."""

import os
from pathlib import Path

from advflyp.data.filenames import (
    CAPTION_SUFFIXES,
    images_among,
    is_clutter,
    is_document,
    is_image,
    walk,
    writable,
)
from advflyp.data.pairs.samples import Sample
from advflyp.wording import counted

IMAGES, CAPTIONS = "images", "captions"


class FolderPairs:
    """Every image below `folder`, in the order of the paths; then every text without an image, which is skipped.

    A text (name.txt, name.caption, or name.json with a caption in it) stands beside its image, or in a folder
    `captions` beside the folder `images`, as the paper's release has them (part0/images/1.jpg, part0/captions/1.txt).

    Args:
        folder: The folder.
        captions: Whether captions are required.

    Raises:
        ValueError: There is no pair at all, or no image.
    """

    def __init__(self, folder: Path, captions: bool = True) -> None:
        self.folder = folder
        self.images, self.texts, self.lonely = _find(folder)
        if not (any(self.texts) if captions else self.images):
            count = f"{counted(len(self.images), 'image')} but no caption" if self.images else "no image"
            raise ValueError(
                f"{folder} holds {count}: put a name.txt beside every name.jpg, or name *.tar shards"
            )

    def __len__(self) -> int:
        return len(self.images) + len(self.lonely)

    def __getitem__(self, number: int) -> Sample:
        if number >= len(self.images):
            lonely = self.lonely[number - len(self.images)]
            return Sample(self._key(lonely), None, Path(lonely))
        image, text = self.images[number], self.texts[number]
        return Sample(self._key(image), image, None if text is None else Path(text))

    def _key(self, path: str) -> str:
        return writable(os.path.relpath(path, self.folder))


def has_pairs(folder: Path) -> bool:
    """Whether any image below `folder` has a caption."""
    return any(_find(folder)[1])


def pair_in(folder: Path) -> str | None:
    """An image directly inside `folder` that has a caption beside it."""
    names = sorted(path.name for path in folder.iterdir() if not is_clutter(path.name))
    split = [name.rpartition(".") for name in names]
    texts = {stem for stem, _, suffix in split if stem and suffix.lower() in CAPTION_SUFFIXES}
    return next(
        (name for name, (stem, *_) in zip(names, split, strict=True) if is_image(name) and stem in texts),
        None,
    )


def _find(folder: Path) -> tuple[list[str], list[str | None], list[str]]:
    """Every image, the text of each, and the texts without an image."""
    beside = _captions_beside(folder)
    found: list[tuple[Path, str, str]] = []  # folder, name without suffix, path
    texts: dict[Path, dict[str, str]] = {}  # path without suffix: {suffix: path}
    for place in [folder] if beside is None else [folder, beside]:
        for where, files in walk(place):
            images = set(images_among(files))
            for name in files:
                stem, dot, suffix = name.rpartition(".")
                if dot and suffix.lower() in CAPTION_SUFFIXES:
                    texts.setdefault(where / stem, {})[suffix.lower()] = str(where / name)
                elif name in images and place is folder:
                    found.append((where, stem, str(where / name)))
    # If several files share a name, the one that holds the captions.
    first = {
        place: next(files[one] for one in CAPTION_SUFFIXES if one in files) for place, files in texts.items()
    }
    own: list[Path | None] = []
    for where, stem, _ in found:
        apart = beside if where == folder else where.with_name(CAPTIONS) if where.name == IMAGES else None
        places = [where / stem] if apart is None else [where / stem, apart / stem]
        own.append(next((place for place in places if place in texts), None))
    paired = set(own)
    # A lone JSON file may be about anything.
    lonely = [
        first[place]
        for place, files in texts.items()
        if place not in paired and files.keys() != {"json"} and not is_document(place.name)
    ]
    return [path for _, _, path in found], [first[one] if one else None for one in own], sorted(lonely)


def _captions_beside(folder: Path) -> Path | None:
    """The folder `captions` beside a folder that is itself called `images`; else None."""
    real = folder.resolve()
    captions = real.with_name(CAPTIONS)
    return captions if real.name == IMAGES and captions.is_dir() else None
