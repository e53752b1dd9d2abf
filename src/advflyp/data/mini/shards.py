"""Read the shards of a mini corpus: gzipped tars of KEY.webp, KEY.json and KEY.txt."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from advflyp.data.mini import BUILD
from advflyp.data.pairs.images import UNREADABLE
from advflyp.errors import SkippedSample
from advflyp.limits import open_regular, read_bounded

# A shard of ours unpacks to 8 MB, and its images have 64 pixels a side.
MAX_SHARD_BYTES = 1 << 28
MAX_SIDE = 512
# What every image's description has.
REQUIRED = frozenset({"name", "concept", "source", "mono", "mirror", "weight"})


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """The names and contents of a shard's members, in order. A general tar reader takes five times as long.

    Raises:
        ValueError: It is damaged (gzip's checksum covers all of it), or too large.
    """
    try:
        with open_regular(path) as packed, gzip.open(packed) as file:
            return list(_members(read_bounded(cast(BinaryIO, file), MAX_SHARD_BYTES)))
    except (OSError, EOFError, zlib.error, ValueError, SkippedSample) as error:
        raise ValueError(
            f"{path} is not a shard of a mini corpus ({error}); build it with `{BUILD}`"
        ) from None


def _members(tar: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(tar) and tar[at]:
        # Digits alone: a size with a sign could lead back.
        digits = tar[at + 124 : at + 135]
        if not digits.isdigit():
            raise ValueError("a member's size is not a number")
        size = int(digits, 8)
        yield tar[at : at + 100].rstrip(b"\0").decode(), tar[at + 512 : at + 512 + size]
        at += 512 + -(-size // 512) * 512


def read_encoded(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The image files of a corpus by SHARD/MEMBER, and a dict (name, tags, group, style, …) for each.

    Raises:
        ValueError: For a folder without shards, or with others than those of a mini corpus.
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
    try:
        found = json.loads(b"[" + b",".join(metas) + b"]")
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(files) or not all(
        isinstance(meta, dict) and meta.keys() >= REQUIRED for meta in found
    ):
        needed = ", ".join(sorted(REQUIRED))
        raise ValueError(f"{folder} is not a mini corpus: not every image has a description with {needed}")
    return files, found


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
        width, height = _open(files[0]).size
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
        image = np.asarray(_open(self.files[row]).convert("RGBA"))
        if image.shape != self.pixels.shape[1:]:
            raise ValueError(f"the images of a mini corpus are of one size; image {row} is not")
        return image


def _open(data: bytes) -> Image.Image:
    """Open one of the corpus's images; ValueError for another format, or a size that no corpus has."""
    try:
        image = Image.open(io.BytesIO(data), formats=["WEBP"])
    except UNREADABLE as error:
        raise ValueError(f"the images of a mini corpus are WebP files: {error}") from None
    if max(image.size) > MAX_SIDE:
        raise ValueError(
            f"the images of a mini corpus have at most {MAX_SIDE} pixels a side, not {max(image.size)}"
        )
    return image
