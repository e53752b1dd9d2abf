"""A uniform sample of image–text metadata: many large Parquet files, one pass, bounded memory.

Every row gets a priority, a seeded hash of its URL, and the rows of the smallest priorities are kept. That draws
uniformly without replacement from the distinct URLs; the order of files and rows does not matter, a URL that comes
twice counts once, and the first n of the result are themselves a uniform sample.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import xxhash

from advflyp.__about__ import __version__
from advflyp.config import suggest
from advflyp.data.addresses import expand, open_binary

# Its functions are made at import; a type checker sees none of them.
pc: Any = pyarrow.compute

# What the columns are called in LAION-400M, LAION-2B and 5B, Re-LAION, COYO, CC12M, DataComp; case does not matter.
KNOWN = {
    "url": ("url", "image_url", "img_url", "link"),
    "caption": ("caption", "text", "top_caption", "alt_text", "title"),
    "similarity": (
        "similarity",
        "clip_similarity_vitb32",
        "clip_b32_similarity_score",
        "clip_l14_similarity_score",
    ),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "licence": ("license", "licence"),
    "nsfw": ("nsfw", "nsfw_score_opennsfw2", "punsafe", "pwatermark_nsfw"),
    "language": ("language", "lang"),
}
NEEDED = ("url", "caption")
BATCH_ROWS = 65_536
# Bytes of a kept row of LAION's kind with everything Arrow and the priorities add (`benchmarks/sample.py`).
ROW_BYTES = 280


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which rows may be drawn; None asks nothing.

    min_similarity:        of picture and caption, as the metadata has it
    min_side:              pixels of the shorter side
    max_aspect:            longer side over shorter side
    licences, languages:   one of these, compared without regard to case
    max_nsfw:              for a score; for LAION's words UNLIKELY, UNSURE, NSFW the number of the word from 0
    min_caption_words, max_caption_words
    ValueError for an impossible value.
    """

    min_similarity: float | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    licences: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    max_nsfw: float | None = None
    min_caption_words: int | None = None
    max_caption_words: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_side", "min_caption_words", "max_caption_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(
                f"max_aspect is the longer side over the shorter, at least 1, not {self.max_aspect}"
            )
        if (self.min_caption_words or 1) > (self.max_caption_words or math.inf):
            raise ValueError("min_caption_words is above max_caption_words; no caption can be both")

    def needs(self) -> dict[str, tuple[str, ...]]:
        """The filters that are set, each with the columns it reads."""
        columns = {
            "min_similarity": ("similarity",),
            "min_side": ("width", "height"),
            "max_aspect": ("width", "height"),
            "licences": ("licence",),
            "languages": ("language",),
            "max_nsfw": ("nsfw",),
        }
        return {name: used for name, used in columns.items() if getattr(self, name) is not None}


@dataclass(frozen=True)
class Plan:
    """What a sampling reads, from the files' footers alone.

    columns: our name → theirs, of the first file
    bytes:   of the columns that are read, compressed
    memory:  bytes it will need, about
    """

    files: int
    rows: int
    row_groups: int
    bytes: int
    memory: int
    columns: dict[str, str]


