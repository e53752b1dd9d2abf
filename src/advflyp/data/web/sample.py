"""A uniform sample of image–text metadata: many large Parquet files, one pass, bounded memory.

Every row gets a priority, a seeded 64-bit hash of its URL, and the rows of the smallest priorities are kept. That
draws uniformly without replacement from the distinct URLs; which are drawn depends neither on the order of files and
rows nor on how they are grouped, and the first n of the result are themselves a uniform sample. A URL that comes twice
counts once: of its rows that pass the filters the first stays, by the order of the files as they were named (a glob's
are sorted) and then of their rows.
"""

import json
import math
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
from advflyp.data.pairs.addresses import expand, is_remote, open_binary
from advflyp.data.web.metadata import (
    NUMBERS,
    SPACE,
    Filters,
    common_schema,
    conditions,
    numbers_of,
    read_layout,
    text_of,
)
from advflyp.files import write_atomically
from advflyp.wording import counted

# Its functions are made at import; a type checker sees none of them.
pc: Any = pyarrow.compute

BATCH_ROWS = 65_536
MAX_PIECES = 4096
BUFFER_BYTES = 8 << 20
GROUP_ROWS = 100_000
# Bytes of a kept row of LAION's kind with everything Arrow and the priorities add (`benchmarks/sample.py`).
ROW_BYTES = 300


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
    drawn:   rows to draw for them; `kept` is less where there are not so many
    dropped: {reason: rows} that could not be drawn
    """

    rows: int = 0
    kept: int = 0
    wanted: int = 0
    drawn: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """For people; says so if there were fewer rows than asked for."""
        left_out = "".join(f", {number:,} without: {reason}" for reason, number in self.dropped.most_common())
        lines = [f"{self.kept:,} of {counted(self.rows, 'row')}{left_out}"]
        if self.kept < self.drawn:
            lines.append(
                f"there are no more rows to draw; {self.drawn:,} were asked for, to get "
                f"{counted(self.wanted, 'good pair')}"
            )
        return "\n".join(lines)


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
    drawn = _number_to_draw(num, expect_success)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"--seed must be from 0 to 2^64 - 1, not {seed}")
    if out.exists():
        raise ValueError(f"{out} exists; remove it or name another file")
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet, not {out.name}")
    files = _files(metadata)
    layouts = []
    for file in files:
        with _opened(file) as parquet:
            layouts.append(read_layout(parquet.schema_arrow, file, filters, columns))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {out}: {error.strerror}; name another --out") from None
    schema = common_schema(layouts)
    summary = Summary(wanted=num, drawn=drawn)
    best = _Best(drawn, schema)
    for file, layout in zip(files, layouts, strict=True):
        for batch in _batches(file, list(dict.fromkeys(layout.names.values()))):
            summary.rows += len(batch)
            found = {ours: batch.column(theirs) for ours, theirs in layout.names.items()}
            best.add(*_candidates(found, schema, filters, summary.dropped, seed, best.limit))
            if progress is not None:
                progress(summary.rows)
    table = best.result()
    summary.kept = len(table)
    if not len(table):
        raise ValueError(
            f"no row can be drawn: of {counted(summary.rows, 'row')} {dict(summary.dropped)} were left out"
        )
    about = {
        "wanted": num,
        "drawn": drawn,
        "seed": seed,
        "expect_success": expect_success,
        "rows": summary.rows,
        "dropped": dict(summary.dropped),
        "sources": list(metadata),
        "filters": {f.name: getattr(filters, f.name) for f in fields(filters)},
        "version": __version__,
    }
    _write(table, {key: json.dumps(value) for key, value in about.items()}, out)
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
    drawn = _number_to_draw(num, expect_success)
    files = _files(metadata)
    rows = groups = size = 0
    first: dict[str, str] = {}
    for file in files:
        with _opened(file) as parquet:
            names = read_layout(parquet.schema_arrow, file, filters, columns).names
            first = first or names
            about = parquet.metadata
            rows, groups = rows + about.num_rows, groups + about.num_row_groups
            for group in range(about.num_row_groups):
                for column in range(about.num_columns):
                    chunk = about.row_group(group).column(column)
                    size += chunk.total_compressed_size if chunk.path_in_schema in names.values() else 0
    memory = 300_000_000 + 3 * min(rows, drawn) * ROW_BYTES
    return Plan(len(files), rows, groups, size, memory, first)


def _candidates(
    found: dict[str, pa.Array],
    schema: pa.Schema,
    filters: Filters,
    dropped: Counter[str],
    seed: int,
    limit: int,
) -> tuple[np.ndarray, pa.Table]:
    """Priorities (n,) uint64 and rows of those that may be drawn and can still be among the best.

    The others that may not be drawn are counted by the first reason.
    """
    rows = {ours: numbers_of(column) if ours in NUMBERS else column for ours, column in found.items()}
    rows["url"], rows["caption"] = pc.utf8_trim_whitespace(text_of(rows["url"])), text_of(rows["caption"])
    good = np.ones(len(rows["url"]), bool)
    for reason, condition in conditions(rows, filters):
        # A missing value is not good.
        kept = good & pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
        if lost := int(good.sum() - kept.sum()):
            dropped[reason] += lost
        good = kept
    urls = rows["url"].filter(pa.array(good)).cast(pa.large_binary()).to_pylist()
    digest = xxhash.xxh3_64_intdigest
    priorities = np.fromiter((digest(url, seed) for url in urls), np.uint64, len(urls))
    among = priorities <= np.uint64(limit)
    chosen = pa.array(np.flatnonzero(good)[among])
    rows = {ours: column.take(chosen) for ours, column in rows.items()}
    folded = pc.replace_substring_regex(rows["caption"], f"[{SPACE}]+", " ")
    rows["caption"] = pc.utf8_trim_whitespace(folded)
    columns = [
        pa.nulls(len(chosen), column.type)
        if column.name not in rows
        else text_of(rows[column.name])
        if pa.types.is_large_string(column.type)
        else numbers_of(rows[column.name]).cast(column.type)
        for column in schema
    ]
    return priorities[among], pa.table(columns, schema=schema)


class _Best:
    """The rows of the `number` smallest priorities so far, one for each URL: the first that came.

    Two URLs of the same hash count as one; among 5 · 10⁹ that befalls less than one.
    """

    def __init__(self, number: int, schema: pa.Schema) -> None:
        self.number = number
        self.limit = (1 << 64) - 1  # what is above cannot be among the best any more
        self.priorities = [np.empty(0, np.uint64)]
        self.tables = [schema.empty_table()]
        self.waiting = 0

    def add(self, priorities: np.ndarray, table: pa.Table) -> None:
        if not len(table):
            return
        self.priorities.append(priorities)
        self.tables.append(table)
        self.waiting += len(table)
        # Late in a pass a batch adds a few rows only, and many small tables need more memory than their rows.
        if self.waiting >= 2 * self.number + BATCH_ROWS or len(self.tables) >= MAX_PIECES:
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
        table = pa.concat_tables(self.tables)
        self.priorities = [priorities[chosen]]
        self.tables = [table.take(pa.array(chosen)).combine_chunks()]
        self.waiting = len(chosen)
        if len(chosen) == self.number:
            self.limit = int(priorities[chosen[-1]])


def _number_to_draw(num: int, expect_success: float) -> int:
    if num < 1:
        raise ValueError(f"--num must be at least 1, not {num}")
    if not 0 < expect_success <= 1:
        raise ValueError(f"--expect-success is a share above 0 and up to 1, not {expect_success}")
    return math.ceil(num / expect_success)


def _files(metadata: Sequence[str]) -> list[str]:
    files = [file for pattern in metadata for file in expand(pattern, "*.parquet")]
    if not files:
        raise ValueError("name at least one Parquet file of metadata")
    return list(dict.fromkeys(files))


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    # Nothing is read ahead, or a file's whole contents would pile up; a remote column is read in one request.
    with open_binary(file) as stream:
        try:
            parquet = pq.ParquetFile(
                stream, pre_buffer=False, buffer_size=0 if is_remote(file) else BUFFER_BYTES
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from None
        yield parquet


def _batches(file: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with _opened(file) as parquet:
        try:
            yield from parquet.iter_batches(BATCH_ROWS, columns=columns)
        except Exception as error:
            # Every file system of fsspec has errors of its own.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(
                f"{file} cannot be read to its end; fetch it anew and sample again ({reason})"
            ) from None


def _write(table: pa.Table, about: Mapping[str, str], out: Path) -> None:
    """All or nothing; with plain strings, which every reader knows."""
    schema = pa.schema(
        [(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in table.schema],
        dict(about),
    )
    with write_atomically(out, replace=False) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(table), GROUP_ROWS):
            # Taken, not sliced: a slice keeps the offsets of the whole, which may be too large to cast.
            group = table.take(pa.array(range(start, min(start + GROUP_ROWS, len(table)))))
            writer.write_table(group.cast(schema))
