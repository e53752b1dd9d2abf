"""A uniform sample of image–text metadata with DuckDB: many large Parquet files, one pass, bounded memory.

Every row gets a priority, a seeded 128-bit hash of its URL, and the rows with the smallest priorities are kept. This
samples the distinct URLs uniformly without replacement. Which URLs are drawn depends neither on threads nor on the
order of files and rows, and the first n rows of the result are themselves a uniform sample. Duplicate URLs count once:
the first row that passes the filters is kept, in the order of the files as named (those of a glob are sorted) and then
of their rows.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from advflyp.__about__ import __version__
from advflyp.data.pairs.addresses import expand
from advflyp.data.web.metadata import PARQUET, File, Filters, conditions, drawn_columns, open_files, reading
from advflyp.files import draft_folder, write_atomically
from advflyp.wording import counted

# DuckDB spills anything beyond this to disk, and refuses a Parquet page that does not fit.
MEMORY_BYTES, BASE_BYTES = 2_000_000_000, 300_000_000
GROUP_ROWS = 100_000
SPARE_ROWS = 65_536
# Row numbers in a file are below this.
MAX_FILE_ROWS = 1 << 40


@dataclass(frozen=True)
class Plan:
    """What `sample` would read, from the files' footers alone."""

    files: int
    rows: int
    row_groups: int
    bytes: int  # compressed, of the columns that are read
    memory: int  # at most, about
    columns: dict[str, str]  # our name → theirs, of the first file


def _reasons(dropped: Counter[str]) -> str:
    """ "30 (no caption), 20 (similarity)"."""
    return ", ".join(f"{number:,} ({reason})" for reason, number in dropped.most_common())


@dataclass
class Summary:
    """What `sample` did."""

    rows: int = 0  # read
    kept: int = 0  # written
    wanted: int = 0  # good pairs that were asked for
    drawn: int = 0  # rows to draw for them; `kept` is smaller if there are too few
    dropped: Counter[str] = field(default_factory=Counter)  # reason: rows that could not be drawn

    def describe(self) -> str:
        """A message for the user; says so if there were fewer rows than asked for."""
        skipped = f"; skipped: {_reasons(self.dropped)}" if self.dropped else ""
        line = f"{self.kept:,} of {counted(self.rows, 'row')}{skipped}"
        if self.kept == self.drawn:
            return line
        return (
            f"{line}\nthere are no more rows to draw; {self.drawn:,} were asked for, to get "
            f"{counted(self.wanted, 'good pair')}"
        )


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
    """Draw rows of `metadata` and write them to the Parquet file `out`, smallest priority first.

    If there are fewer rows than asked for, all are written. The file's metadata record how it was made.

    Args:
        metadata: Parquet files: names, globs, {braces}; local, or at any fsspec address.
        num: Good pairs wanted.
        out: A new file; data that does not fit in memory is spilled beside it.
        seed: The same seed draws the same rows.
        expect_success: Expected fraction of working links: num / expect_success rows are drawn.
        filters: Which rows may be drawn.
        columns: Our name ("url", "caption", "similarity", …) → the files' name, if that is not a known one.
        progress: Called with the rows read so far.

    Raises:
        ValueError: A file cannot be read or lacks a column that is needed, or a number is out of range.
    """
    filters, drawn = filters or Filters(), _number_to_draw(num, expect_success)
    _check(seed, out)
    with draft_folder(out.with_name(f"{out.name}.spilled")) as spill, _connected(spill) as db:
        files = open_files(db, _addresses(metadata), filters, columns)
        best = _Best(db, files, filters, seed, Summary(wanted=num, drawn=drawn))
        for number in range(len(files)):
            best.add(number)
            if progress is not None:
                progress(best.summary.rows)
        best.compact()
        summary = best.summary
        if not summary.kept:
            raise ValueError(
                f"no row can be drawn of {counted(summary.rows, 'row')}; skipped: {_reasons(summary.dropped)}"
            )
        about = {
            "wanted": num,
            "drawn": drawn,
            "seed": seed,
            "expect_success": expect_success,
            "rows": summary.rows,
            "dropped": dict(summary.dropped),
            "sources": list(metadata),
            "filters": asdict(filters),
            "version": __version__,
        }
        _write(best.batches(), {key: json.dumps(value) for key, value in about.items()}, out)
    return summary


def plan(
    metadata: Sequence[str],
    *,
    num: int,
    expect_success: float = 1.0,
    filters: Filters | None = None,
    columns: Mapping[str, str] | None = None,
) -> Plan:
    """What `sample` would read, from the footers alone; arguments and errors as there."""
    _number_to_draw(num, expect_success)
    rows = groups = size = 0
    with _connected() as db:
        files = open_files(db, _addresses(metadata), filters or Filters(), columns)
        for file in files:
            query = "SELECT num_rows, num_row_groups FROM parquet_file_metadata($file)"
            used = """
                SELECT coalesce(sum(total_compressed_size), 0) FROM parquet_metadata($file)
                WHERE list_contains($names, path_in_schema)
            """
            names = list(file.columns.values())
            with reading(file.address):
                [(more_rows, more_groups)] = db.execute(query, {"file": file.name}).fetchall()
                [(read,)] = db.execute(used, {"file": file.name, "names": names}).fetchall()
            rows, groups, size = rows + more_rows, groups + more_groups, size + int(read)
    return Plan(len(files), rows, groups, size, MEMORY_BYTES + BASE_BYTES, files[0].columns)


