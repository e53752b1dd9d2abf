"""Documented names that have moved: they still work, with a warning, and will be removed in the next release."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def forward(old: str, new: str) -> Callable[[str], Any]:
    """A `__getattr__` for the module `old`, whose names have moved to `new`.

    Args:
        old: The module's `__name__`.
        new: The module that replaces it.
    """

    def get(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {old} has no attribute {name}")
        found = getattr(import_module(new), name)
        warnings.warn(f"{old}.{name} is now {new}.{name}", DeprecationWarning, stacklevel=2)
        return found

    return get
