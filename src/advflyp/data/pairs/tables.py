"""Pairs listed in a table: CSV, TSV, JSON lines, a JSON list, or Parquet.

A table names image files, relative to itself, or holds their bytes. Rows of the same file are captions of one image.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from advflyp.data.pairs.addresses import is_remote, named_in, open_binary
from advflyp.data.pairs.arrow_cells import from_arrow, image_from_arrow
from advflyp.data.pairs.cells import CAPTION_NAMES, MAX_PATH_BYTES, captions_in, image_in
from advflyp.data.pairs.rows import SUFFIXES as TEXT_SUFFIXES
from advflyp.data.pairs.rows import find_column, read_text_table
from advflyp.data.pairs.samples import Sample, Sharded
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES, MAX_TABLE_BYTES

# Rows of a dataset that are decoded at a time; of a group in a Parquet file, see `_cells`.
BATCH_ROWS = 64
BATCHES, MAX_BATCH_ROWS = 64, 1 << 16
# Cells of more bytes, on average, hold images or something else that is not text.
MAX_SMALL_CELL = 1024
# Rows that name no image, or are of no use for another reason: in memory, unlike in Parquet, each takes room.
MAX_UNUSABLE = 1 << 20
SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
# What columns are called in public sets, the likeliest first; case does not matter.
IMAGE_NAMES = (
    "image", "jpg", "jpeg", "png", "webp", "img", "image_path", "filepath", "file_path", "path", "filename",
    "file_name", "file", "image_bytes", "bytes",
)  # fmt: skip

Row = tuple[str, int, Any, Any]  # address of the table, number, image, caption


@dataclass(frozen=True)
class Columns:
    """Which columns hold images and captions; None looks for a known name.

    Attributes:
        captioned: Whether captions are required; if not, images alone are samples too.
    """

    image: str | None = None
    caption: str | None = None
    captioned: bool = True

    def find(self, names: Sequence[str], table: str) -> tuple[str, str | None]:
        """Their names in a table, None for captions that are not needed; ValueError if they are not found."""

        def find(kind: str, given: str | None, known: Sequence[str]) -> str:
            option = f"data.{kind}_column (--{kind}-column)"
            return find_column(given, known, names, table, what=kind, option=option)

        image = find("image", self.image, IMAGE_NAMES)
        needed = self.captioned or self.caption is not None
        if not needed and not any(name.lower() in CAPTION_NAMES for name in names):
            return image, None
        return image, find("caption", self.caption, CAPTION_NAMES)


def to_sample(row: str, image: Any, caption: Any, table: str, local: Sequence[Path] = ()) -> Sample:
    """The cells of a row as a sample; its key is the name of its image file, if it has one, else `row`.

    Args:
        image, caption: Cells of Arrow or of Python.
        table, local: Which files the row may name, see `named_in`.
    """
    try:
        found = image_in(image_from_arrow(image))
        captions = tuple(captions_in(from_arrow(caption, "caption"))) or None
        if captions is not None and sum(map(len, captions)) > MAX_CAPTION_BYTES:
            # `Sample.captions` would refuse it, too, but until then each row would hold it.
            raise SkippedSample("caption is too long")
        if not isinstance(found, str):
            return Sample(row, found, captions)
        return Sample(found, named_in(table, found, local), captions, table=table)
    except SkippedSample as reason:
        return Sample(row, problem=str(reason))


def open_table(address: str, columns: Columns) -> list[Sample] | Sharded:
    """The pairs of a table file; ValueError if it cannot be read or lacks what is needed."""
    if address.lower().endswith(".parquet"):
        return open_parquet([address], columns)
    with open_binary(address) as file:
        table = read_text_table(address, file)
    image, caption = columns.find(table.names, address)
    rows = (
        (address, number, cells.get(image), None if caption is None else cells.get(caption))
        for number, cells in table.rows()
    )
    return joined(rows, address)


def joined(rows: Iterable[Row], name: str, local: Sequence[Path] = ()) -> list[Sample]:
    """Join rows of the same file into pairs, in the order of their first rows.

    Args:
        local: See `named_in`.

    Raises:
        ValueError: `name` has no rows, or more than memory should hold, which Parquet can pack into a few kilobytes.
    """
    found: dict[str, Sample] = {}
    further: dict[str, list[str]] = {}
    lengths: Counter[str] = Counter()  # of an image's further captions
    kept: Counter[str] = Counter()  # characters of a table
    unusable = 0
    for table, number, image, caption in rows:
        sample = to_sample(f"{table.rpartition('/')[2]}:{number}", image, caption, table, local)
        address = _same(sample.image) if isinstance(sample.image, str) else f"{table}:{number}"
        texts = sample.caption if isinstance(sample.caption, tuple) else ()
        length = sum(map(len, texts))
        if address not in found:
            found[address] = sample
            kept[table] += len(address) + length
        elif texts and lengths[address] <= MAX_CAPTION_BYTES:  # with more, the image is refused anyway
            further.setdefault(address, []).extend(texts)
            lengths[address] += length
            kept[table] += length
        unusable += sample.image is None
        if kept[table] > MAX_TABLE_BYTES:
            raise ValueError(
                f"{table} holds more than {MAX_TABLE_BYTES >> 30} GB of names and captions; split it into several"
            )
        if unusable > MAX_UNUSABLE:
            reason = sample.problem or "no image"
            raise ValueError(
                f"more than {MAX_UNUSABLE:,} rows of {name} cannot be used ({reason}); remove them"
            )
    if not found:
        raise ValueError(f"{name} holds no pairs; it has no rows")
    for address, texts in further.items():
        own = found[address].caption
        found[address] = replace(found[address], caption=(*(own if isinstance(own, tuple) else ()), *texts))
    return list(found.values())


def _same(address: str) -> str:
    """One spelling for all spellings of a local path, such as x.jpg and ./x.jpg."""
    return address if is_remote(address) else os.path.abspath(address)


class DamagedFile(ValueError):
    """A file that is not of the format that its name says; the message is for the user."""


@contextmanager
def parquet_file(address: str, **how: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for the duration of the block.

    Raises:
        ValueError: It cannot be opened; `DamagedFile` if Arrow finds in the block that it is damaged.
    """
    with open_binary(address) as stream, reading(address), pq.ParquetFile(stream, **how) as file:
        yield file


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turn the many errors that Arrow may raise in the block into a `DamagedFile` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from a disk; Arrow's own have no errno
        reason = " ".join(str(error).split())[:200]
        raise DamagedFile(f"{address} is not a readable Parquet file: {reason}") from None


