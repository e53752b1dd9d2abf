"""Model repositories on the Hugging Face hub: which files they hold, fetched or from the cache of the hub's client.

Everything that this package downloads of a model comes through here, as data: open_clip and transformers get local
files. Without a network their own downloads retry for minutes, and they would also fetch programs.
"""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # type: ignore[attr-defined]  # its client's, whichever that is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

HUB_PREFIX = "hf-hub:"
# Seconds to connect to each address of the hub, and to wait for its answer.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 3.0, 10.0
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
INSTEAD = "or name a local folder or checkpoint file instead"


@dataclass(frozen=True)
class Repository:
    """A repository that can be read.

    files:  names of the files at its root; where the hub could not be asked, of those that are in the cache
    cached: the folder of these, where the hub could not be asked
    """

    name: str
    files: frozenset[str]
    cached: Path | None = None

    def fetch(self, names: Iterable[str]) -> Path:
        """A folder with these of its files, and perhaps others. ValueError where they cannot be fetched."""
        names = list(names)
        try:
            folder = self.cached or Path(
                snapshot_download(self.name, allow_patterns=[*map(glob.escape, names)])
            )
        except (HTTPError, OSError, ValueError) as error:
            raise ValueError(_explained(self.name, error)) from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(f"{missing[0]} of {self.name} could not be fetched: try again, {INSTEAD}")
        return folder


def open_repository(name: str) -> Repository:
    """The repository OWNER/NAME. Where the hub does not answer, what the cache holds of it.

    ValueError where there is none, it may not be read, or it is not in the cache.
    """
    # An address that answers nobody must not cost minutes.
    timeout: Any = (CONNECT_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT)
    try:
        siblings = HfApi().model_info(name, timeout=timeout).siblings or []
    except HFValidationError:
        raise ValueError(f"'{name}' is no repository's name: write {HUB_PREFIX}OWNER/NAME") from None
    except (HTTPError, OSError, ValueError) as error:
        folder = _cached(name)
        if folder is None:
            raise ValueError(_explained(name, error)) from None
        return Repository(name, frozenset(path.name for path in folder.iterdir()), folder)
    return Repository(name, frozenset(file.rfilename for file in siblings if "/" not in file.rfilename))


def _cached(name: str) -> Path | None:
    try:
        # Patterns that ask for nothing: newer clients refuse a folder that lacks what was asked for.
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=[]))
    except (OSError, ValueError):
        return None


def _explained(name: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: ask for access at {constants.ENDPOINT}/{name}, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no repository {name}, or it is private: check the name; if it is private, {LOG_IN}"
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub does not let this token read {name} (answer {status}): {LOG_IN}"
        return f"the hub answered {status} for {name}: try again later, {INSTEAD}"
    if isinstance(error, OfflineModeIsEnabled):
        where = f"{name} is not in the hub's cache ({constants.HF_HUB_CACHE})"
        return f"{where} and HF_HUB_OFFLINE is set: unset it, {INSTEAD}"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError):
        return (
            f"the hub ({constants.ENDPOINT}) cannot be reached and {name} is not in its cache "
            f"({constants.HF_HUB_CACHE}): check the network, copy the cache from a machine that has it, {INSTEAD}"
        )
    if isinstance(error, OSError):
        return f"cannot store {name} in {constants.HF_HUB_CACHE}: {error.strerror or error}"
    return (
        f"what answers at {constants.ENDPOINT} is not the hub: check the network and HF_ENDPOINT, {INSTEAD}"
    )
