"""Tables of pairs and of addresses: CSV, TSV, JSON lines, a JSON list, Parquet; odd cells, quotes, encodings, types."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.data.web.url_list import open_urls
from fuzz.mutate import as_json, mutated, text, value
from fuzz.tars import PICTURE, train_on
from fuzz.watch import command

IMAGES = ("image", "jpg", "filepath", "url", "file_name", "bytes", "\ufeffimage", "IMAGE", " image", "")
CAPTIONS = ("caption", "text", "title", "TEXT", "caption\n", "url", "similarity", "x" * 300)


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A table beside an image, and something that the program does with one."""
    (folder / "in" / "a.png").write_bytes(PICTURE)
    odd = rng.choice((0.0, 0.05, 0.2, 0.6))
    kind = rng.choice(("csv", "tsv", "jsonl", "json", "parquet"))
    rows = [(image(rng, odd), caption(rng, odd)) for _ in range(rng.choice((0, 1, 3, 3, 30)))]
    names = (rng.choice(IMAGES[:4]), rng.choice(CAPTIONS[:3]))
    if rng.random() < odd:
        names = (rng.choice(IMAGES), rng.choice((*CAPTIONS, *IMAGES)))
    path = folder / "in" / f"t.{kind}"
    if kind == "parquet":
        path.write_bytes(parquet(rng, names, rows, odd))
    elif kind in ("csv", "tsv"):
        path.write_bytes(delimited(rng, kind, names, rows))
    else:
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        listed = [as_json(rng, one) if rng.random() < odd else json.dumps(one).encode() for one in objects]
        path.write_bytes(b"\n".join(listed) if kind == "jsonl" else b"[" + b",".join(listed) + b"]")
    if rng.random() < 0.15:
        path.write_bytes(mutated(rng, path.read_bytes()))
    return use(rng, path, names, folder / "out")


def use(rng: random.Random, path: Path, names: tuple[str, str], out: Path) -> Callable[[], object]:
    """Something that the program does with a table."""
    # A column that the user names; one of no name cannot be named.
    columns = (
        ["--image-column", names[0], "--caption-column", names[1]]
        if rng.random() < 0.3 and all(names)
        else []
    )
    match rng.randrange(8):
        case 3:
            return lambda: train_on(str(path))
        case 4:
            return lambda: len(CaptionedImages(path, columns=Columns(*names) if columns else None))
        case 0:
            return lambda: command("data", "pack", path, "--out", out / "packed", *columns)
        case 1:
            return lambda: urls(path, names if columns else (None, None), out)
        case 2 if path.suffix == ".parquet":
            more = ["--min-similarity", "0.1", "--min-caption-words", "1", "--columns", f"caption={names[1]}"]
            how = rng.choice(([], more, ["--dry-run"]))
            return lambda: command("data", "sample", path, "--num", "2", "--out", out / "u.parquet", *how)
        case _:
            return lambda: command("data", "check", path, *columns)


def urls(path: Path, columns: tuple[str | None, str | None], out: Path) -> None:
    """The first step of a download: nothing is fetched."""
    found = open_urls(path, url_column=columns[0], caption_column=columns[1])
    found.write_slice(0, found.rows, out / "slice.parquet")


def image(rng: random.Random, odd: float) -> Any:
    if rng.random() >= odd:
        return "a.png"
    return rng.choice((text(rng), text(rng), value(rng), {"bytes": value(rng), "path": text(rng)}, ["a.png"]))


def caption(rng: random.Random, odd: float) -> Any:
    return value(rng) if rng.random() < odd else rng.choice(("a red circle", 'one, "two"', "['one', 'two']"))