def open_parquet(
    addresses: list[str], columns: Columns, damaged: list[str] | None = None
) -> list[Sample] | Sharded:
    """Open Parquet files of image bytes, read by row group, or of image paths; all of one kind.

    Args:
        addresses: The files.
        columns: Which columns hold what.
        damaged: Damaged files are added to this list and skipped; by default, the first one is an error.

    Raises:
        ValueError: There are no pairs, or a column that is needed is not found.
    """
    shards: list[RowGroup] = []
    of_paths: list[tuple[str, str, str | None]] = []
    for address in addresses:
        with _passing_over(damaged, address), parquet_file(address) as file:
            image, caption = columns.find(file.schema_arrow.names, address)
            if _holds_paths(address, file, image):
                of_paths.append((address, image, caption))
                continue
            counts = [_rows_of(file.metadata.row_group(group)) for group in range(file.num_row_groups)]
            shards += [RowGroup(address, group, image, caption, n) for group, n in enumerate(counts)]
    if of_paths and shards:
        raise ValueError(
            f"of {addresses[0]} and the other files, some hold image paths and some image bytes; name files of one kind"
        )
    if of_paths:
        return joined((row for table in of_paths for row in _path_rows(*table, damaged)), addresses[0])
    total = sum(shard.count for shard in shards)
    if not total and not damaged:
        raise ValueError(f"{addresses[0]} holds no pairs")
    return Sharded(shards, total)


def _rows_of(group: pq.RowGroupMetaData) -> int:
    """The number of rows of a group; no column has fewer values, whatever a damaged file says."""
    return min([group.num_rows, *(group.column(number).num_values for number in range(group.num_columns))])


