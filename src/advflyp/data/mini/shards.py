"""The corpus's files: their bytes depend on nothing but their content."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from advflyp.files import write_atomically, write_text


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """(name, content) pairs as a gzipped tar without times, owners or host, so that a rebuild is equal."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            assert len(name) <= 100, "read_tar knows no longer names"
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(content))
    with write_atomically(path) as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as zipped:
        zipped.write(buffer.getvalue())


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """What `write_tar` wrote, in its order; a reader of any tar takes five times as long.

    Raises:
        OSError, EOFError, zlib.error: For a damaged file; gzip's checksum covers all of it.
    """
    tar = gzip.decompress(path.read_bytes())
    at = 0
    while at < len(tar) and tar[at]:
        size = int(tar[at + 124 : at + 135], 8)
        yield tar[at : at + 100].rstrip(b"\0").decode(), tar[at + 512 : at + 512 + size]
        at += 512 + -(-size // 512) * 512


def write_json(path: Path, value: object) -> None:
    """Readable JSON, UTF-8."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
