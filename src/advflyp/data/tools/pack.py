"""Any pairs → webdataset shards with a manifest: the form that streams from anywhere."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from advflyp.data.pairs.images import open_image, read_image
from advflyp.data.pairs.manifest import Manifest, describe_shards, write_manifest
from advflyp.data.pairs.samples import Sample, Skipped, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns
from advflyp.errors import SkippedSample
from advflyp.files import draft_folder, names_in, publish_folder, recover_folder, write_atomically

# What Pillow calls a format → the suffix of a member that webdataset readers know as an image.
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
    """Write the pairs that `pairs` names (see `open_source`) to `out`/00000.tar …, and what they hold to a manifest.

    Args:
        resize: Shorter side of larger images; None keeps every file as it is.
        progress: Called with the pairs written so far.

    All captions of an image are kept, a line each. Skipped samples are counted in the manifest.
    ValueError where there are no pairs or `out` holds anything already.
    """
    check_new(out)
    source = open_source(pairs, limit=limit, size=size, columns=columns)
    about = {"packed_from": pairs, "resize": resize, "limit": limit}
    return write_shards(
        in_order(source), out, per_shard=per_shard, resize=resize, about=about, progress=progress
    )


def check_new(out: Path) -> None:
    """ValueError unless `out` is a folder that can be made, or an empty one."""
    recover_folder(out)
    if (out.exists() and not out.is_dir()) or names_in(out):
        raise ValueError(f"{out} is there already and not an empty folder; name a new one")


def write_shards(
    samples: Iterable[Sample],
    out: Path,
    *,
    per_shard: int = 10_000,
    resize: int | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write samples to shards of `out` and a manifest with `about` as its source; see `pack`.

    `out` appears when all shards and the manifest are complete.
    """
    if per_shard < 1:
        raise ValueError(f"a shard must hold at least 1 pair, not {per_shard}")
    check_new(out)
    with draft_folder(out) as draft:
        manifest = _write_all(samples, draft, per_shard, resize, about, progress)
        publish_folder(draft, out)
    return manifest


def _write_all(
    samples: Iterable[Sample],
    folder: Path,
    per_shard: int,
    resize: int | None,
    about: dict[str, Any] | None,
    progress: Callable[[int], None] | None,
) -> Manifest:
    skipped = Skipped()
    shards: list[Path] = []
    good = _usable(samples, resize, skipped)
    first = next(good, None)
    written = 0
    while first is not None:
        path = folder / f"{len(shards):05d}.tar"
        with write_atomically(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for _ in range(per_shard):
                if first is None:
                    break
                _add(tar, written, *first)
                written += 1
                first = next(good, None)
                if progress is not None and written % 100 == 0:
                    progress(written)
        shards.append(path)
    if not shards:
        reasons = f": {skipped.describe()}" if skipped.counts else ""
        raise ValueError(f"there is no usable pair to write to {folder.name}{reasons}")
    manifest = describe_shards(shards, failures=skipped.counts, source=about)
    write_manifest(folder, manifest)
    return manifest


def _usable(
    samples: Iterable[Sample], resize: int | None, skipped: Skipped
) -> Iterator[tuple[str, bytes, tuple[str, ...], str]]:
    """Suffix, image, captions and key of every pair that can be used."""
    for sample in samples:
        try:
            captions = sample.captions()
            suffix, data = _image(sample.image_bytes(), resize)
        except SkippedSample as reason:
            skipped.add(str(reason), sample.key)
            continue
        yield suffix, data, captions, sample.key


def _image(data: bytes, resize: int | None) -> tuple[str, bytes]:
    """The file as it is where it is of a common format and not too large, else a JPEG."""
    image = open_image(data)
    kind = image.format
    # Decoded here too, so that a shard holds no image that breaks off.
    image = read_image(data)
    if kind in SUFFIXES and (resize is None or min(image.size) <= resize):
        return SUFFIXES[kind], data
    if resize is not None and min(image.size) > resize:
        scale = resize / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)),
            Image.Resampling.BICUBIC,
            reducing_gap=3.0,
        )
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return "jpg", stream.getvalue()


def _add(
    tar: tarfile.TarFile, number: int, suffix: str, data: bytes, captions: tuple[str, ...], key: str
) -> None:
    about = json.dumps({"key": key}).encode()
    for ending, content in ((suffix, data), ("txt", "\n".join(captions).encode()), ("json", about)):
        add_member(tar, f"{number:09d}.{ending}", content)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file in a tar, without times and owners."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
