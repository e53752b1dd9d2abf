"""Read the shards of a mini corpus: gzipped tars of KEY.webp, KEY.json and KEY.txt."""

import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advflyp.data.mini import BUILD


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of a shard's members, in order. A general tar reader takes five times as long.

    Raises:
        OSError, EOFError, zlib.error: For a damaged file; gzip's checksum covers all of it.
    """
    return _members(gzip.decompress(path.read_bytes()))


def _members(tar: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(tar) and tar[at]:
        size = int(tar[at + 124 : at + 135], 8)
        yield tar[at : at + 100].rstrip(b"\0").decode(), tar[at + 512 : at + 512 + size]
        at += 512 + -(-size // 512) * 512


def read_encoded(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The image files of a corpus by SHARD/MEMBER, and a dict (name, tags, group, style, …) for each.

    Raises:
        ValueError: For a folder without shards.
    """
    files: dict[str, bytes] = {}
    metas: list[bytes] = []
    shards = sorted(folder.glob("train-*.tar.gz"))
    # zlib lets other threads run.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for shard, members in zip(shards, threads.map(read_tar, shards), strict=True):
            for name, data in members:
                if name.endswith(".webp"):
                    files[f"{shard.name}/{name}"] = data
                elif name.endswith(".json"):
                    metas.append(data)
    if not files:
        raise ValueError(f"{folder} holds no train-*.tar.gz shards; build them with `{BUILD}`")
    assert len(files) == len(metas)
    return files, json.loads(b"[" + b",".join(metas) + b"]")


def read_shards(folder: Path) -> tuple["LazyImages", list[dict[str, Any]]]:
    """As `read_encoded`, with images that are decoded on demand."""
    files, metas = read_encoded(folder)
    return LazyImages(list(files.values())), metas


class LazyImages:
    """Encoded RGBA images of one size, each decoded when it is first asked for: a short run needs few of them.

    Args:
        files: N encoded images.
    """

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files
        width, height = Image.open(io.BytesIO(files[0])).size
        # Pages that are never written to take no memory.
        self.pixels = np.empty((len(files), height, width, 4), np.uint8)
        self.decoded = np.zeros(len(files), bool)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """(n, H, W, 4) uint8 with straight alpha, for n indices or a slice."""
        wanted = np.arange(len(self))[rows]
        missing = np.unique(wanted[~self.decoded[wanted]]).tolist()
        # Pillow lets other threads run while it decodes.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for row, image in zip(missing, threads.map(self._decode, missing), strict=True):
                self.pixels[row] = image
        self.decoded[missing] = True
        return self.pixels[wanted]

    def subset(self, rows: Sequence[int]) -> "LazyImages":
        return LazyImages([self.files[row] for row in rows])

    def _decode(self, row: int) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.files[row])).convert("RGBA"))
