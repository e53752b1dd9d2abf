"""Where the pictures of a labelled set are: labels at once, each picture decoded when it is asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Everything Pillow raises for a file that is no picture, or only half of one.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class Pictures(Sequence[tuple[Image.Image, int]]):
    """A sequence of (picture, class index) whose labels and keys are known without decoding.

    labels: (n,) int64
    `picture` is called from several threads at once and raises one of UNREADABLE where there is no picture.
    """

    labels: Tensor

    def __init__(self, labels: Sequence[int] | np.ndarray | Tensor) -> None:
        self.labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self.picture(index), int(self.labels[index])

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """Decoded."""

    @abstractmethod
    def key(self, index: int) -> str:
        """What the picture is called: unique in the set, the same on every machine."""


class Files(Pictures):
    """Picture files; keys are paths below `folder`.

    border: pixels to cut off on each side
    """

    def __init__(
        self, folder: Path, paths: Sequence[str | Path], labels: Sequence[int], border: int = 0
    ) -> None:
        super().__init__(labels)
        assert len(paths) == len(labels)
        self.folder = folder
        # Text below the folder, not Path objects: ImageNet's training part has 1.3 million.
        self.paths = [Path(path).relative_to(folder).as_posix() for path in paths]
        self.border = border

    def picture(self, index: int) -> Image.Image:
        image = Image.open(self.folder / self.paths[index])
        image.load()
        if self.border:
            width, height = image.size
            image = image.crop((self.border, self.border, width - self.border, height - self.border))
        return image

    def key(self, index: int) -> str:
        return self.paths[index]


class Arrays(Pictures):
    """(n, H, W, 3) uint8 pixels in memory, for sets that come as one array."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int] | np.ndarray) -> None:
        super().__init__(labels)
        assert len(pixels) == len(self.labels)
        self.pixels = pixels

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))

    def key(self, index: int) -> str:
        return f"{index:05d}"


class Memory(Pictures):
    """Decoded pictures, for small sets."""

    def __init__(self, pictures: Sequence[Image.Image], keys: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(labels)
        assert len(pictures) == len(keys) == len(labels)
        self.pictures, self.keys = pictures, keys

    def picture(self, index: int) -> Image.Image:
        return self.pictures[index]

    def key(self, index: int) -> str:
        return self.keys[index]


class Part(Pictures):
    """The pictures at `index` of another sequence; they keep their keys."""

    def __init__(self, whole: Pictures, index: Sequence[int]) -> None:
        super().__init__(whole.labels[torch.as_tensor(index, dtype=torch.int64)])
        self.whole, self.places = whole, index

    def picture(self, index: int) -> Image.Image:
        return self.whole.picture(self.places[index])

    def key(self, index: int) -> str:
        return self.whole.key(self.places[index])


def decode(file: BinaryIO | bytes) -> Image.Image:
    """Bytes as a picture, decoded to the end."""
    image = Image.open(BytesIO(file) if isinstance(file, bytes) else file)
    image.load()
    return image
