"""A user's own methods, datasets and attacks, named "module:object" in a recipe or on the command line."""

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def is_import_path(name: str) -> bool:
    """Whether `name` has the form "module:object"."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) is not None


def load_object(import_path: str) -> Any:
    """The object that "module:object" names; the current folder is searched as well as installed packages.

    Raises:
        ValueError: There is no such module or object.
    """
    module, _, attribute = import_path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # an import inside the module failed
        raise ValueError(
            f"'{import_path}': there is no module {module}, neither installed nor in {here}"
        ) from None
    finally:
        sys.path.remove(here)
    if not hasattr(found, attribute):
        # Neither a built-in module nor a folder without __init__.py has a file.
        where = getattr(found, "__file__", None) or f"the module {module}"
        raise ValueError(f"'{import_path}': {where} has no {attribute}")
    return getattr(found, attribute)
