"""Pairs listed in a table: CSV, TSV, JSON lines, a JSON list, Parquet, or a Hugging Face dataset.

A table names picture files, relative to itself, or holds their bytes. Rows of the same file are captions of the same
picture.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from advflyp.config import suggest
from advflyp.data.addresses import is_remote, open_binary
from advflyp.data.samples import Sample, Sharded

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# What columns are called in public sets, the likeliest first; case does not matter.
IMAGE_NAMES = (
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "img",
    "image_path",
    "filepath",
    "file_path",
    "path",
    "filename",
)
IMAGE_NAMES += ("file_name", "file", "image_bytes", "bytes")
CAPTION_NAMES = ("caption", "captions", "text", "txt", "title", "sentence", "sentences", "raw", "description")


@dataclass(frozen=True)
class Columns:
    """Which columns hold pictures and captions; None looks for a known name."""

    image: str | None = None
    caption: str | None = None

    def find(self, names: Iterable[str], table: str) -> tuple[str, str]:
        """Their names in a table; ValueError where they are not found."""
        names = list(names)
        return (
            _column(self.image, IMAGE_NAMES, names, table, "image"),
            _column(self.caption, CAPTION_NAMES, names, table, "caption"),
        )


def _column(given: str | None, known: tuple[str, ...], names: list[str], table: str, kind: str) -> str:
    if given is not None:
        if given not in names:
            raise ValueError(f"{table} has no column '{given}'{suggest(given, names)}")
        return given
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise ValueError(
            f"{table} has no column of {kind}s by a known name; name one of {', '.join(names)} with "
            f"data.{kind}_column"
        )
    return found


@dataclass
class Listed:
    """Pairs of a table that names picture files: pictures and their captions, in memory.

    where: folder or address that relative names start from
    """

    where: str
    rows: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, number: int) -> Sample:
        name, captions = self.rows[number]
        if not name:
            return Sample(f"row without a picture: {' '.join(captions)[:60]}", None, captions)
        if is_remote(name) or Path(name).is_absolute() or not self.where:
            return Sample(name, name, captions)
        joined = f"{self.where}/{name}" if is_remote(self.where) else str(Path(self.where) / name)
        return Sample(name, joined, captions)


def listed(rows: Iterable[Mapping[str, Any]], table: str, columns: Columns) -> Listed:
    """The rows of a table of picture files; ValueError where it has none or not the columns."""
    captions: dict[str, list[str]] = {}
    lacking: list[tuple[str, tuple[str, ...]]] = []
    names: tuple[str, str] | None = None
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"{table} must hold objects with a picture and a caption, not {str(row)[:60]!r}")
        names = names or columns.find(row, table)
        image, caption = row.get(names[0]), row.get(names[1])
        if not image:
            lacking.append(("", tuple(_captions(caption))))
            continue
        captions.setdefault(str(image), []).extend(_captions(caption))
    if not captions and not lacking:
        raise ValueError(f"{table} holds no pairs")
    where = table.rpartition("/")[0] if is_remote(table) else str(Path(table).parent)
    return Listed(where, [*((image, tuple(texts)) for image, texts in captions.items()), *lacking])


def _captions(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]


def open_table(address: str, columns: Columns) -> Listed | Sharded:
    """The pairs of a table file; ValueError where it cannot be read or lacks what is needed."""
    if address.lower().endswith(".parquet"):
        return open_parquet([address], columns)
    with open_binary(address) as file:
        try:
            text = io.TextIOWrapper(file, "utf-8-sig", newline="")
            return listed(_rows(address, text), address, columns)
        except UnicodeDecodeError:
            raise ValueError(f"{address} is not UTF-8; save it as UTF-8") from None
        except (json.JSONDecodeError, csv.Error) as error:
            raise ValueError(f"{address} is damaged: {error}") from None


def _rows(address: str, text: io.TextIOWrapper) -> Iterator[Any]:
    suffix = address.lower().rpartition(".")[2]
    if suffix == "json":
        rows = json.load(text)
        if not isinstance(rows, list):
            raise ValueError(f"{address} must hold a list of objects with a picture and a caption")
        yield from rows
    elif suffix in ("jsonl", "ndjson"):
        yield from (json.loads(line) for line in text if line.strip())
    else:
        yield from csv.DictReader(text, delimiter="\t" if suffix == "tsv" else ",")


def open_parquet(addresses: list[str], columns: Columns) -> Listed | Sharded:
    """Parquet files of pictures' bytes, read by row groups, or of their paths; all of one kind."""
    shards: list[RowGroup] = []
    rows: list[Mapping[str, Any]] = []
    for address in addresses:
        with open_binary(address) as stream, _parquet(address, stream) as file:
            image, caption = columns.find(file.schema_arrow.names, address)
            if pa.types.is_string(kind := file.schema_arrow.field(image).type) or pa.types.is_large_string(
                kind
            ):
                rows += file.read([image, caption]).to_pylist()
                continue
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                shards.append(RowGroup(address, group, image, caption, count))
    if rows and shards:
        raise ValueError(
            f"{addresses[0]} and the others hold both paths and bytes; train on one kind at a time"
        )
    if rows:
        return listed(rows, addresses[0], Columns(*columns.find(rows[0], addresses[0])))
    if not shards:
        raise ValueError(f"{addresses[0]} holds no pairs")
    return Sharded(shards, sum(shard.count for shard in shards))