def delimited(rng: random.Random, kind: str, names: tuple[str, str], rows: list[tuple[Any, Any]]) -> bytes:
    """As every program writes it in its own way."""
    stream = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE))
    writer = csv.writer(
        stream,
        delimiter="\t" if kind == "tsv" else rng.choice(",,,;|\t"),
        quoting=quoting,
        escapechar="\\" if quoting == csv.QUOTE_NONE else None,
        lineterminator=rng.choice(("\n", "\r\n", "\r")),
    )
    writer.writerow(names)
    for row in rows:
        extra = ["x"] * rng.choice((0,) * 15 + (1, 2))
        writer.writerow([_written(cell) for cell in row] + extra)
    found = stream.getvalue()
    encoding = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1", "cp1252"))
    return found.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _written(cell: Any) -> str:
    """Without the depths that no program writes."""
    return cell if isinstance(cell, str) else repr(cell)[:5000]


def parquet(rng: random.Random, names: tuple[str, str], rows: list[tuple[Any, Any]], odd: float) -> bytes:
    """Columns of text or bytes, and now and then of a type that nobody asked for."""
    columns: list[pa.Array] = []
    for place in (0, 1):
        cells = [row[place] for row in rows]
        if place == 0 and rng.random() < 0.5:
            cells = [PICTURE if cell == "a.png" else cell for cell in cells]
        columns.append(array(rng, cells) if rng.random() >= odd else strange(rng, len(cells)))
    table = pa.Table.from_arrays(columns, names=list(names))
    if rng.random() < 0.3:
        table = table.append_column("similarity", pa.array([0.3] * len(rows)))
    if rng.random() < odd:
        table = table.replace_schema_metadata(
            {text(rng).encode("utf-8", "replace"): b"[" * rng.choice((1, 99_999))}
        )
    stream = io.BytesIO()
    try:
        pq.write_table(table, stream, row_group_size=rng.choice((1, 2, 1000)))
    except pa.ArrowException:  # Parquet cannot store every type
        pq.write_table(pa.table({names[0]: ["a.png"], "caption": [b"x"]}), stream)
    return stream.getvalue()


def array(rng: random.Random, cells: list[Any]) -> pa.Array:
    """The cells as Arrow takes them, else as text."""
    try:
        found = pa.array(cells)
        return found if len(cells) else found.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError, RecursionError):
        written = [
            cell if isinstance(cell, bytes) else _written(cell).encode("utf-8", "surrogatepass")
            for cell in cells
        ]
        return pa.array(written, rng.choice((pa.binary(), pa.large_binary())))


def strange(rng: random.Random, count: int) -> pa.Array:
    """A column of a type that nobody asked for."""
    texts = ["a.png"] * count
    cell, coco = pa.struct({"bytes": pa.binary(), "path": pa.string()}), pa.struct({"raw": pa.string()})
    make: tuple[Callable[[], Any], ...] = (
        lambda: pa.nulls(count),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts, pa.string_view()),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array([[text] * 2 for text in texts]),
        lambda: pa.array([{"bytes": PICTURE, "path": None}] * count, cell),
        lambda: pa.array([{"raw": "a"}] * count, coco),
        lambda: pa.array([{}] * count, pa.struct([])),
        lambda: pa.array([1 << 62] * count),
        lambda: pa.array([float("nan")] * count),
        lambda: pa.array([10**9] * count, pa.timestamp("ns", "UTC")),
        lambda: pa.array([10**18] * count, pa.timestamp("s")),
        lambda: pa.array([2**40] * count, pa.duration("s")),
        lambda: pa.array([1] * count, pa.date64()),
        lambda: pa.array([10**30] * count, pa.decimal128(38, 0)),
        lambda: pa.array([True] * count),
        lambda: pa.array([b"12345678"] * count, pa.binary(8)),
        lambda: pa.array([[("a", "b")]] * count, pa.map_(pa.string(), pa.string())),
        lambda: pa.array([b"\xff\xfe"] * count, pa.binary()).view(pa.binary()),
        lambda: pa.array([b"\xff\xfe"] * count, pa.binary()).cast(pa.string(), safe=False),
    )  # fmt: skip
    try:
        return rng.choice(make)()
    except pa.ArrowException:  # Arrow cannot make every pair of type and value
        return pa.nulls(count)
