"""The kinds of hostile inputs: what makes one, and by how many bytes it may let the process grow."""

import random
from collections.abc import Callable
from pathlib import Path

from advflyp.data.limits import MAX_PIXELS
from fuzz import documents, images, names, recipes, tables, tars, weights

Make = Callable[[random.Random, Path], Callable[[], object]]
MB = 1 << 20
KINDS: dict[str, tuple[Make, int]] = {
    "tars": (tars.make, 64 * MB),
    "tables": (tables.make, 64 * MB),
    # Pillow has four bytes a pixel, and up to six copies of an image while it is converted.
    "images": (images.make, 24 * MAX_PIXELS),
    "documents": (documents.make, 256 * MB),
    "recipes": (recipes.make, 64 * MB),
    "names": (names.make, 64 * MB),
    "weights": (weights.make, 256 * MB),
}
