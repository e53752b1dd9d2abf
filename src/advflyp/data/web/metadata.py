"""Image–text metadata as public datasets publish it: names of columns, their contents, and filters on rows.

Everything here becomes DuckDB SQL. Column names are quoted; other values from the user are quoted or checked
numbers.
"""

import datetime
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb
import fsspec

from advflyp.config import at_least, suggest
from advflyp.data.pairs.addresses import is_remote, open_binary
from advflyp.data.pairs.cells import MISSING
from advflyp.data.web.url_list import CAPTION_NAMES, URL_NAMES
from advflyp.errors import RunError

# What the columns are called in LAION-400M, LAION-2B and 5B, Re-LAION, COYO, CC12M, DataComp; case does not matter.
KNOWN = {
    "url": URL_NAMES,
    "caption": CAPTION_NAMES,
    "similarity": (
        "similarity", "clip_similarity_vitb32", "clip_b32_similarity_score", "clip_l14_similarity_score",
    ),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "licence": ("license", "licence"),
    "nsfw": ("nsfw", "punsafe", "nsfw_score_opennsfw2"),
    "language": ("language", "lang"),
}  # fmt: skip
NEEDED = ("url", "caption")
NSFW_WORDS = ("UNLIKELY", "UNSURE", "NSFW")
SPACE = r"\t-\r\x1c- \x{85}\pZ"  # what str.split() takes for white space
# Longer text counts as missing: a few bytes of Parquet can repeat the same ten megabytes in a million rows.
MAX_TEXT_BYTES = 10_000
NUMBER_TYPES = ("BOOL", "TINYINT", "SMALLINT", "INT", "BIGINT", "HUGEINT", "U", "FLOAT", "DOUBLE", "DECIMAL")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which rows may be drawn; None turns a filter off. A row that lacks the value a filter needs is not drawn.

    Attributes:
        min_similarity: Minimum image–caption similarity given in the metadata.
        min_side: Minimum shorter side, in pixels.
        max_aspect: Maximum ratio of the longer to the shorter side.
        licences, languages: Values to keep, ignoring case.
        max_nsfw: Maximum NSFW score; LAION's words UNLIKELY, UNSURE, NSFW count as 0, 1, 2.
        min_caption_words, max_caption_words: Bounds on the number of words in the caption.

    Raises:
        ValueError: For an impossible value.
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
                raise ValueError(f"{name} is empty, so no row could be drawn; name one or leave it out")
        at_least(0, self, "", "max_nsfw")
        at_least(1, self, "", "min_side", "min_caption_words", "max_caption_words")
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


# A file, to use after FROM. Bytes that are not UTF-8 become question marks.
PARQUET = (
    "read_parquet($file, file_row_number=true, hive_partitioning=false, binary_as_string=true, "
    "utf8_validation='replace')"
)


@dataclass(frozen=True)
class File:
    """A file of metadata."""

    address: str  # for people
    name: str  # for DuckDB: the parameter $file of `PARQUET`
    columns: dict[str, str]  # our name → its column
    types: dict[str, str]  # our name → DuckDB's name of that column's type

    @property
    def values(self) -> dict[str, str]:
        """Our name → SQL for the cleaned values."""
        return {ours: _value(ours, theirs, self.types[ours]) for ours, theirs in self.columns.items()}


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Turn DuckDB's errors in the block into a ValueError that names the file; `RunError` if its server failed."""
    try:
        yield
    except duckdb.Error as error:
        # DuckDB only keeps the text of what `_Named` raises.
        if failed := re.search(r"RunError: (.+)", str(error)):
            raise RunError(failed[1]) from None
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, duckdb.OutOfMemoryException):
            what = "unpacks to more than fits in memory, or the disk is full"
        elif "magic bytes" in reason or "too small to be a Parquet" in reason:
            what = "is not a readable Parquet file"
        else:
            what = "cannot be read to its end; fetch it anew and sample again"
        raise ValueError(f"{address} {what} ({reason})") from None


def open_files(
    db: duckdb.DuckDBPyConnection, addresses: Sequence[str], filters: Filters, given: Mapping[str, str] | None
) -> list[File]:
    """Open files for DuckDB, which reads remote ones only through fsspec.

    Args:
        db: The connection.
        addresses: Local or remote.
        filters: They determine which columns are needed.
        given: Our name → the files' name of a column, as given by the user.

    Raises:
        ValueError: A file cannot be read, or a column that is needed is not found.
    """
    db.register_filesystem(_Named(addresses))
    found = []
    for number, address in enumerate(addresses):
        # DuckDB would take a file's name for a pattern.
        name = f"advflyp://{number}" if is_remote(address) else re.sub(r"([*?[])", r"[\1]", address)
        with reading(address):
            query = f"DESCRIBE SELECT * EXCLUDE file_row_number FROM {PARQUET}"
            types = {column: kind for column, kind, *_ in db.execute(query, {"file": name}).fetchall()}
        columns = find_columns(types, address, filters, given)
        found.append(File(address, name, columns, {ours: types[theirs] for ours, theirs in columns.items()}))
    return found


