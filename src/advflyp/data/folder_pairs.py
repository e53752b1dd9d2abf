"""Pairs as files: name.jpg with name.txt beside it, or images/name.jpg with captions/name.txt."""

import os
from pathlib import Path

from advflyp.data.samples import IMAGE_SUFFIXES, Sample

IMAGES, CAPTIONS = "images", "captions"


class FolderPairs:
    """Every picture below `folder`, in the order of the paths; then every text without a
    picture; half a pair is one that cannot be used.

    A text stands beside its picture, or in a folder `captions` beside the folder `images`, as the paper's release has
    them (part0/images/1.jpg, part0/captions/1.txt).
    ValueError where there is no pair at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[str] = []
        texts: set[str] = set()
        for where, folders, files in os.walk(folder):
            folders.sort()
            for name in sorted(files):
                suffix = name.rpartition(".")[2].lower()
                if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                    self.images.append(os.path.join(where, name))
                elif suffix == "txt":
                    texts.add(os.path.join(where, name))
        paired = {str(self._text(image)) for image in self.images} & texts
        if not paired:
            found = f"{len(self.images)} images but no caption" if self.images else "no image"
            raise ValueError(
                f"{folder} holds {found}: put a name.txt beside every name.jpg, or name *.tar shards"
            )
        self.lonely = sorted(texts - paired)

    def __len__(self) -> int:
        return len(self.images) + len(self.lonely)

    def sample(self, number: int) -> Sample:
        if number >= len(self.images):
            text = self.lonely[number - len(self.images)]
            return Sample(self._key(text), None, Path(text))
        image = self.images[number]
        text = self._text(image)
        return Sample(self._key(image), image, text if text.is_file() else None)

    def _key(self, path: str) -> str:
        # A name that is not UTF-8 could be written nowhere.
        return os.path.relpath(path, self.folder).encode("utf-8", "replace").decode()

    def _text(self, image: str) -> Path:
        path = Path(image)
        if path.parent.name == IMAGES:
            return path.parent.with_name(CAPTIONS) / f"{path.stem}.txt"
        return path.with_suffix(".txt")