@dataclass
class Summary:
    """What a sampling did.

    rows:    read
    kept:    written
    wanted:  good pairs that were asked for
    dropped: {reason: rows} that could not be drawn
    """

    rows: int = 0
    kept: int = 0
    wanted: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def sample(
    metadata: Sequence[str],
    *,
    num: int,
    out: Path,
    seed: int = 0,
    expect_success: float = 1.0,
    filters: Filters | None = None,
    columns: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Summary:
    """Draw rows of `metadata` and write them to the Parquet file `out`, those of the smallest priority first.

    metadata:       Parquet files: names, globs, {braces}, here or at any address of fsspec
    num:            good pairs that are wanted
    expect_success: share of the links that still work: num / expect_success rows are drawn
    columns:        our name → theirs ("url", "caption", "similarity", …), where theirs is not known
    progress:       called with the rows read so far
    With fewer rows than asked for, all are written. The file's metadata say how it was made.
    ValueError for files that cannot be read or lack a column that is needed, and an impossible number.
    """
    filters = filters or Filters()
    if num < 1:
        raise ValueError(f"--num must be at least 1, not {num}")
    if not 0 < expect_success <= 1:
        raise ValueError(f"--expect-success is a share above 0 and up to 1, not {expect_success}")
    if out.exists():
        raise ValueError(f"{out} exists; remove it or name another file")
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet, not {out.name}")
    files = _files(metadata)
    for file in files:
        with _opened(file) as parquet:
            find_columns(parquet.schema_arrow.names, file, filters, columns)
    drawn = math.ceil(num / expect_success)
    summary = Summary(wanted=num)
    best = _Best(drawn)
    for file in files:
        with _opened(file) as parquet:
            names = find_columns(parquet.schema_arrow.names, file, filters, columns)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(names.values()))):
                summary.rows += len(batch)
                found = pa.table({ours: batch.column(theirs) for ours, theirs in names.items()})
                best.add(*_prioritised(_eligible(found, filters, summary.dropped), seed, best.limit))
                if progress is not None:
                    progress(summary.rows)
    table = best.result()
    summary.kept = len(table)
    if not len(table):
        raise ValueError(
            f"no row can be drawn: of {summary.rows:,} rows {dict(summary.dropped)} were left out"
        )
    about = {
        "wanted": num,
        "seed": seed,
        "expect_success": expect_success,
        "rows": summary.rows,
        "dropped": dict(summary.dropped),
        "sources": list(metadata),
        "filters": {f.name: getattr(filters, f.name) for f in fields(filters)},
        "version": __version__,
    }
    table = table.replace_schema_metadata({key: json.dumps(value) for key, value in about.items()})
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(out.name + ".partial")
    pq.write_table(table, draft, row_group_size=100_000)
    os.replace(draft, out)
    return summary


def plan(
    metadata: Sequence[str],
    *,
    num: int,
    expect_success: float = 1.0,
    filters: Filters | None = None,
    columns: Mapping[str, str] | None = None,
) -> Plan:
    """What `sample` would read, from the footers alone; ValueError as there."""
    filters = filters or Filters()
    files = _files(metadata)
    rows = groups = size = 0
    first: dict[str, str] = {}
    for file in files:
        with _opened(file) as parquet:
            names = find_columns(parquet.schema_arrow.names, file, filters, columns)
            first = first or names
            about = parquet.metadata
            rows, groups = rows + about.num_rows, groups + about.num_row_groups
            for group in range(about.num_row_groups):
                for column in range(about.num_columns):
                    chunk = about.row_group(group).column(column)
                    size += chunk.total_compressed_size if chunk.path_in_schema in names.values() else 0
    kept = min(rows, math.ceil(num / expect_success))
    return Plan(len(files), rows, groups, size, 300_000_000 + 3 * kept * ROW_BYTES, first)


