"""Pairs listed in a table: CSV, TSV, JSON lines, a JSON list, Parquet, or a Hugging Face dataset.

A table names image files, relative to itself, or holds their bytes. Rows of the same file are captions of one image.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.constants import HF_HUB_CACHE

from advflyp.config import suggest
from advflyp.data.pairs.addresses import is_remote, named_in, open_binary
from advflyp.data.pairs.cells import CAPTION_NAMES, captions_in, image_in
from advflyp.data.pairs.parquet import ERRORS, DamagedFile, is_damage, parquet_file
from advflyp.data.pairs.rows import SUFFIXES as TEXT_SUFFIXES
from advflyp.data.pairs.rows import find_column, read_text_table
from advflyp.data.pairs.samples import Sample, Sharded
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES
from advflyp.model.repository import DATASET_PREFIX, ask_hub, hub_offline

# Of a Parquet file, unpacked at a time.
BATCH_ROWS = 64
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
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


@dataclass(frozen=True)
class Columns:
    """Which columns hold images and captions; None looks for a known name.

    Attributes:
        captioned: Whether there has to be a column of captions.
    """

    image: str | None = None
    caption: str | None = None
    captioned: bool = True

    def find(self, names: Sequence[str], table: str) -> tuple[str, str | None]:
        """Their names in a table, None for captions that nobody needs; ValueError where they are not found."""
        image = self._find("image", self.image, IMAGE_NAMES, names, table)
        needed = self.captioned or self.caption is not None
        if not needed and not any(name.lower() in CAPTION_NAMES for name in names):
            return image, None
        return image, self._find("caption", self.caption, CAPTION_NAMES, names, table)

    @staticmethod
    def _find(kind: str, given: str | None, known: Sequence[str], names: Sequence[str], table: str) -> str:
        option = f"data.{kind}_column (--{kind}-column)"
        return find_column(given, known, names, table, what=kind, option=option)


@dataclass
class Listed:
    """Pairs of a table that names image files: an image and its captions each, in memory."""

    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, number: int) -> Sample:
        return self.samples[number]


def listed(rows: Iterable[tuple[str, int, Any, Any]], name: str) -> Listed:
    """Rows (table, number, image, caption) as pairs, in the order of their first rows; ValueError where there are none.

    table: its address, where relative names start from

    Args:
        name: What messages call all of them.
    """
    found: dict[str, Sample] = {}
    further: dict[str, list[str]] = {}
    for table, number, image, caption in rows:
        sample = to_sample(f"{table.rpartition('/')[2]}:{number}", image, caption, table)
        address = sample.image if isinstance(sample.image, str) else f"{table}:{number}"
        if address not in found:
            found[address] = sample
        elif len(texts := further.setdefault(address, [])) <= MAX_CAPTION_BYTES:
            # One more than a caption may have letters is refused anyway.
            texts += _texts(sample)
    if not found:
        raise ValueError(f"{name} holds no pairs; it has no rows")
    for address, texts in further.items():
        found[address] = replace(found[address], caption=(*_texts(found[address]), *texts) or None)
    return Listed(list(found.values()))


def _texts(sample: Sample) -> tuple[str, ...]:
    return sample.caption if isinstance(sample.caption, tuple) else ()


def to_sample(row: str, image: Any, caption: Any, table: str, local: Sequence[Path] = ()) -> Sample:
    """The cells of a row as a sample; it is called as its image file is, if it has one, else `row`.

    Args:
        table, local: Which files the row may name, see `named_in`.
    """
    try:
        found, captions = image_in(image), tuple(captions_in(caption)) or None
        if not isinstance(found, str):
            return Sample(row, found, captions)
        return Sample(found, named_in(table, found, local), captions, table=table)
    except SkippedSample as reason:
        return Sample(row, problem=str(reason))


def open_table(address: str, columns: Columns) -> Listed | Sharded:
    """The pairs of a table file; ValueError where it cannot be read or lacks what is needed."""
    if address.lower().endswith(".parquet"):
        return open_parquet([address], columns)
    with open_binary(address) as file:
        table = read_text_table(address, file)
    image, caption = columns.find(table.names, address)
    rows = (
        (address, number, cells.get(image), None if caption is None else cells.get(caption))
        for number, cells in table.rows()
    )
    return listed(rows, address)


def open_parquet(
    addresses: list[str], columns: Columns, damaged: list[str] | None = None
) -> Listed | Sharded:
    """Parquet files of images' bytes, read by row groups, or of their paths; all of one kind.

    Args:
        addresses: The files.
        columns: Which columns hold what.
        damaged: Damaged files are entered here and passed over; by default the first is an error.

    Raises:
        ValueError: There are no pairs, or a column that is needed is not found.
    """
    shards: list[RowGroup] = []
    of_paths: list[tuple[str, str, str | None]] = []
    for address in addresses:
        with (
            _passing_over(damaged, address),
            open_binary(address) as stream,
            parquet_file(address, stream) as file,
        ):
            image, caption = columns.find(file.schema_arrow.names, address)
            if _is_text(file.schema_arrow.field(image).type):
                of_paths.append((address, image, caption))
                continue
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                shards.append(RowGroup(address, group, image, caption, count))
    if of_paths and shards:
        raise ValueError(
            f"{addresses[0]} and the others hold both paths and bytes; train on one kind at a time"
        )
    if of_paths:
        return listed((row for table in of_paths for row in _path_rows(*table, damaged)), addresses[0])
    if not sum(shard.count for shard in shards) and not damaged:
        raise ValueError(f"{addresses[0]} holds no pairs")
    return Sharded(shards, sum(shard.count for shard in shards))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


@contextmanager
def _passing_over(damaged: list[str] | None, address: str) -> Iterator[None]:
    """Within the block a damaged file ends the block, if there is a list for it."""
    try:
        yield
    except DamagedFile:
        if damaged is None:
            raise
        damaged.append(address)


def _path_rows(
    address: str, image: str, caption: str | None, damaged: list[str] | None
) -> Iterator[tuple[str, int, Any, Any]]:
    number = 0
    with (
        _passing_over(damaged, address),
        open_binary(address) as stream,
        parquet_file(address, stream) as file,
    ):
        for group in range(file.num_row_groups):
            for path, text in _rows(file, group, image, caption):
                number += 1
                yield address, number, path, text


def _rows(file: pq.ParquetFile, group: int, image: str, caption: str | None) -> Iterator[tuple[Any, Any]]:
    """The image and the caption of each row of a group, row by row; None for captions that no column holds.

    A few kilobytes can hold a value of megabytes for each of a million rows: no more of them are unpacked at a time
    than fit into the memory of one image.
    """
    columns = [image] if caption is None else [image, caption]
    facts = file.metadata.row_group(group)
    chunks = (facts.column(number) for number in range(facts.num_columns))
    # No value is larger than what its column is unpacked.
    largest = max(
        (c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns), default=0
    )
    most = max(1, min(BATCH_ROWS, MAX_IMAGE_BYTES // max(1, largest)))
    for batch in file.iter_batches(most, [group], columns):
        images, texts = batch.column(image), None if caption is None else batch.column(caption)
        for row in range(len(batch)):
            yield images[row].as_py(), None if texts is None else texts[row].as_py()


@dataclass
class RowGroup:
    """A row group of images' bytes, a `Shard`; offsets are rows."""

    address: str
    group: int
    image: str
    caption: str | None
    count: int

    @property
    def name(self) -> str:
        return f"{self.address.rpartition('/')[2]}[{self.group}]"

    def read(self, offset: int = 0) -> Iterator[tuple[Sample, int]]:
        row = offset
        with open_binary(self.address) as stream:
            try:
                rows = _rows(pq.ParquetFile(stream), self.group, self.image, self.caption)
                for row, (image, caption) in enumerate(islice(rows, offset, None), offset + 1):
                    name = f"{self.name}:{row - 1}"
                    yield replace(to_sample(name, image, caption, self.address), key=name), row
            except ERRORS as error:
                if not is_damage(error):
                    raise
                yield Sample(self.name, problem="damaged shard"), row


