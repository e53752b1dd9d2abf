"""Checks of the paths on a command line, before anything is imported or computed."""

import os
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Literal

from advflyp.config import nearest_path


def path_of(word: str, name: str) -> Path:
    """The path that was typed; ValueError if the system cannot look it up, for example because it is too long."""
    path = Path(word)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # to be made, or reported missing by the command
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}: {textwrap.shorten(word, 60)}") from None
    return path


def check_kind(path: Any, wanted: str, name: str, about: str) -> None:
    """ValueError if a path that exists is a folder, and a file is `wanted`, or the other way round.

    Args:
        path: Values that are no `Path` are not checked.
        wanted: "file" or "folder"; anything else allows both.
        name: The option or argument.
        about: Its help.
    """
    place = Path(path).expanduser() if isinstance(path, Path) else None
    if place is None or wanted not in ("file", "folder") or not place.exists():
        return
    found = "folder" if place.is_dir() else "file" if place.is_file() else "special file"
    if found != wanted:
        where = f" with {name}" if name.startswith("--") else ""
        about = about[:1].lower() + about[1:].rstrip(".")
        raise ValueError(f"{path} is a {found}; name a {wanted}{where} ({about})")


def check_model_path(name: str) -> None:
    """ValueError for a misspelled path to a model, before torch is imported.

    What may be another kind of name ("ViT-B-32/openai") counts as a path only if a similar path exists.
    """
    path = name.partition("@")[0]
    is_path = path.startswith(("/", "./", "../", "~"))
    exists = any(os.path.exists(os.path.expanduser(part)) for part in (path, name.rpartition("@")[0], name))
    if (is_path or "/" in path) and not exists:
        hint = nearest_path(path)
        if is_path or hint:
            raise ValueError(f"there is no model at {path}{hint}")


def check_output(path: Path, kind: Literal["file", "folder"], name: str) -> None:
    """ValueError unless a file or folder can be written at `path`, as far as can be told beforehand.

    Nothing is left behind: the trial file has no name.
    """
    is_there = path.exists()
    if kind == "folder" and is_there and not path.is_dir():
        raise ValueError(f"{path} is a file; name a folder with {name}")
    if kind == "file" and path.is_dir():
        raise ValueError(f"{path} is a folder; name a file with {name}, for example {path / 'results.jsonl'}")
    if kind == "file" and is_there and not path.is_file():
        raise ValueError(f"{path} is not a regular file; name another with {name}")
    if is_there and not os.access(path, os.W_OK):
        raise ValueError(f"no permission to write to {path}; name another {kind} with {name}")
    folder = path.absolute() if kind == "folder" else path.absolute().parent
    near = next(place for place in (folder, *folder.parents) if place.exists())
    if not near.is_dir():
        raise ValueError(f"{near} is not a folder; name another {kind} with {name}")
    try:
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(
            f"cannot write to {near} ({error.strerror}); name another {kind} with {name}"
        ) from None