def find_columns(
    names: Sequence[str], file: str, filters: Filters, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our names → the file's columns; ValueError where one that is needed is not found."""
    lower = {name.lower(): name for name in reversed(list(names))}
    found: dict[str, str] = {}
    for ours, theirs in (given or {}).items():
        if ours not in KNOWN:
            raise ValueError(f"there is no column '{ours}' to be named{suggest(ours, KNOWN)}")
        if theirs not in names:
            raise ValueError(f"{file} has no column '{theirs}'{suggest(theirs, names)}")
        found[ours] = theirs
    for ours, known in KNOWN.items():
        theirs = next((lower[name] for name in known if name in lower), None)
        if theirs is not None:
            found.setdefault(ours, theirs)
    wanted = dict.fromkeys(NEEDED, "a sample")
    wanted |= {column: name for name, used in filters.needs().items() for column in used}
    for column, needer in wanted.items():
        if column not in found:
            raise ValueError(
                f"{file} has no column of {column}s by a known name, which {needer} needs; it has "
                f"{', '.join(names)}: name one with --columns {column} NAME"
            )
    return found


def _eligible(table: pa.Table, filters: Filters, dropped: Counter[str]) -> pa.Table:
    """The rows that may be drawn, captions on one line; the others are counted by the first reason."""
    caption = pc.utf8_trim_whitespace(
        pc.replace_substring_regex(table["caption"].cast(pa.string()), r"\s+", " ")
    )
    table = table.set_column(table.column_names.index("caption"), "caption", caption)
    table = table.set_column(table.column_names.index("url"), "url", table["url"].cast(pa.string()))
    for reason, is_good in _conditions(filters):
        # A missing value is not good.
        kept = table.filter(pc.fill_null(is_good(table), False))
        if len(kept) < len(table):
            dropped[reason] += len(table) - len(kept)
        table = kept
    return table


def _conditions(filters: Filters) -> Iterator[tuple[str, Callable[[pa.Table], Any]]]:
    """Why a row would be left out, and which rows are not."""
    yield "no web address", lambda rows: pc.match_substring_regex(rows["url"], r"^https?://[^\s/]+")
    yield "no caption", lambda rows: pc.greater(pc.utf8_length(rows["caption"]), 0)
    f = filters
    if f.min_similarity is not None:
        yield "similarity", lambda rows: pc.greater_equal(_numbers(rows["similarity"]), f.min_similarity)
    if f.min_side is not None:
        yield (
            "size",
            lambda rows: pc.greater_equal(pc.min_element_wise(*_sides(rows)), float(f.min_side or 0)),
        )
    if f.max_aspect is not None:
        yield (
            "aspect",
            lambda rows: pc.less_equal(
                pc.max_element_wise(*_sides(rows)),
                pc.multiply(pc.min_element_wise(*_sides(rows)), f.max_aspect),
            ),
        )
    if f.licences is not None:
        yield "licence", lambda rows: _one_of(rows["licence"], f.licences or ())
    if f.languages is not None:
        yield "language", lambda rows: _one_of(rows["language"], f.languages or ())
    if f.max_nsfw is not None:
        yield "nsfw", lambda rows: pc.less_equal(_nsfw(rows["nsfw"]), f.max_nsfw)
    if f.min_caption_words is not None:
        yield "short caption", lambda rows: pc.greater_equal(_words(rows), f.min_caption_words)
    if f.max_caption_words is not None:
        yield "long caption", lambda rows: pc.less_equal(_words(rows), f.max_caption_words)


def _numbers(column: Any) -> Any:
    return column.cast(pa.float64())


def _sides(rows: pa.Table) -> tuple[Any, Any]:
    return _numbers(rows["width"]), _numbers(rows["height"])


def _one_of(column: Any, allowed: Sequence[str]) -> Any:
    return pc.is_in(pc.utf8_lower(column.cast(pa.string())), pa.array([value.lower() for value in allowed]))


def _words(rows: pa.Table) -> Any:
    return pc.add(pc.count_substring(rows["caption"], " "), 1)


def _nsfw(column: Any) -> Any:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.index_in(pc.utf8_upper(column), pa.array(["UNLIKELY", "UNSURE", "NSFW"]))
    return _numbers(column)


def _prioritised(table: pa.Table, seed: int, limit: int) -> tuple[np.ndarray, pa.Table]:
    """Priorities (n,) uint64 and rows, of those that can still be among the best."""
    digest = xxhash.xxh3_64_intdigest
    priorities = np.fromiter(
        (digest(url, seed) for url in table["url"].cast(pa.binary()).to_pylist()),
        dtype=np.uint64,
        count=len(table),
    )
    chosen = np.flatnonzero(priorities <= np.uint64(limit))
    return priorities[chosen], table.take(pa.array(chosen)) if len(chosen) < len(table) else table


class _Best:
    """The rows of the `number` smallest priorities so far, one for each URL: the first that came."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.limit = (1 << 64) - 1  # what is above cannot be among the best any more
        self.priorities: list[np.ndarray] = []
        self.tables: list[pa.Table] = []
        self.waiting = 0

    def add(self, priorities: np.ndarray, table: pa.Table) -> None:
        self.priorities.append(priorities)
        self.tables.append(table)
        self.waiting += len(priorities)
        if self.waiting >= 2 * self.number + BATCH_ROWS:
            self._compact()

    def result(self) -> pa.Table:
        self._compact()
        return self.tables[0]

    def _compact(self) -> None:
        priorities = np.concatenate(self.priorities)
        # Stable, so that of equal URLs the first stays.
        order = np.argsort(priorities, kind="stable")
        ordered = priorities[order]
        distinct = np.ones(len(order), bool)
        distinct[1:] = ordered[1:] != ordered[:-1]
        chosen = order[distinct][: self.number]
        # Files may have different further columns; those that only some have are empty for the others.
        table = pa.concat_tables(self.tables, promote_options="permissive").take(pa.array(chosen))
        self.tables, self.priorities = [table.combine_chunks()], [priorities[chosen]]
        self.waiting = len(chosen)
        if len(chosen) == self.number:
            self.limit = int(priorities[chosen[-1]])


def _files(metadata: Sequence[str]) -> list[str]:
    files = [file for pattern in metadata for file in expand(pattern, "*.parquet")]
    if not files:
        raise ValueError("name at least one Parquet file of metadata")
    return list(dict.fromkeys(files))


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    with open_binary(file) as stream:
        try:
            parquet = pq.ParquetFile(stream)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from None
        yield parquet
