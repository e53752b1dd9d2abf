"""Importing torch."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within, no garbage is collected, and what has been imported is never looked at again.

    Importing torch makes a million objects that stay; to search them for garbage again and again takes more than half a
    second of every command.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # in a process that calls several commands, later ones import little
            gc.freeze()
            atexit.register(gc.unfreeze)
        gc.enable()
