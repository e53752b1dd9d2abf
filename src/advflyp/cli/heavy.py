"""Importing torch."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within the block, collect no garbage; afterwards, exclude what was imported from garbage collection.

    Importing torch makes a million objects that stay; searching them for garbage again and again takes every command
    more than half a second.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # in a process that calls several commands, later ones import little
            gc.freeze()
            atexit.register(gc.unfreeze)
        gc.enable()
