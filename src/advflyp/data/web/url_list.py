"""A list of image addresses and captions: Parquet, CSV, TSV or JSON, in the order to try them in."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from advflyp.data.filenames import writable
from advflyp.data.pairs.addresses import quoted
from advflyp.data.pairs.arrow_cells import from_arrow
from advflyp.data.pairs.cells import address_in, captions_in
from advflyp.data.pairs.rows import SUFFIXES as TEXT_SUFFIXES
from advflyp.data.pairs.rows import find_column, read_text_table
from advflyp.data.pairs.tables import is_of, is_text, parquet_file, rows_at_a_time
from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.files import write_atomically
from advflyp.limits import MAX_CAPTION_BYTES

# Its functions are created at import, so that type checkers see none of them.
pc: Any = pyarrow.compute

SUFFIXES = (".parquet", *TEXT_SUFFIXES)
BATCH_ROWS = 8192
URL_NAMES = ("url", "image_url", "img_url", "link")
CAPTION_NAMES = ("caption", "text", "top_caption", "alt_text", "title")


@dataclass
class UrlList:
    """A list on this machine; `open_urls` makes it.

    Attributes:
        url, caption: Names of its columns.
        metadata: The Parquet schema's metadata, for example {"wanted": 1000000, "seed": 0}.
    """

    path: Path
    url: str
    caption: str
    columns: list[str]
    rows: int
    metadata: dict[str, Any]
    _table: pa.Table | None = None  # for formats other than Parquet

    def wanted(self) -> int | None:
        """The number of pairs wanted, if that was recorded when the list was made."""
        value = self.metadata.get("wanted")
        return value if isinstance(value, int) and value > 0 else None

    def write_slice(
        self, start: int, stop: int, target: Path, extra: Sequence[str] = ()
    ) -> tuple[int, dict[str, int]]:
        """Write rows [start, stop) to a Parquet file with columns url, caption and `extra`, white space tidied.

        Several captions of an image are written one per line, as in shards.

        Returns:
            The number of rows written, and {reason: number of rows} for those that cannot become a pair.
        """
        bad: Counter[str] = Counter()
        count = 0
        writer: pq.ParquetWriter | None = None
        with write_atomically(target) as file, ExitStack() as stack:
            for table in self._read(start, stop, extra):
                part = self._pairs(table, extra, bad)
                count += len(part)
                writer = writer or stack.enter_context(pq.ParquetWriter(file, part.schema))
                writer.write_table(part)
            assert writer is not None, "an empty slice"
        return count, dict(bad)

    def _pairs(self, table: pa.Table, extra: Sequence[str], bad: Counter[str]) -> pa.Table:
        """The rows of `table` that can become a pair; the others are counted by reason in `bad`."""
        good: list[tuple[int, str, str]] = []
        cells = zip(table.column(self.url), table.column(self.caption), strict=True)
        for number, (url, caption) in enumerate(cells):
            try:
                good.append((number, *_usable(url, caption)))
            except SkippedSample as reason:
                bad[str(reason)] += 1
        numbers = pa.array([number for number, _, _ in good], pa.int64())
        # Plain strings: the Arrow of another environment may not know newer ways to store them.
        columns: dict[str, Any] = {
            "url": pa.array([url for _, url, _ in good], pa.string()),
            "caption": pa.array([caption for _, _, caption in good], pa.string()),
        }
        return pa.table(columns | {name: _in_utf8(table.column(name).take(numbers)) for name in extra})

    def _read(self, start: int, stop: int, extra: Sequence[str]) -> Iterator[pa.Table]:
        # One column may have two uses.
        columns = list(dict.fromkeys([self.url, self.caption, *extra]))
        if self._table is not None:
            yield self._table.select(columns).slice(start, stop - start)
            return
        # A few bytes can repeat the same ten megabytes in a million rows; read as a dictionary, they stay small.
        with parquet_file(str(self.path)) as file:
            kinds = {name: file.schema_arrow.field(name).type for name in columns}
            leaves = list(map(file.schema.column, range(len(file.schema))))
        plain = (pa.string(), pa.large_string(), pa.binary())
        texts = [name for name, kind in kinds.items() if kind in plain]
        # Addresses and captions in lists or mappings; a further column is written as it is.
        nested = {self.url, self.caption} - {*texts, *extra}
        texts += [
            leaf.path
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY" and any(is_of(leaf.path, name) for name in nested)
        ]
        # Small batches would take quadratic time: Arrow copies the dictionary for each.
        others = [
            name
            for name, kind in kinds.items()
            if name not in (*texts, *nested) and not pa.types.is_primitive(kind)
        ]
        with parquet_file(str(self.path), read_dictionary=texts) as file:
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if begin < stop and end > start:
                    rows = rows_at_a_time(file, group, others, BATCH_ROWS)
                    for batch in file.iter_batches(rows, [group], columns):
                        first, last = max(start - begin, 0), min(stop - begin, len(batch))
                        if first < last:
                            part = batch.slice(first, last - first)
                            yield pa.table({name: _short(part.column(name)) for name in part.schema.names})
                        begin += len(batch)
                begin = end


def open_urls(path: Path, *, url_column: str | None = None, caption_column: str | None = None) -> UrlList:
    """Open a list; ValueError if it cannot be read, has no rows, or lacks a column.

    Args:
        url_column, caption_column: Names of the columns; by default the first known name, ignoring case.
    """
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a list of URLs, a file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise ValueError(f"there is no list {path}; `advflyp data sample` makes one")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}")
    table: Any = None
    metadata: dict[str, Any] = {}
    if suffix == ".parquet":
        with parquet_file(str(path)) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            metadata = _metadata(file.schema_arrow.metadata)
    else:
        with open(path, "rb") as file:
            text = read_text_table(str(path), file)
        cells = [cells for _, cells in text.rows()]
        table = pa.table({name: _array([row.get(name) for row in cells]) for name in text.names})
        names, rows = text.names, len(cells)

    def find(what: str, given: str | None, known: Sequence[str]) -> str:
        return find_column(given, known, names, str(path), what=what, option=f"--{what}-column")

    url, caption = find("url", url_column, URL_NAMES), find("caption", caption_column, CAPTION_NAMES)
    if not rows:
        raise ValueError(f"{path} has no rows")
    return UrlList(path, url, caption, names, rows, metadata, table)


def _short(column: pa.Array) -> pa.Array:
    """Decode a dictionary column, text of more than MAX_CAPTION_BYTES becoming null; other columns stay as they are."""
    if not isinstance(column, pa.DictionaryArray):
        return column
    words = column.dictionary
    words = pc.if_else(pc.less_equal(pc.binary_length(words), MAX_CAPTION_BYTES), words, None)
    return pa.DictionaryArray.from_arrays(column.indices, words).dictionary_decode()


def _in_utf8(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column; in text that is not UTF-8, question marks take the place of the bytes that are wrong."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        if not is_text(column.type):
            raise
        cells = (cell.as_buffer() for cell in column)
        texts = [
            cell and cell.to_pybytes().decode("utf-8", "replace").replace("\ufffd", "?") for cell in cells
        ]
        return pa.chunked_array([pa.array(texts, column.type)])


def _array(values: list[Any]) -> Any:
    """An array of values of one type; if they are mixed, as JSON allows, of text and the JSON of everything else."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        texts = (value if isinstance(value, str) or value is None else json.dumps(value) for value in values)
        # JSON can hold lone surrogates.
        return pa.array([text and writable(text) for text in texts], pa.string())


def _metadata(found: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The recorded metadata, without the type information of Arrow, pandas and others."""
    kept: dict[str, Any] = {}
    for key, value in (found or {}).items():
        name = key.decode("utf-8", "replace")
        if name in ("pandas", "huggingface") or name.startswith("ARROW"):
            continue
        text = value.decode("utf-8", "replace")
        try:
            kept[name] = parse_json(text)
        except ValueError:
            kept[name] = text
    return kept


def _usable(url: Any, caption: Any) -> tuple[str, str]:
    """Address and captions of a row, or `SkippedSample`."""
    address = address_in(from_arrow(url, "address"))
    if address is None:
        raise SkippedSample("no address")
    found = captions_in(from_arrow(caption, "caption"))
    captions = [text for one in found if (text := " ".join(one.split()))]
    if not captions:
        raise SkippedSample("empty caption")
    lines = "\n".join(captions)
    if len(lines.encode(errors="surrogatepass")) > MAX_CAPTION_BYTES:
        raise SkippedSample("caption is too long")
    return quoted(address), lines
