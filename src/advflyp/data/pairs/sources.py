"""What `data.train` names → a source of undecoded pairs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Subset

from advflyp.config import nearest_path
from advflyp.data.filenames import is_clutter, is_image, is_shard, shards_in
from advflyp.data.pairs.addresses import expand, is_remote, open_binary
from advflyp.data.pairs.folder_pairs import FolderPairs, pair_in
from advflyp.data.pairs.hub_pairs import HubPairs, is_hub_dataset, is_saved_dataset
from advflyp.data.pairs.manifest import read_manifest
from advflyp.data.pairs.objects import open_objects
from advflyp.data.pairs.samples import Indexed, Sharded
from advflyp.data.pairs.shards import TarShard
from advflyp.data.pairs.tables import SUFFIXES as TABLES
from advflyp.data.pairs.tables import Columns, open_parquet, open_table
from advflyp.data.pairs.tars import count_keys

# The list of pairs in the paper's release.
RELEASED = "laion_index.json"
WHAT = (
    'name a folder of name.jpg + name.txt, webdataset shards such as "shards/{000..099}.tar", a CSV, TSV, JSONL or '
    "Parquet table, or hf:NAME"
)


def open_source(
    train: Any,
    *,
    limit: int | None = None,
    size: int | None = None,
    columns: Columns | None = None,
    damaged: list[str] | None = None,
) -> Indexed | Sharded:
    """Open the pairs that `train` names or holds.

    Args:
        train: A path, a pattern, an address or "hf:NAME", see docs/data.md; or an object, see `open_objects`.
        limit: Use only the first N samples, in stored order.
        size: Number of samples in the shards, if neither a manifest nor the shards themselves say so.
        columns: Which columns of a table hold images and captions, and whether captions are required at all.
        damaged: Damaged Parquet files are added to this list and skipped; by default, the first one is an error.

    Raises:
        ValueError: There are no pairs, or they cannot be read.
    """
    if isinstance(train, str | Path):
        source = _open(str(train), size, columns or Columns(), damaged)
    else:
        source = open_objects(train, size)
    if limit is None:
        return source
    if not isinstance(source, Sharded):
        return cast(Indexed, Subset(cast(Any, source), range(min(limit, len(source)))))
    unknown = next((shard.name for shard in source.shards if shard.count is None), None)
    if unknown is not None:
        raise ValueError(f"a limit needs the number of pairs in each shard, which is unknown for {unknown}")
    return replace(source, limit=limit)


def _open(train: str, size: int | None, columns: Columns, damaged: list[str] | None) -> Indexed | Sharded:
    if is_hub_dataset(train):
        return HubPairs(train, columns)
    path = Path(train).expanduser()
    if not is_remote(train) and path.is_dir():
        if not shards_in(path):
            return _open_folder(path, columns, damaged)
        if pair := pair_in(path):
            raise ValueError(
                f"{train} holds shards and pairs of files, such as {pair}; name the shards as '{path}/*.tar*', or move "
                "one of the two away"
            )
    files = _named(train)
    if is_image(files[0]):
        what = "is an image" if len(files) == 1 else f"names {len(files)} images"
        raise ValueError(
            f"{train} {what}, and pairs need captions: {WHAT}; `advflyp predict` classifies single images"
        )
    if files[0].lower().endswith(".parquet"):
        return open_parquet(files, columns, damaged)
    if files[0].lower().endswith(TABLES):
        if len(files) > 1:
            raise ValueError(
                f"{train} names {len(files)} tables; name one, or pack them with `advflyp data pack`"
            )
        return open_table(files[0], columns)
    return _open_shards(files, size)


def _open_folder(folder: Path, columns: Columns, damaged: list[str] | None) -> Indexed | Sharded:
    if is_saved_dataset(folder):
        return HubPairs(str(folder), columns)
    if (folder / RELEASED).is_file():
        return open_table(str(folder / RELEASED), columns)
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".parquet")
    tables = [str(folder / name) for name in names if not is_clutter(name)]
    return open_parquet(tables, columns, damaged) if tables else FolderPairs(folder, columns.captioned)


def _open_shards(files: list[str], size: int | None) -> Sharded:
    """Webdataset tars, counted by their manifest, by `size`, or, on this machine, by their headers."""
    known: dict[str, int] = {}
    # Not Path: it would make one slash of the two in s3://.
    for folder in dict.fromkeys(file.rpartition("/")[0] or "." for file in files):
        manifest = read_manifest(folder)
        if manifest is not None:
            known |= {f"{folder}/{shard.name}": shard.pairs for shard in manifest.shards}
    shards = [TarShard(file, known.get(file, known.get(f"./{file}"))) for file in files]
    if size is None:
        for shard in (shard for shard in shards if shard.count is None):
            if is_remote(shard.address):
                open_binary(shard.address).close()  # a missing file is reported first
                raise ValueError(f"the number of pairs in {shard.address} is unknown; set data.size (--size)")
            shard.count = count_keys(shard.address)
        size = sum(shard.count or 0 for shard in shards)
    if size <= 0:  # a manifest may say anything
        problem = next((sample.problem for sample, _ in shards[0].read()), None)
        if problem is not None and not is_shard(files[0]):
            problem = f"it is neither a shard (*.tar) nor a table ({', '.join(TABLES)})"
        raise ValueError(
            f"{files[0]}{' and the others hold' if len(files) > 1 else ' holds'} no pairs"
            + (f": {problem}" if problem else "")
        )
    return Sharded(shards, size)


def find_shards(pattern: str) -> list[Path]:
    """Existing local tar files for a file, a folder, a glob or a brace pattern; ValueError if there are none."""
    return [Path(file) for file in _named(pattern)]


def _named(name: str) -> list[str]:
    """The files that a path, a folder of shards or a pattern names; ValueError if there are none."""
    path = Path(name).expanduser()
    try:
        if is_remote(name) or not path.is_dir():
            return expand(name if is_remote(name) else str(path), "*.tar*")
        # Only shards, and not their checksums.
        if found := [str(shard) for shard in shards_in(path)]:
            return found
        raise ValueError(f"there is nothing at {path}")
    except ValueError as error:
        hint = "" if is_remote(name) else nearest_path(name)
        raise ValueError(f"there are no pairs at {name} ({error}){hint or f': {WHAT}'}") from None
