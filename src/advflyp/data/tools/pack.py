"""Any pairs → webdataset shards with a manifest: the form that streams from anywhere."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image

from advflyp.data.pairs.images import MIN_SIDE, open_image, read_image
from advflyp.data.pairs.manifest import Manifest, describe_shards, write_manifest
from advflyp.data.pairs.samples import Sample, Skipped, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns
from advflyp.errors import SkippedSample
from advflyp.files import draft_folder, names_in, publish_folder, recover_folder, write_atomically

# Pillow's name of a format → the member suffix that webdataset readers recognise as an image.
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
QUALITY = 95


def pack(
    pairs: str,
    out: Path,
    *,
    per_shard: int = 10_000,
    resize: int | None = None,
    limit: int | None = None,
    size: int | None = None,
    columns: Columns | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the pairs that `pairs` names to `out`/00000.tar …, and describe them in a manifest.

    All captions of an image are kept, one per line. Skipped samples are counted in the manifest.

    Args:
        pairs, limit, size, columns: As in `open_source`.
        out, per_shard, resize, progress: As in `write_shards`.

    Raises:
        ValueError: There are no pairs, or `out` is not empty.
    """
    check_new(out)
    samples = in_order(open_source(pairs, limit=limit, size=size, columns=columns))
    about = {"packed_from": pairs, "resize": resize, "limit": limit}
    return write_shards(samples, out, per_shard=per_shard, resize=resize, about=about, progress=progress)


def check_new(out: Path) -> None:
    """ValueError unless `out` does not exist yet or is an empty folder."""
    recover_folder(out)
    if (out.exists() and not out.is_dir()) or names_in(out):
        raise ValueError(f"{out} already exists and is not an empty folder; name a new one")


def write_shards(
    samples: Iterable[Sample],
    out: Path,
    *,
    per_shard: int = 10_000,
    resize: int | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write samples to shards and a manifest.

    Args:
        samples: What to write.
        out: A new folder, which appears when all of it is complete.
        per_shard: Pairs in a shard.
        resize: Shorter side of larger images; None keeps the size. Only JPEG, PNG and WebP files stay as they are.
        about: The manifest's `source` field.
        progress: Called with the pairs written so far.
    """
    if per_shard < 1:
        raise ValueError(f"a shard must hold at least 1 pair, not {per_shard}")
    if resize is not None and resize < MIN_SIDE:
        raise ValueError(
            f"resize must be at least {MIN_SIDE} pixels, not {resize}: smaller images are never used"
        )
    check_new(out)
    skipped, shards = Skipped(), []
    good = enumerate(_usable(samples, resize, skipped))
    with draft_folder(out) as draft:
        for first in good:
            path = draft / f"{len(shards):05d}.tar"
            with write_atomically(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
                for number, members in chain([first], islice(good, per_shard - 1)):
                    for ending, content in members:
                        add_member(tar, f"{number:09d}.{ending}", content)
                    if progress is not None and (number + 1) % 100 == 0:
                        progress(number + 1)
            shards.append(path)
        manifest = describe_shards(shards, failures=skipped.counts, source=about)
        if not manifest.pairs:
            reasons = f": {skipped.describe()}" if skipped.counts else ""
            raise ValueError(f"there is no usable pair to write to {out.name}{reasons}")
        write_manifest(draft, manifest)
        publish_folder(draft, out)
    return manifest


def _usable(
    samples: Iterable[Sample], resize: int | None, skipped: Skipped
) -> Iterator[list[tuple[str, bytes]]]:
    """The members (suffix, contents) of every usable pair."""
    for sample in samples:
        try:
            captions = sample.captions()
            image = _image(sample.image_bytes(), resize)
        except SkippedSample as reason:
            skipped.add(str(reason), sample.key)
            continue
        about = json.dumps({"key": sample.key}).encode()
        yield [image, ("txt", "\n".join(captions).encode()), ("json", about)]


def _image(data: bytes, resize: int | None) -> tuple[str, bytes]:
    """The original file if it is a JPEG, PNG or WebP and not too large, else a JPEG."""
    kind = open_image(data).format
    # Decoded in any case, so that no shard holds a truncated image.
    image = read_image(data)
    scale = 1 if resize is None else resize / min(image.size)
    if kind in SUFFIXES and scale >= 1:
        return SUFFIXES[kind], data
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return "jpg", stream.getvalue()


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar, without times and owners."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
