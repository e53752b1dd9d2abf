"""The corpus's files: their bytes depend on nothing but their content."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from advflyp.files import write_atomically, write_text


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs as a gzipped tar without times, owners or host, so that a rebuild is identical."""
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


def write_json(path: Path, value: object) -> None:
    """Readable JSON, UTF-8."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
