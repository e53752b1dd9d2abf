"""Lists of addresses: what becomes a row of a download."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advflyp.data.pairs import tables
from advflyp.data.web.url_list import open_urls


def unchecked(texts: list[bytes]) -> pa.Array:
    """Text as Arrow reads it from a file: nobody has checked that it is UTF-8."""
    array = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


def test_text_that_is_not_utf8_costs_its_own_row(tmp_path: Path) -> None:
    good = b"plain"
    table = pa.table(
        {
            "url": unchecked([b"https://a/0", b"https://a/1", b"https://a/\xff", b"https://a/3"]),
            "caption": unchecked([good, b"caf\xe9", good, good]),
            "licence": unchecked([b"caf\xe9 s", good, good, "café".encode()]),
        }
    )
    pq.write_table(table, tmp_path / "urls.parquet")
    source = open_urls(tmp_path / "urls.parquet")
    count, bad = source.write_slice(0, 4, tmp_path / "slice.parquet", ["licence"])
    assert (count, bad) == (2, {"caption is not UTF-8": 1, "address is not UTF-8": 1})
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [
        {"url": "https://a/0", "caption": "plain", "licence": "caf? s"},
        {"url": "https://a/3", "caption": "plain", "licence": "café"},
    ]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://a/1é.jpg", "http://a/1%C3%A9.jpg"),
        ("http://a/2.jpg?a=b c", "http://a/2.jpg?a=b%20c"),
        ("http://a/%C3%A9.jpg?q=1&r=%20#x", "http://a/%C3%A9.jpg?q=1&r=%20#x"),
        ("HTTP://bücher.de:8080/ü", "HTTP://xn--bcher-kva.de:8080/%C3%BC"),
        ("http://例子.中国:80?q=http://ü", "http://xn--fsqu00a.xn--fiqs8s:80?q=http://%C3%BC"),
        ("http://ü..de/", "http://%C3%BC..de/"),
    ],
)
def test_addresses_are_quoted_as_those_in_tables_of_pairs(
    address: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "l.csv").write_text(f'url,caption\n"{address}",x\n')
    open_urls(tmp_path / "l.csv").write_slice(0, 1, tmp_path / "slice.parquet")
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [{"url": expected, "caption": "x"}]


def test_one_column_may_hold_both(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url\nhttp://a/1\n")
    open_urls(tmp_path / "l.csv", caption_column="url").write_slice(0, 1, tmp_path / "slice.parquet", ["url"])
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [
        {"url": "http://a/1", "caption": "http://a/1"}
    ]


@pytest.mark.parametrize("kind", ["text", "lists", "mappings", "categories", "views"])
def test_numbers_and_lists_do_not_make_batches_small(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow copies all earlier values of a row group for every batch, so small ones take quadratic time."""
    batches = 0

    class Counting(pq.ParquetFile):
        def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
            nonlocal batches
            for batch in super().iter_batches(*args, **kwargs):
                batches += 1
                yield batch

    monkeypatch.setattr(tables.pq, "ParquetFile", Counting)
    monkeypatch.setattr(tables, "MAX_IMAGE_BYTES", 1 << 16)
    n = 5000
    urls, texts = [f"http://a/{number}" for number in range(n)], [f"caption {number}" for number in range(n)]
    captions = {
        "text": pa.array(texts),
        "lists": pa.array([[text, "b"] for text in texts]),
        "mappings": pa.array([{"raw": text} for text in texts]),
        "categories": pa.array(texts).dictionary_encode(),
        "views": pa.array(texts, pa.string_view()),
    }
    table = pa.table({"url": urls, "caption": captions[kind], "width": range(n)})
    pq.write_table(table, tmp_path / "urls.parquet")
    source = open_urls(tmp_path / "urls.parquet")
    assert source.write_slice(10, n - 10, tmp_path / "slice.parquet", ["width"]) == (n - 20, {})
    assert batches <= 64
    end = "\nb" if kind == "lists" else ""
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [
        {"url": urls[number], "caption": texts[number] + end, "width": number} for number in range(10, n - 10)
    ]
