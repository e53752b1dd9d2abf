"""`manifest.json`: what a folder of shards holds, and where it came from."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from advflyp.__about__ import __version__
from advflyp.config import fill
from advflyp.data.pairs.addresses import NotServed, is_remote, open_binary
from advflyp.data.pairs.images import open_image
from advflyp.data.pairs.shards import TarShard
from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.files import file_sha256, write_text
from advflyp.limits import MAX_MANIFEST_BYTES

FILE = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class ShardFacts:
    """One shard: its file name, usable pairs, size, and the hash of its bytes."""

    name: str
    pairs: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the shards of a folder hold."""

    pairs: int  # usable ones, in all shards
    shards: list[ShardFacts]
    failures: dict[str, int] = field(default_factory=dict)  # reason: samples that did not become pairs
    # mean_words, median_words, max_words, mean_characters
    captions: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)  # median_width, median_height
    source: dict[str, Any] = field(default_factory=dict)  # whatever the maker of the shards recorded
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""


def read_manifest(folder: Path | str) -> Manifest | None:
    """The manifest of a folder of shards, a path or an fsspec address; None if there is none in our format.

    Raises:
        ValueError: It is damaged, or its server cannot be reached or fails; `RunError` if that happens later.
    """
    path = f"{str(folder).rstrip('/')}/{FILE}"
    if not is_remote(path) and not Path(path).is_file():
        return None
    try:
        with open_binary(path) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except NotServed:
        return None
    instead = "remove it, and the shards are counted instead"
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"{path} is too large to be a manifest; {instead}")
    try:
        tree = parse_json(data)
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
            return None
        return fill(Manifest, tree) if isinstance(tree.get("shards"), list) else None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); {instead}") from None


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `folder`/manifest.json, whole or not at all."""
    path = folder / FILE
    write_text(path, json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n")
    return path


def describe_shards(
    shards: Iterable[Path],
    *,
    failures: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """Read shards and describe what they hold; samples that cannot be used are added to `failures`."""
    facts: list[ShardFacts] = []
    bad = Counter(failures or {})
    # {number: how often}, not lists: those of ten million pairs would fill the memory.
    words, characters, widths, heights = (Counter[int]() for _ in range(4))
    for shard in shards:
        before = widths.total()
        for sample, _ in TarShard(str(shard)).read():
            try:
                captions = sample.captions()
                width, height = open_image(sample.image_bytes()).size
            except SkippedSample as reason:
                bad[str(reason)] += 1
                continue
            widths[width] += 1
            heights[height] += 1
            words.update(len(caption.split()) for caption in captions)
            characters.update(map(len, captions))
        pairs = widths.total() - before
        facts.append(ShardFacts(shard.name, pairs, shard.stat().st_size, file_sha256(shard)))
    measured: dict[str, dict[str, Any]] = {}
    if widths:
        measured["captions"] = {
            "mean_words": round(statistics.fmean(words, words.values()), 2),
            "median_words": _median(words),
            "max_words": max(words),
            "mean_characters": round(statistics.fmean(characters, characters.values()), 2),
        }
        measured["images"] = {"median_width": _median(widths), "median_height": _median(heights)}
    return Manifest(
        pairs=widths.total(),
        shards=facts,
        failures=dict(bad.most_common()),
        source=dict(source or {}),
        versions={"advflyp": __version__, **(versions or {})},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **measured,
    )


def _median(counts: Counter[int]) -> float:
    """The median of a table {number: how often}."""
    ordered = Counter(dict(sorted(counts.items()))).elements()
    return statistics.median(islice(ordered, (counts.total() - 1) // 2, counts.total() // 2 + 1))
