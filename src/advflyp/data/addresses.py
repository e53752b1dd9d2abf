"""Files by pattern, on this machine or anywhere fsspec reaches (s3, gs, https, hf, …)."""

from pathlib import Path
from typing import Any, BinaryIO, cast

import braceexpand
import fsspec

from advflyp.data.filenames import is_clutter

GLOB = set("*?[")


def is_remote(address: str) -> bool:
    """Whether it is fsspec's: s3://…, https://…"""
    return "://" in address


def open_binary(address: str) -> BinaryIO:
    """Readable and seekable; ValueError where it cannot be opened."""
    try:
        return cast(BinaryIO, _remote_file(address) if is_remote(address) else open(address, "rb"))
    except FileNotFoundError:
        raise ValueError(f"there is no {address}") from None
    except ImportError as error:
        raise ValueError(f"{address} needs another package: {error}") from None
    except Exception as error:
        # Every file system of fsspec has errors of its own.
        raise ValueError(f"cannot open {address}: {type(error).__name__}: {error}") from None


def expand(pattern: str, inside: str) -> list[str]:
    """The files that a pattern with {braces} and *globs* names, sorted within each brace.

    inside: glob of the files that a folder stands for, such as "*.tar*"; a remote folder ends with "/"
    ValueError, naming it, for a part that matches nothing. Other remote names without a glob are taken as they are.
    """
    found: list[str] = []
    for one in braceexpand.braceexpand(pattern):
        matches = (
            _remote(one + inside if one.endswith("/") else one) if is_remote(one) else _local(one, inside)
        )
        if not matches:
            raise ValueError(f"there is nothing at {one}")
        found += matches
    return list(dict.fromkeys(found))


def _local(one: str, inside: str) -> list[str]:
    path = Path(one).expanduser()
    if path.is_dir():
        return [str(p) for p in sorted(path.glob(inside)) if not is_clutter(p.name)]
    if path.is_file():
        return [str(path)]
    if not path.name:
        return []
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{one} is a device, which has no end")
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    found = sorted(anchor.glob(str(path.relative_to(path.anchor))))
    return [str(p) for p in found if path.name.startswith(".") or not is_clutter(p.name)]


def _remote(one: str) -> list[str]:
    if not GLOB & set(one):
        return [one]
    try:
        system, path = fsspec.url_to_fs(one)
        found = sorted(match for match in system.glob(path) if not is_clutter(match.rpartition("/")[2]))
        return [system.unstrip_protocol(match) for match in found]
    except Exception as error:
        raise ValueError(f"cannot list {one}: {type(error).__name__}: {error}") from None


def _remote_file(address: str) -> Any:
    system, path = fsspec.url_to_fs(address)
    return system.open(path, "rb")
