"""Adversarial images of a result, kept without loss: one compressed NumPy file for each.

`numpy.load(path)["image"]` is (3, H, W) float32 in [0, 1], bit-identical to what was classified. A PNG holds multiples
of 1/255 only: rounding moves a pixel by up to 1/510, half of an ε of 1/255.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import Tensor

from advflyp.documents import read_json_object
from advflyp.evaluation.results import Cell
from advflyp.files import write_atomically, write_text

# Written last, with the number of images: a folder that holds it and them is complete.
DONE = "cell.json"
SUFFIX = ".npz"


class SavedImages:
    """The folder of a cell's images below `folder`; `00012.npz` is the image at place 12 of the dataset.

    An image that is misclassified when clean is not attacked, and has no file.
    """

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.folder = folder / cell.slug()

    @property
    def is_complete(self) -> bool:
        with suppress(FileNotFoundError, ValueError):
            images = read_json_object(self.folder / DONE).get("images")
            return images == sum(name.endswith(SUFFIX) for name in os.listdir(self.folder))
        return False

    def keep(self, index: Tensor, images: Tensor) -> None:
        """Write images (M, 3, H, W) of the places (M,); they replace those of an earlier stage of the attack."""
        for place, image in zip(index.tolist(), images.detach().cpu().numpy(), strict=True):
            with write_atomically(self.folder / f"{place:05d}{SUFFIX}") as file:
                np.savez_compressed(file, image=image)

    def finish(self, cell: Cell, *, images: int) -> None:
        """Mark the folder as complete, and record its cell and how many images it holds."""
        write_text(self.folder / DONE, json.dumps({**asdict(cell), "images": images}, indent=1) + "\n")