def _parquet(address: str, stream: Any) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{address} is not a readable Parquet file: {error}") from None


@dataclass
class RowGroup:
    """A row group of pictures' bytes, a `Shard`; offsets are rows."""

    address: str
    group: int
    image: str
    caption: str
    count: int

    @property
    def name(self) -> str:
        return f"{self.address.rpartition('/')[2]}[{self.group}]"

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        with open_binary(self.address) as stream, _parquet(self.address, stream) as file:
            row = 0
            for batch in file.iter_batches(64, [self.group], [self.image, self.caption]):
                if row + len(batch) > offset:
                    for image, caption in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        row += 1
                        if row > offset:
                            yield self._sample(row - 1, image, caption), row
                else:
                    row += len(batch)

    def _sample(self, row: int, image: Any, caption: Any) -> Sample:
        # {"bytes": …, "path": …} is how Hugging Face stores pictures.
        if isinstance(image, dict):
            image = image.get("bytes")
        return Sample(f"{self.name}:{row}", image or None, tuple(_captions(caption)) or None)


class HubPairs:
    """A Hugging Face dataset: "hf:NAME", "hf:NAME@SPLIT", or a folder that `save_to_disk` wrote.

    ValueError where it cannot be had, or the package `datasets` is missing.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        try:
            import datasets  # pyright: ignore[reportMissingImports], an extra
        except ImportError:
            raise ValueError(f"{name} needs the package datasets: pip install 'advflyp[hf]'") from None
        self.name = name
        place, _, split = name.removeprefix("hf:").partition("@")
        try:
            found = datasets.load_from_disk(place) if Path(place).is_dir() else datasets.load_dataset(place)
        except Exception as error:  # its errors are of a dozen kinds
            raise ValueError(f"cannot open the dataset {place}: {type(error).__name__}: {error}") from None
        if isinstance(found, datasets.DatasetDict):
            split = split or "train"
            if split not in found:
                raise ValueError(f"{place} has no split '{split}'{suggest(split, map(str, found))}")
            found = found[split]
        self.image, self.caption = columns.find(found.column_names, name)
        if isinstance(found.features[self.image], datasets.Image):
            found = found.cast_column(self.image, datasets.Image(decode=False))
        self.data = found.select_columns([self.image, self.caption])

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, number: int) -> Sample:
        row = self.data[number]
        image = row[self.image]
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        return Sample(f"{self.name}:{number}", image or None, tuple(_captions(row[self.caption])) or None)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()
