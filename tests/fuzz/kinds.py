"""The kinds of hostile inputs, and what one of them may cost."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from advflyp.limits import MAX_PIXELS
from fuzz import documents, faulty, images, names, recipes, tables, tars, weights

MB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """What makes an input in a folder, and returns a call that reads it.

    share:   of the 10,000 inputs
    memory:  bytes by which the process may grow meanwhile
    seconds: of processor. Most inputs take milliseconds
    """

    make: Callable[[random.Random, Path], Callable[[], object]]
    share: int
    memory: int = 64 * MB
    seconds: float = 5.0


KINDS = {
    "tars": Kind(tars.make, 2500),
    "tables": Kind(tables.make, 2500),
    # Pillow has four bytes a pixel, and up to six copies of an image while it is converted.
    "images": Kind(images.make, 2500, memory=24 * MAX_PIXELS),
    "documents": Kind(documents.make, 1000, memory=256 * MB),
    "recipes": Kind(recipes.make, 500),
    "names": Kind(names.make, 500),
    "weights": Kind(weights.make, 500, memory=256 * MB),
}
# Every input of this one is a fault.
FAULTY = Kind(faulty.make, 0, seconds=0.5)