def is_hub_dataset(name: str) -> bool:
    """Whether it is written "hf:NAME"; hf://datasets/… is a file."""
    return name.startswith(DATASET_PREFIX) and not is_remote(name)


class HubPairs:
    """A Hugging Face dataset: "hf:NAME", "hf:NAME@SPLIT", or a folder that `save_to_disk` wrote.

    ValueError where it cannot be had, or the package `datasets` is missing.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        if find_spec("datasets") is None:
            raise ValueError(f"{name} needs the package datasets: pip install datasets")
        self.name = name
        place, _, split = name.removeprefix(DATASET_PREFIX).partition("@")
        found = _load_dataset(place)
        import datasets  # pyright: ignore[reportMissingImports], an extra

        if isinstance(found, datasets.DatasetDict):
            split = split or "train"
            if split not in found:
                raise ValueError(f"{place} has no split '{split}'{suggest(split, map(str, found))}")
            found = found[split]
        self.image, self.caption = columns.find(found.column_names, name)
        # As they are stored: nothing is decoded, in lists neither.
        self.data: Any = found.select_columns(
            [self.image] if self.caption is None else [self.image, self.caption]
        ).with_format("arrow")
        # A dataset of the hub may name files of its repository, and those that `datasets` has unpacked.
        self.table = (
            f"{place}/{self.image}" if Path(place).is_dir() else f"hf://datasets/{place}/{self.image}"
        )
        config: Any = datasets.config  # pyright: ignore[reportAttributeAccessIssue], a module
        self.local = [Path(config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, number: int) -> Sample:
        row = self.data[number].to_pylist()[0]
        name = f"{self.name}:{number}"
        caption = None if self.caption is None else row[self.caption]
        sample = to_sample(name, row[self.image], caption, self.table, self.local)
        return replace(sample, key=name)


def _load_dataset(place: str) -> Any:
    """What `datasets` makes of a folder or of a name on the hub; of the latter its cache, where the hub refuses it."""
    refusal: ValueError | None = None
    if not Path(place).is_dir():
        try:
            ask_hub(place, "dataset")
        except ValueError as error:
            refusal = error
    # Slow to import.
    import datasets  # pyright: ignore[reportMissingImports], an extra

    try:
        if Path(place).is_dir():
            return datasets.load_from_disk(place)
        if refusal is None:
            return datasets.load_dataset(place)
        with hub_offline():
            return datasets.load_dataset(place)
    except Exception as error:  # its errors are of a dozen kinds
        if refusal is not None:
            raise refusal from None
        raise ValueError(f"cannot open the dataset {place}: {type(error).__name__}: {error}") from None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()