def _holds_paths(address: str, file: pq.ParquetFile, image: str) -> bool:
    """Whether the image column names files: it is of text, or else all of its values are paths.

    Spark writes text as bytes, and `datasets` writes {"bytes": None, "path": …}.
    """
    kind = file.schema_arrow.field(image).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if is_text(kind):
        return True
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    # Columns of images are seldom this small; only then are their values read, up to the first that is no path.
    if any(_column_bytes(group, [image]) > MAX_PATH_BYTES * group.num_rows for group in groups):
        return False
    # Damage ends this look; it is reported when the rows are read.
    return all_paths(cell for _, _, cell, _ in _path_rows(address, image, None, damaged=[]))


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is text."""
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def all_paths(cells: Iterable[Any]) -> bool:
    """Whether some of these image cells name files, and none holds an image; it stops at the first that does."""
    some = False
    for cell in cells:
        try:
            found = image_in(image_from_arrow(cell))
        except SkippedSample:
            continue
        if isinstance(found, bytes):
            return False
        some |= found is not None
    return some


@contextmanager
def _passing_over(damaged: list[str] | None, address: str) -> Iterator[None]:
    """If the file is damaged, end the block and add the file to `damaged`; if that is None, raise."""
    try:
        yield
    except DamagedFile:
        if damaged is None:
            raise
        damaged.append(address)


def _path_rows(address: str, image: str, caption: str | None, damaged: list[str] | None) -> Iterator[Row]:
    with _passing_over(damaged, address):
        for number, (path, text) in enumerate(_rows(address, image, caption), 1):
            yield address, number, path, text


def _rows(
    address: str, image: str, caption: str | None, group: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """The cells of image and caption of each row, of one row group or all; the caption is None without its column.

    Raises:
        ValueError: The file cannot be opened; `DamagedFile` if it is damaged.
    """
    with open_binary(address) as stream, reading(address):
        metadata = pq.read_metadata(stream)
        for number in range(metadata.num_row_groups) if group is None else [group]:
            images = _cells(stream, metadata, number, image)
            if caption is None:
                yield from ((cell, None) for cell in images)
                continue
            for cell, text in zip_longest(images, _cells(stream, metadata, number, caption)):
                if cell is None or text is None:
                    raise DamagedFile(
                        f"{address} is not a readable Parquet file: its columns differ in length"
                    )
                yield cell, text


def _cells(stream: BinaryIO, metadata: pq.FileMetaData, group: int, column: str) -> Iterator[pa.Scalar]:
    """The cells of a column of a row group, without trusting what the file says of their sizes.

    A few kilobytes can repeat one large value in every row, or in every item of a list. Large cells are therefore
    read one row at a time. Lists and small cells are read as a dictionary, which holds each value once. But Arrow keeps
    all earlier values of the group in that dictionary and copies it for every batch, which takes quadratic time unless
    the batches are a share of the group.
    """
    chunks = metadata.row_group(group)
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    own = [leaf for leaf in leaves if is_of(leaf.path, column)]
    size = _column_bytes(chunks, [column])
    is_large = size > MAX_SMALL_CELL * chunks.num_rows or size > MAX_IMAGE_BYTES
    if is_large and not any(leaf.max_repetition_level for leaf in own):
        rows, names = 1, []
    else:
        rows = min(max(chunks.num_rows // BATCHES, BATCH_ROWS), MAX_BATCH_ROWS)
        names = [leaf.path for leaf in own if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(stream, metadata=metadata, read_dictionary=names) as file:
        for batch in file.iter_batches(rows, [group], [column]):
            yield from batch.column(column)


def rows_at_a_time(file: pq.ParquetFile, group: int, columns: Collection[str], most: int) -> int:
    """The number of rows of a group, at most `most`, whose `columns` fit into the memory allowed for one image.

    A few kilobytes can decode to megabytes for each of a million rows.
    """
    # No value is larger than its uncompressed column.
    return max(
        1, min(most, MAX_IMAGE_BYTES // max(1, _column_bytes(file.metadata.row_group(group), columns)))
    )


def is_of(leaf: str, column: str) -> bool:
    """Whether a path in a Parquet schema is the column or a field in it; a column's name may itself have dots."""
    return leaf == column or leaf.startswith(f"{column}.")


def _column_bytes(group: pq.RowGroupMetaData, columns: Collection[str]) -> int:
    """The uncompressed bytes of the largest of some columns of a row group; 0 if it has none of them."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    own = [chunk for chunk in chunks if any(is_of(chunk.path_in_schema, column) for column in columns)]
    return max((chunk.total_uncompressed_size for chunk in own), default=0)


@dataclass
class RowGroup:
    """A row group of image bytes, as a `Shard`; offsets are rows."""

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
        rows = _rows(self.address, self.image, self.caption, self.group)
        with suppress(DamagedFile):
            for row, (image, caption) in enumerate(islice(rows, offset, None), offset + 1):
                name = f"{self.name}:{row - 1}"
                yield replace(to_sample(name, image, caption, self.address), key=name), row
        # Each row that is missing is a skipped sample of its own.
        for end in range(row + 1, self.count + 1):
            yield Sample(self.name, problem="damaged shard"), end
