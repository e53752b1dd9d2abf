"""Methods, sets and attacks of a user's own, named "module:object" in a recipe or on the command line."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def is_own(name: str) -> bool:
    """Whether `name` is of that form."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def own(name: str) -> Any:
    """The object; its module is found as Python finds modules, and in the current folder.

    ValueError where there is no such module or object.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # one that the module itself needs
        raise ValueError(f"'{name}': there is no module {module}, neither installed nor in {here}") from None
    finally:
        sys.path.remove(here)
    if not hasattr(found, attribute):
        raise ValueError(f"'{name}': {found.__file__} has no {attribute}")
    return getattr(found, attribute)
