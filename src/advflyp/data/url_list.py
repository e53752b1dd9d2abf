"""A list of picture addresses and captions: Parquet, CSV, TSV or JSON lines, in the order to try them in."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from advflyp.config import suggest

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
URL_NAMES = ("url", "image_url", "img_url", "link")
CAPTION_NAMES = ("caption", "text", "top_caption", "alt_text", "title")


@dataclass
class UrlList:
    """A list on this machine; `open_urls` makes it.

    url, caption: names of its columns
    rows:         how many
    metadata:     what the Parquet schema says of itself, for example {"wanted": "1000000", "seed": "0"}
    """

    path: Path
    url: str
    caption: str
    columns: list[str]
    rows: int
    metadata: dict[str, Any]
    _table: pa.Table | None = None  # of what is not Parquet

    def wanted(self) -> int | None:
        """The number of pairs that whoever made the list wanted from it."""
        value = self.metadata.get("wanted")
        return value if isinstance(value, int) and value > 0 else None

    def sha256(self) -> str:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write_slice(
        self, start: int, stop: int, target: Path, extra: Sequence[str] = ()
    ) -> tuple[int, dict[str, int]]:
        """Write rows [start, stop) to a Parquet file with columns url and caption, white space tidied.

        extra: further columns to keep
        Returns how many rows it has, and {reason: rows} of those that cannot become a pair.
        """
        bad: Counter[str] = Counter()
        count = 0
        draft = target.with_suffix(".partial")
        writer: pq.ParquetWriter | None = None
        for table in self._read(start, stop, [self.url, self.caption, *extra]):
            urls = [_tidy(value) for value in table.column(self.url).to_pylist()]
            captions = [_tidy(value) for value in table.column(self.caption).to_pylist()]
            good = [number for number in range(len(urls)) if urls[number] and captions[number]]
            bad["no address"] += sum(not url for url in urls)
            bad["empty caption"] += sum(
                bool(url and not text) for url, text in zip(urls, captions, strict=True)
            )
            count += len(good)
            # Plain strings: the Arrow of another environment may not know newer ways to store them.
            columns: dict[str, Any] = {
                "url": pa.array([urls[number] for number in good], pa.string()),
                "caption": pa.array([captions[number] for number in good], pa.string()),
                **{name: table.column(name).take(pa.array(good, pa.int64())) for name in extra},
            }
            part = pa.table(columns)
            writer = writer or pq.ParquetWriter(draft, part.schema)
            writer.write_table(part)
        assert writer is not None, "an empty slice"
        writer.close()
        draft.replace(target)
        return count, {reason: n for reason, n in bad.items() if n}

    def _read(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
        if self._table is not None:
            yield self._table.select(columns).slice(start, stop - start)
            return
        with pq.ParquetFile(self.path) as file:
            begin = 0
            for group in range(file.num_row_groups):
                end = begin + file.metadata.row_group(group).num_rows
                if begin < stop and end > start:
                    first = max(start - begin, 0)
                    yield file.read_row_group(group, columns).slice(first, min(stop, end) - begin - first)
                begin = end


def open_urls(path: Path, *, url_column: str | None = None, caption_column: str | None = None) -> UrlList:
    """Open a list; ValueError where it cannot be read, has no rows, or lacks a column.

    url_column, caption_column: by default the first known name, whatever its case
    """
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"there is no list {path}; `advflyp data sample` makes one")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} must be one of {', '.join(SUFFIXES)}")
    table: Any = None
    metadata: dict[str, Any] = {}
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                names, rows = file.schema_arrow.names, file.metadata.num_rows
                metadata = _metadata(file.schema_arrow.metadata)
        else:
            table = _table(path, suffix)
            names, rows = table.column_names, table.num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    url = _column(url_column, URL_NAMES, names, path, "url")
    caption = _column(caption_column, CAPTION_NAMES, names, path, "caption")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return UrlList(path, url, caption, names, rows, metadata, table)


def _table(path: Path, suffix: str) -> pa.Table:
    if suffix == ".jsonl":
        return pa_json.read_json(path)
    options = pa_csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
    return pa_csv.read_csv(path, parse_options=options)


def _metadata(found: dict[bytes, bytes] | None) -> dict[str, Any]:
    """What was recorded, without what Arrow, pandas and others note about types."""
    kept: dict[str, Any] = {}
    for key, value in (found or {}).items():
        name = key.decode("utf-8", "replace")
        if name in ("pandas", "huggingface") or name.startswith("ARROW"):
            continue
        text = value.decode("utf-8", "replace")
        try:
            kept[name] = json.loads(text)
        except json.JSONDecodeError:
            kept[name] = text
    return kept


def _column(given: str | None, known: tuple[str, ...], names: list[str], path: Path, kind: str) -> str:
    if given is not None:
        if given not in names:
            raise ValueError(f"{path} has no column '{given}'{suggest(given, names)}")
        return given
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in known if name in lower), None)
    if found is None:
        raise ValueError(
            f"{path} has no column '{kind}'; name one of {', '.join(names)} with --{kind}-column"
        )
    return found


def _tidy(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
