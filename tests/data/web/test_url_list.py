"""Lists of addresses: what becomes a row of a download."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