class _Best:
    """The rows of the smallest priorities so far, in DuckDB's table `drawn`."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        files: Sequence[File],
        filters: Filters,
        seed: int,
        summary: Summary,
    ) -> None:
        self.db, self.files, self.seed, self.summary = db, files, seed, summary
        self.columns = drawn_columns(files)
        self.limit = (1 << 128) - 1  # rows above this can no longer be among the best
        self.reason = " ".join(
            f"WHEN ({condition}) IS NOT TRUE THEN '{reason}'"
            for reason, condition in conditions(filters).items()
        )
        made = "".join(f", {name} {kind}" for name, kind in self.columns.items())
        db.execute(f"CREATE TABLE drawn (priority UHUGEINT, place BIGINT{made})")

    def add(self, number: int) -> None:
        """Read a file."""
        file = self.files[number]
        values = ", ".join(f"{file.values.get(name, 'NULL')} AS {name}" for name in self.columns)
        kept = ", ".join(f"CASE WHEN reason IS NULL THEN {name} END AS {name}" for name in self.columns)
        where = {"file": file.name, "first": number * MAX_FILE_ROWS}
        with reading(file.address):
            self.db.execute(
                f"""
                CREATE OR REPLACE TEMP TABLE part AS SELECT reason, priority, place, {kept} FROM (
                    SELECT *, CASE {self.reason} END AS reason, md5_number($seed || url) AS priority
                    FROM (SELECT {values}, $first + file_row_number AS place FROM {PARQUET})
                ) WHERE reason IS NOT NULL OR priority <= $limit
                """,
                {**where, "seed": f"{self.seed} ", "limit": self.limit},
            )
            query = "SELECT num_rows FROM parquet_file_metadata($file)"
            [(rows,)] = self.db.execute(query, {"file": file.name}).fetchall()
        self.summary.rows += rows
        dropped = "SELECT reason, count(*) FROM part WHERE reason IS NOT NULL GROUP BY reason"
        self.summary.dropped.update(dict(self.db.execute(dropped).fetchall()))
        self.db.execute("INSERT INTO drawn SELECT * EXCLUDE reason FROM part WHERE reason IS NULL")
        [(waiting,)] = self.db.execute("SELECT count(*) FROM drawn").fetchall()
        if waiting > 2 * self.summary.drawn + SPARE_ROWS:
            self.compact()

    def compact(self) -> None:
        """Keep only the best rows so far, one for each URL: the first one read."""
        self.db.execute(
            """
            CREATE OR REPLACE TABLE drawn AS SELECT drawn.* FROM drawn SEMI JOIN (
                SELECT priority, min(place) AS place FROM drawn GROUP BY priority ORDER BY priority LIMIT $number
            ) USING (priority, place)
            """,
            {"number": self.summary.drawn},
        )
        [(kept, last)] = self.db.execute("SELECT count(*), max(priority) FROM drawn").fetchall()
        self.summary.kept = kept
        if kept == self.summary.drawn:
            self.limit = last

    def batches(self) -> pa.RecordBatchReader:
        """The rows that were kept, in order of priority."""
        query = f"SELECT {', '.join(self.columns)} FROM drawn ORDER BY priority"
        return self.db.sql(query).to_arrow_reader(GROUP_ROWS)


def _check(seed: int, out: Path) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"--seed must be from 0 to 2^64 - 1, not {seed}")
    if out.exists():
        raise ValueError(f"{out} exists; remove it or name another file")
    if out.suffix != ".parquet":
        raise ValueError(f"--out must end in .parquet, not {out.name}")


def _number_to_draw(num: int, expect_success: float) -> int:
    if num < 1:
        raise ValueError(f"--num must be at least 1, not {num}")
    if not 0 < expect_success <= 1:
        raise ValueError(f"--expect-success is a share above 0 and up to 1, not {expect_success}")
    return math.ceil(num / expect_success)


def _addresses(metadata: Sequence[str]) -> list[str]:
    files = [file for pattern in metadata for file in expand(pattern, "*.parquet")]
    if not files:
        raise ValueError("name at least one Parquet file of metadata")
    return list(dict.fromkeys(files))


@contextmanager
def _connected(spill: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB that fetches and loads no extensions, and spills what does not fit in memory to a folder."""
    config: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "enable_external_file_cache": "false",
        "python_enable_replacements": "false",
        "preserve_insertion_order": "false",
        "memory_limit": f"{MEMORY_BYTES}B",
        "temp_directory": "" if spill is None else str(spill),
    }
    with duckdb.connect(":memory:", config=config) as db:
        try:
            yield db
        except duckdb.OutOfMemoryException as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the sample does not fit beside --out; free some space there ({reason})"
            ) from None


def _write(rows: pa.RecordBatchReader, about: Mapping[str, str], out: Path) -> None:
    """Write the rows to `out`, all or nothing."""
    schema = rows.schema.with_metadata(dict(about))
    with write_atomically(out, replace=False) as file, pq.ParquetWriter(file, schema) as writer:
        for batch in rows:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