class _Named(fsspec.AbstractFileSystem):
    """Serves the files that the user named, by number, so that DuckDB can open nothing else through it."""

    protocol = "advflyp"
    cachable = False

    def __init__(self, addresses: Sequence[str]) -> None:
        super().__init__()
        self.addresses = addresses
        self.sizes: dict[str, int] = {}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        return open_binary(self._address(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        address = self._address(path)
        if address not in self.sizes:
            with open_binary(address) as file:
                self.sizes[address] = file.seek(0, 2)
        return {"name": path, "size": self.sizes[address], "type": "file"}

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path]

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(0, datetime.UTC)

    def _address(self, path: str) -> str:
        return self.addresses[int(path.removeprefix("advflyp://"))]


def find_columns(
    columns: Mapping[str, str], file: str, filters: Filters, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our names → the columns of `file`; see `open_files`.

    Args:
        columns: The file's columns and DuckDB's names of their types.
        file, filters, given: As in `open_files`.
    """
    plain = [name for name, kind in columns.items() if kind == "VARCHAR" or _is_number(kind)]
    lower = {name.lower(): name for name in reversed(plain)}
    found: dict[str, str] = {}
    for ours, theirs in (given or {}).items():
        if ours not in KNOWN:
            raise ValueError(f"there is no column '{ours}' to name{suggest(ours, KNOWN)}")
        if theirs not in plain:
            raise ValueError(f"{file} has no column '{theirs}' of text or numbers{suggest(theirs, plain)}")
        found[ours] = theirs
    for ours, known in KNOWN.items():
        theirs = next((lower[name] for name in known if name in lower), None)
        if theirs is not None:
            found.setdefault(ours, theirs)
    wanted = dict.fromkeys(NEEDED, "a sample")
    wanted |= {column: name for name, used in filters.needs().items() for column in used}
    for column, needer in wanted.items():
        if column not in found:
            there = ", ".join(name if name in plain else f"{name} ({kind})" for name, kind in columns.items())
            raise ValueError(
                f"{file} has no column of text or numbers by a known name for {column}, which {needer} needs; it has "
                f"{there}: name one with --columns {column}=NAME"
            )
    return found


def drawn_columns(files: Sequence[File]) -> dict[str, str]:
    """The columns of the sample (all that any file has) and their types."""
    kinds = {"similarity": "DOUBLE", "width": "BIGINT", "height": "BIGINT"}
    if all(_is_number(file.types.get("nsfw", "INT")) for file in files):
        kinds["nsfw"] = "DOUBLE"
    return {ours: kinds.get(ours, "VARCHAR") for ours in KNOWN if any(ours in file.columns for file in files)}


def conditions(f: Filters) -> dict[str, str]:
    """{reason to skip a row: SQL condition on the rows to keep}; a condition that is NULL skips the row too."""
    missing = ", ".join(f"'{word}'" for word in sorted(MISSING))
    nsfw = " ".join(f"WHEN '{word}' THEN {number}" for number, word in enumerate(NSFW_WORDS))
    nsfw = f"CASE upper(nsfw::VARCHAR) {nsfw} ELSE {_number('nsfw')} END"
    words = "length(caption) - length(replace(caption, ' ', '')) + 1"
    found = {
        "no web address": f"regexp_matches(url, '^(?i:https?)://[^{SPACE}/]')",
        "no caption": f"caption NOT IN ({missing})",
    }
    if f.min_similarity is not None:
        found["similarity"] = f"similarity >= {float(f.min_similarity)!r}"
    if f.min_side is not None or f.max_aspect is not None:
        found["size"] = f"width >= {int(f.min_side or 1)} AND height >= {int(f.min_side or 1)}"
    if f.max_aspect is not None:
        found["aspect"] = f"greatest(width, height) <= {float(f.max_aspect)!r}::DOUBLE * least(width, height)"
    for reason, allowed in (("licence", f.licences), ("language", f.languages)):
        if allowed is not None:
            quoted = ", ".join(f"lower({_text(value)})" for value in allowed)
            found[reason] = f"lower({reason}) IN ({quoted})"
    if f.max_nsfw is not None:
        found["nsfw"] = f"{nsfw} <= {float(f.max_nsfw)!r}"
    if f.min_caption_words is not None or f.max_caption_words is not None:
        found["short caption"] = f"{words} >= {int(f.min_caption_words or 1)}"
    if f.max_caption_words is not None:
        found["long caption"] = f"{words} <= {int(f.max_caption_words)}"
    return found


def _value(ours: str, theirs: str, kind: str) -> str:
    """SQL for the cleaned values of a column."""
    column = '"' + theirs.replace('"', '""') + '"'
    if kind == "VARCHAR":
        column = f"CASE WHEN strlen({column}) <= {MAX_TEXT_BYTES} THEN {column} END"
    if ours == "similarity":
        return _number(column)
    if ours in ("width", "height"):
        return f"try_cast(try_cast({column} AS DOUBLE) AS BIGINT)"
    if ours == "url":
        return f"regexp_replace({column}::VARCHAR, '^[{SPACE}]+|[{SPACE}]+$', '', 'g')"
    if ours == "caption":
        text = f"{column}::VARCHAR"
        # Most captions are one clean line already, which takes a quarter of the time to find out.
        folded = f"trim(regexp_replace({text}, '[{SPACE}]+', ' ', 'g'))"
        return f"CASE WHEN regexp_matches({text}, '[^ -~]|  |^ | $') THEN {folded} ELSE {text} END"
    return column


def _number(column: str) -> str:
    """As float64; other text, NaN and infinities count as missing, since DuckDB sorts NaN above all numbers."""
    value = f"try_cast({column} AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def _is_number(kind: str) -> bool:
    is_other = kind.startswith(("UNION", "UUID", "INTERVAL")) or kind[-1] == "]"
    return kind.startswith(NUMBER_TYPES) and not is_other


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
