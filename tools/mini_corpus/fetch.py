"""Fetch the packages through their ordinary clients (npm pack, apt-get download) into a folder that is reused."""

import shutil
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

from advflyp.files import draft_folder, move
from advflyp.terminal import say
from tools.mini_corpus.sources import Source


def fetch(source: Source, work: Path) -> tuple[Path, Path, str]:
    """Download and unpack a source's package unless `work` has it; returns its files, its archive and its version.

    ValueError if a client is missing or the package cannot be had.
    """
    archives = work / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    archive = _archive(source, archives)
    if archive is None:
        about = f"licence: {source.licence}; {source.url}"
        say(f"fetching {source.package} {source.version} with {_client(source)}; {about}")
        archive = _download(source, archives)
    folder = work / "unpacked" / archive.name
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with draft_folder(folder) as part:
            _unpack(source, archive, part)
            with suppress(FileExistsError):  # another process was faster
                move(part, folder)
    return (folder / "package" if source.client == "npm" else folder), archive, _version(source, archive)


def _version(source: Source, archive: Path) -> str:
    return archive.name.split("_")[1].replace("%3a", ":") if source.client == "deb" else source.version


def _client(source: Source) -> str:
    return "npm" if source.client == "npm" else "apt-get"


def _archive(source: Source, folder: Path) -> Path | None:
    if source.client == "npm":
        path = folder / f"{source.package.removeprefix('@').replace('/', '-')}-{source.version}.tgz"
        return path if path.exists() else None
    found = sorted(folder.glob(f"{source.package}_*.deb"))
    exact = [path for path in found if _version(source, path) == source.version]
    return next(iter(exact or found), None)


def _download(source: Source, archives: Path) -> Path:
    client = _client(source)
    if shutil.which(client) is None:
        raise ValueError(
            f"{source.package} is fetched with {client}, which is not installed; install it or use the corpus that "
            "comes with the package"
        )
    with draft_folder(archives / source.name) as part:
        if source.client == "npm":
            _call(source, ["npm", "pack", "--silent", f"{source.package}@{source.version}"], part)
        else:
            try:
                _call(source, ["apt-get", "download", f"{source.package}={source.version}"], part)
            except ValueError:  # another release has another version; the manifest says which was used
                _call(source, ["apt-get", "download", source.package], part)
        archive = _archive(source, part)
        if archive is None:
            raise ValueError(
                f"{client} fetched {source.package} under an unexpected name: {sorted(part.iterdir())}"
            )
        with suppress(FileExistsError):
            move(archive, archives / archive.name)
        return archives / archive.name


def _unpack(source: Source, archive: Path, folder: Path) -> None:
    if source.client == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        return
    if shutil.which("dpkg-deb") is None:
        raise ValueError(f"{source.package} is unpacked with dpkg-deb, which is not installed; install dpkg")
    _call(source, ["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], archive.parent)


def _call(source: Source, command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "it gave no reason").splitlines()[-1]
        raise ValueError(
            f"{' '.join(command[:2])} could not fetch {source.package} {source.version}: {reason}"
        )
