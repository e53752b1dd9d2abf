"""Folders that are replaced as a whole."""

import ctypes
import os
import shutil
from pathlib import Path

# Of Linux, from fcntl.h.
_CURRENT_FOLDER, _RENAME_EXCHANGE = -100, 2


def replace_folder(draft: Path, folder: Path) -> None:
    """Rename the folder `draft` to `folder`, and delete what was there before.

    Where the system can exchange two folders, `folder` is the old or the new one at every moment, whenever the process
    is killed. Elsewhere it is missing for an instant; `recover_folder` undoes a replacement that was interrupted then.
    """
    recover_folder(folder)
    if not folder.exists():
        draft.rename(folder)
    elif _exchange(draft, folder):
        shutil.rmtree(draft)
    else:
        folder.rename(_old(folder))
        draft.rename(folder)
        shutil.rmtree(_old(folder))


def recover_folder(folder: Path) -> None:
    """Bring `folder` back where its replacement was interrupted between two renamings; delete what is left of one."""
    old = _old(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two have each other's name now, in one step."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc's, from 2.28
    if rename is None:
        return False
    paths = [os.fsencode(path) for path in (one, other)]
    return rename(_CURRENT_FOLDER, paths[0], _CURRENT_FOLDER, paths[1], _RENAME_EXCHANGE) == 0
