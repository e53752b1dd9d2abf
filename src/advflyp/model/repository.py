"""Repositories on the Hugging Face hub: which files they hold, fetched or from the cache of the hub's client.

Everything that this package downloads of a model comes through here, as data: open_clip and transformers get local
files. Without a network their own downloads retry for minutes, and they would also fetch programs. For the same reason
the hub is asked here before `datasets` or fsspec fetch anything.
"""

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
DATASET_PREFIX = "hf:"
# Seconds to connect to each address of the hub, and to wait for its answer.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 3.0, 10.0
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
# What else may be named, by the kind of repository.
INSTEAD = {
    "model": "or name a local folder or checkpoint file instead",
    "dataset": "or name a local folder or table instead",
}
Kind = Literal["model", "dataset"]


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
            raise ValueError(_explained(self.name, "model", error)) from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(
                f"{missing[0]} of {self.name} could not be fetched: try again, {INSTEAD['model']}"
            )
        return folder


def open_repository(name: str) -> Repository:
    """The model repository OWNER/NAME. Where the hub does not answer, what the cache holds of it.

    ValueError where there is none, it may not be read, or it is not in the cache.
    """
    try:
        files = ask_hub(name)
    except ValueError:
        folder = _cached(name)
        if folder is None:
            raise
        return Repository(name, frozenset(path.name for path in folder.iterdir()), folder)
    return Repository(name, frozenset(file for file in files if "/" not in file))


def ask_hub(name: str, kind: Kind = "model") -> list[str]:
    """The names of all files of a repository. Answers in seconds, whatever the network is like.

    Args:
        name: OWNER/NAME.
        kind: What the repository holds.

    Raises:
        ValueError: The hub cannot be reached, has no such repository, or does not let the user read it.
    """
    # An address that answers nobody must not cost minutes.
    timeout: Any = (CONNECT_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT)
    try:
        found = HfApi().repo_info(name, repo_type=kind, timeout=timeout)
    except HFValidationError:
        prefix = HUB_PREFIX if kind == "model" else DATASET_PREFIX
        raise ValueError(f"'{name}' is no repository's name: write {prefix}OWNER/NAME") from None
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(_explained(name, kind, error)) from None
    return [file.rfilename for file in found.siblings or []]


@contextmanager
def hub_offline() -> Iterator[None]:
    """Within, the hub's client answers from its cache at once, as with HF_HUB_OFFLINE, which is read too early."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _cached(name: str) -> Path | None:
    try:
        # Patterns that ask for nothing: newer clients refuse a folder that lacks what was asked for.
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=[]))
    except (OSError, ValueError):
        return None


def _explained(name: str, kind: Kind, error: Exception) -> str:
    instead = INSTEAD[kind]
    what = name if kind == "model" else f"the dataset {name}"
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return f"{what} is gated: ask for access at {page}, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        noun = "repository" if kind == "model" else kind
        return f"the hub has no {noun} {name}, or it is private: check the name; if it is private, {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"the hub does not let this token read {what} (answer {status}): {LOG_IN}"
        return f"the hub answered {status} for {what}: try again later, {instead}"
    if isinstance(error, OfflineModeIsEnabled):
        where = f"{what} is not in the hub's cache ({constants.HF_HUB_CACHE})"
        return f"{where} and HF_HUB_OFFLINE is set: unset it, {instead}"
    if isinstance(error, HTTPError | ConnectionError | TimeoutError | LocalEntryNotFoundError):
        if kind == "dataset":
            return (
                f"the hub ({constants.ENDPOINT}) cannot be reached and no copy of {what} is on this machine: check the "
                f"network, {instead}"
            )
        return (
            f"the hub ({constants.ENDPOINT}) cannot be reached and {what} is not in its cache "
            f"({constants.HF_HUB_CACHE}): check the network, copy the cache from a machine that has it, {instead}"
        )
    if isinstance(error, OSError):
        return f"cannot store {what} in {constants.HF_HUB_CACHE}: {error.strerror or error}"
    return (
        f"what answers at {constants.ENDPOINT} is not the hub: check the network and HF_ENDPOINT, {instead}"
    )
