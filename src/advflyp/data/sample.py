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
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import xxhash

from advflyp.__about__ import __version__
from advflyp.config import suggest
from advflyp.data.addresses import expand, is_remote, open_binary

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
    "nsfw": ("nsfw", "punsafe", "nsfw_score_opennsfw2"),
    "language": ("language", "lang"),
}
NEEDED = ("url", "caption")
NUMBERS = ("similarity", "width", "height")
NSFW_WORDS = ("UNLIKELY", "UNSURE", "NSFW")
SPACE = r"\t-\r\x1c- \x{85}\pZ"  # what str.split() takes for white space
BATCH_ROWS = 65_536
MAX_PIECES = 4096
BUFFER_BYTES = 8 << 20
GROUP_ROWS = 100_000
# Bytes of a kept row of LAION's kind with everything Arrow and the priorities add (`benchmarks/sample.py`).
ROW_BYTES = 300


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which rows may be drawn; None asks nothing.

    min_similarity:        of picture and caption, as the metadata has it
    min_side:              pixels of the shorter side
    max_aspect:            longer side over shorter side
    licences, languages:   one of these, compared without regard to case
    max_nsfw:              for a score; for LAION's words UNLIKELY, UNSURE, NSFW the number of the word from 0
    min_caption_words, max_caption_words
    A row that lacks the value a filter asks for is not drawn. ValueError for an impossible value.
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
        for name in ("min_similarity", "max_aspect", "max_nsfw"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
        for name in ("licences", "languages"):
            if getattr(self, name) == ():
                raise ValueError(
                    f"{name} is empty, so no row could be drawn; name at least one or leave it out"
                )
        if (self.max_nsfw or 0) < 0:
            raise ValueError(f"max_nsfw must be at least 0, not {self.max_nsfw}")
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
        lines = [f"{self.kept:,} of {self.rows:,} rows{left_out}"]
        if self.kept < self.drawn:
            lines.append(
                f"there are no more rows to draw; {self.drawn:,} were asked for, to get {self.wanted:,} good pairs"
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
            layouts.append(_layout(parquet.schema_arrow, file, filters, columns))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder of {out}: {error.strerror}; name another --out") from None
    schema = _common_schema(layouts)
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
            f"no row can be drawn: of {summary.rows:,} rows {dict(summary.dropped)} were left out"
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
            names = _layout(parquet.schema_arrow, file, filters, columns).names
            first = first or names
            about = parquet.metadata
            rows, groups = rows + about.num_rows, groups + about.num_row_groups
            for group in range(about.num_row_groups):
                for column in range(about.num_columns):
                    chunk = about.row_group(group).column(column)
                    size += chunk.total_compressed_size if chunk.path_in_schema in names.values() else 0
    memory = 300_000_000 + 3 * min(rows, drawn) * ROW_BYTES
    return Plan(len(files), rows, groups, size, memory, first)


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


class _Layout(NamedTuple):
    """Of a file: our name → its column, and our name → that column's type (of values, if they are in a dictionary)."""

    names: dict[str, str]
    types: dict[str, pa.DataType]


def _layout(schema: pa.Schema, file: str, filters: Filters, given: Mapping[str, str] | None) -> _Layout:
    """ValueError where a column that is needed is not found among those of text and numbers."""
    types: dict[str, pa.DataType] = {}
    for name, kind in zip(schema.names, schema.types, strict=True):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not pa.types.is_nested(kind) and not pa.types.is_temporal(kind):
            types[name] = kind
    names = find_columns(list(types), file, filters, given)
    return _Layout(names, {ours: types[theirs] for ours, theirs in names.items()})


def _common_schema(layouts: Sequence[_Layout]) -> pa.Schema:
    """Of the sample: what any file has. Large strings, because a sample's text may be more than 2 GiB."""
    columns = []
    for ours in KNOWN:
        types = [layout.types[ours] for layout in layouts if ours in layout.types]
        if not types:
            continue
        if ours in NUMBERS or (ours == "nsfw" and all(_is_number(kind) for kind in types)):
            whole = all(pa.types.is_integer(kind) for kind in types)
            columns.append((ours, pa.int64() if whole else pa.float64()))
        else:
            columns.append((ours, pa.large_string()))
    return pa.schema(columns)


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
    rows = {ours: _numbers(column) if ours in NUMBERS else column for ours, column in found.items()}
    rows["url"], rows["caption"] = pc.utf8_trim_whitespace(_text(rows["url"])), _text(rows["caption"])
    good = np.ones(len(rows["url"]), bool)
    for reason, condition in _conditions(rows, filters):
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
        else _text(rows[column.name])
        if pa.types.is_large_string(column.type)
        else _numbers(rows[column.name]).cast(column.type)
        for column in schema
    ]
    return priorities[among], pa.table(columns, schema=schema)


def _conditions(rows: Mapping[str, Any], f: Filters) -> Iterator[tuple[str, Any]]:
    """Why rows would be left out, and which rows (n,) are not."""
    yield "no web address", pc.match_substring_regex(rows["url"], f"^(?i:https?)://[^{SPACE}/]")
    yield "no caption", pc.match_substring_regex(rows["caption"], f"[^{SPACE}]")
    if f.min_similarity is not None:
        yield "similarity", pc.greater_equal(rows["similarity"], f.min_similarity)
    if f.min_side is not None or f.max_aspect is not None:
        sides = rows["width"], rows["height"]
        shorter, longer = (of(*sides, skip_nulls=False) for of in (pc.min_element_wise, pc.max_element_wise))
        yield "size", pc.greater_equal(shorter, float(f.min_side or 1))
        if f.max_aspect is not None:
            yield "aspect", pc.less_equal(longer, pc.multiply(shorter, f.max_aspect))
    if f.licences is not None:
        yield "licence", _one_of(rows["licence"], f.licences)
    if f.languages is not None:
        yield "language", _one_of(rows["language"], f.languages)
    if f.max_nsfw is not None:
        yield "nsfw", pc.less_equal(_nsfw(rows["nsfw"]), f.max_nsfw)
    if f.min_caption_words is not None or f.max_caption_words is not None:
        words = pc.count_substring_regex(rows["caption"], f"[^{SPACE}]+")
        yield "short caption", pc.greater_equal(words, f.min_caption_words or 1)
        if f.max_caption_words is not None:
            yield "long caption", pc.less_equal(words, f.max_caption_words)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _text(column: Any) -> Any:
    """As large strings; what is not UTF-8 is missing."""
    column = _plain(column)
    try:
        column = column.cast(pa.large_string())
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        return pa.array(map(_decoded, column.cast(pa.large_binary()).to_pylist()), pa.large_string())


def _decoded(text: bytes | None) -> str | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return None


def _numbers(column: Any) -> Any:
    """As float64; text that is no number, and NaN, are missing."""
    column = _plain(column)
    if not _is_number(column.type):
        column = _text(column)
        is_number = pc.match_substring_regex(column, r"^[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$")
        column = pc.if_else(is_number, column, None)
    column = column.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(column), None, column)


def _one_of(column: Any, allowed: Sequence[str]) -> Any:
    wanted = pa.array([value.lower() for value in allowed], pa.large_string())
    return pc.is_in(pc.utf8_lower(_text(column)), wanted)


def _nsfw(column: Any) -> Any:
    if _is_number(_plain(column).type):
        return _numbers(column)
    words = pc.index_in(pc.utf8_upper(_text(column)), pa.array(NSFW_WORDS, pa.large_string()))
    return pc.coalesce(words.cast(pa.float64()), _numbers(column))


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
    draft = out.with_name(out.name + ".partial")
    try:
        with pq.ParquetWriter(draft, schema) as writer:
            for start in range(0, len(table), GROUP_ROWS):
                # Taken, not sliced: a slice keeps the offsets of the whole, which may be too large to cast.
                group = table.take(pa.array(range(start, min(start + GROUP_ROWS, len(table)))))
                writer.write_table(group.cast(schema))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
