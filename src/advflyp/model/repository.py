"""Repositories on the Hugging Face hub: list and fetch their files, or read them from the hub client's cache.

Every download of a model goes through here, as data: open_clip and transformers get local files. Without a network
their own downloads retry for minutes, and they would also fetch code. For the same reason the hub is queried here
before `datasets` or fsspec fetch anything.
"""

import glob
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    RevisionNotFoundError,
)

from advflyp.files import file_sha256

HUB_PREFIX = "hf-hub:"
HF_CONFIG_FILE = "config.json"  # of transformers
DATASET_PREFIX = "hf:"
# Seconds to connect to each address of the hub, and to wait for its answer.
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 3.0, 10.0
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
# Advice on what to name instead, by the kind of repository.
INSTEAD = {
    "model": "or name a local folder or checkpoint file instead",
    "dataset": "or name a local folder or table instead",
}
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Address:
    """What an address on the hub names.

    Attributes:
        repository: OWNER/NAME.
        file: The path of a file in it; None for the repository as a whole.
        base: The model that supplies what the repository lacks (any name that `load_model` takes), if named.
    """

    repository: str
    file: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """The address as users write it."""
        file = f"/{self.file}" if self.file else ""
        return f"{HUB_PREFIX}{self.repository}{file}{f'@{self.base}' if self.base else ''}"


def read_address(name: str) -> Address:
    """Read hf-hub:OWNER/NAME, with or without /FILE and @MODEL.

    Raises:
        ValueError: If no model follows the @.
    """
    path, at, base = name.removeprefix(HUB_PREFIX).partition("@")
    if at and not base:
        raise ValueError(f"{name}: name a model after the @, as in {name}ViT-B-32/openai")
    owner, _, rest = path.partition("/")
    repository, _, file = rest.partition("/")
    return Address(f"{owner}/{repository}" if repository else path, file or None, base or None)


@dataclass(frozen=True)
class Repository:
    """A repository that can be read.

    Attributes:
        name: OWNER/NAME.
        paths: The paths of its files; if the hub could not list them, of those in the cache.
        cached: The cache's folder, if the hub could not list the files.
        revision: The commit to read; None for the newest.
        sha256: Expected SHA-256 hashes by file name.
    """

    name: str
    paths: frozenset[str]
    cached: Path | None = None
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> frozenset[str]:
        """The files at its root."""
        return frozenset(path for path in self.paths if "/" not in path)

    def fetch(self, names: Iterable[str]) -> Path:
        """Fetch files.

        Returns:
            A folder with these files, and perhaps others.

        Raises:
            ValueError: If a file cannot be fetched, or does not have the expected hash.
        """
        names = list(names)
        try:
            folder = self.cached or Path(
                snapshot_download(
                    self.name, revision=self.revision, allow_patterns=[*map(glob.escape, names)]
                )
            )
        except (HTTPError, OSError, ValueError) as error:
            raise ValueError(_explained(self.name, "model", error)) from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ValueError(
                f"{missing[0]} of {self.name} could not be fetched: try again, {INSTEAD['model']}"
            )
        for name in names:
            self._check_hash(folder, name)
        return folder

    def _check_hash(self, folder: Path, name: str) -> None:
        if (wanted := self.sha256.get(name)) is None:
            return
        found = file_sha256(folder / name)
        if found != wanted:
            raise ValueError(
                f"{name} of {self.name} has the SHA-256 {found[:16]}… instead of the expected {wanted[:16]}…: it "
                f"was changed, or the download is damaged; delete {folder / name} to fetch it again"
            )


def open_repository(
    name: str, revision: str | None = None, sha256: Mapping[str, str] | None = None
) -> Repository:
    """Open a model repository; if the hub cannot list its files, open what the cache holds of it.

    Args:
        name: OWNER/NAME.
        revision: The full hash of a commit; None for the newest.
        sha256: Expected SHA-256 hashes by file name.

    Raises:
        ValueError: If the hub does not list it (unknown, not readable, or no network) and the cache does not hold it.
    """
    try:
        return Repository(name, frozenset(ask_hub(name, revision=revision)), None, revision, sha256 or {})
    except ValueError:
        folder = _cached(name, revision)
        if folder is None:
            raise
        found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return Repository(name, frozenset(found), folder, revision, sha256 or {})


def ask_hub(name: str, kind: Kind = "model", *, revision: str | None = None) -> list[str]:
    """List all files of a repository; takes seconds at most, whatever the network is like.

    Args:
        name: OWNER/NAME.
        kind: What the repository holds.
        revision: The full hash of a commit; None for the newest.

    Raises:
        ValueError: The hub cannot be reached, has no such repository, or does not let the user read it.
    """
    # An address that does not respond must not cost minutes.
    timeout: Any = (CONNECT_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT, ANSWER_TIMEOUT)
    try:
        found: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=timeout)
    except HFValidationError:
        prefix = HUB_PREFIX if kind == "model" else DATASET_PREFIX
        raise ValueError(f"'{name}' is not a repository name: write {prefix}OWNER/NAME") from None
    except (HTTPError, OSError, ValueError) as error:
        raise ValueError(_explained(name, kind, error)) from None
    return [file.rfilename for file in found.siblings or []]


@contextmanager
def hub_offline() -> Iterator[None]:
    """Make the hub's client use only its cache in the block; HF_HUB_OFFLINE itself is read on import, too early."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _cached(name: str, revision: str | None) -> Path | None:
    try:
        # Request no files: newer clients refuse a cached folder that lacks a requested file.
        return Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[]))
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
    if isinstance(error, RevisionNotFoundError):
        return f"{what} no longer has the requested revision; {HUB_PREFIX}{name} is the newest one"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return f"no permission to read {what} (the hub answered {status}): {LOG_IN}"
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
