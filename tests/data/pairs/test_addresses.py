"""Addresses that a user names may be anything; those that a file names, a few things."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand
import pytest

from advflyp.data.isolated import advflyp_guard as guard
from advflyp.data.pairs import addresses
from advflyp.data.pairs.addresses import (
    MAX_NAMED,
    brace_count,
    expand,
    explain_failure,
    named_in,
    open_binary,
    read_named,
)
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.errors import SkippedSample
from helpers import pairs
from webserver import PUBLIC, Server, jpeg

KIND = "address of a kind that tables may not use"


@pytest.fixture(autouse=True)
def openers(internet: None) -> Iterator[None]:
    addresses._opener.cache_clear()  # an opener keeps the proxies of its day
    yield
    addresses._opener.cache_clear()


def outcome(address: str, table: str = "/t.csv") -> bytes | str:
    try:
        return read_named(named_in(table, address), table)
    except SkippedSample as reason:
        return str(reason)


@pytest.mark.parametrize(
    "name",
    [
        "reference://a::file:///tmp/refs.json", "file:///etc/passwd", "local:///etc/passwd", "FILE:///etc/passwd",
        "memory://x/a.png", "simplecache::http://127.0.0.1/a.png", "simplecache::s3://b/a.png", "dir::file:///etc",
        "s3://bucket/a.png::file:///etc/passwd", "hf://datasets/a/b.png::reference", "zip://a.png::s3://b/a.zip",
        "github://o:r@main/a.png", "git:///work", "ftp://host/a.png", "sftp://host/a.png", "ssh://host/a.png",
        "smb://host/a.png", "webhdfs://host/a.png", "jupyter://host/a.png", "data://a", "://a", "x y://a",
        "dask://a", "libarchive://a::file:///b", "gopher://127.0.0.1", "http ://127.0.0.1/a",
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["/data/t.csv", "t.csv", "s3://bucket/t.csv", "https://host/t.csv"])
def test_kinds_that_no_table_may_name(table: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("fsspec was asked")

    monkeypatch.setattr("fsspec.url_to_fs", never)
    assert outcome(name, table) == KIND


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        ("/d/t.csv", "a.png", "/d/a.png"),
        ("/d/t.csv", "/e/a.png", "/e/a.png"),
        ("/d/t.csv", "../a::b.png", "/d/../a::b.png"),
        ("t.csv", "img\\a.png", "img/a.png"),
        ("/d/t.csv", "https://host/a::b.png", "https://host/a::b.png"),
        ("/d/t.csv", "s3://bucket/a.png", "s3://bucket/a.png"),
        ("s3://bucket/d/t.csv", "a.png", "s3://bucket/d/a.png"),
        ("s3://bucket/d/t.csv", "gs://other/a.png", "gs://other/a.png"),
        ("memory://bucket/t.csv", "memory://bucket/a.png", "memory://bucket/a.png"),
        ("simplecache::s3://b/t.csv", "a.png", "simplecache::s3://b/a.png"),
    ],
)
def test_what_a_table_may_name(table: str, name: str, expected: str) -> None:
    assert named_in(table, name) == expected


def test_a_table_that_is_elsewhere_names_no_local_file(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link.png").symlink_to("/etc/passwd")
    reason = "local file named by a table that is elsewhere"
    for table in ("s3://bucket/t.csv", "hf://datasets/a/b/image", "http://127.0.0.1/t.csv"):
        assert outcome("/etc/passwd", table) == reason
        local = [tmp_path / "cache"]
        inside = str(tmp_path / "cache" / "x.png")
        assert named_in(table, inside, local) == inside
        for name in (f"{tmp_path}/cache/../x.png", f"{tmp_path}/cachex/x.png", f"{tmp_path}/cache/link.png"):
            with pytest.raises(SkippedSample, match=reason):
                named_in(table, name, local)
    assert outcome("a::b.png", "s3://bucket/t.csv") == KIND
    for name in ("../x.png", "a/../../x.png", "..\\x.png"):
        assert outcome(name, "s3://bucket/d/t.csv") == "file outside the folder of its table"
    assert outcome("memory://bucket/d/../x.png", "memory://bucket/d/t.csv") == KIND


def test_web_addresses_are_guarded(server: Server) -> None:
    assert outcome(server.url("good/1", PUBLIC)) == jpeg(1)
    asked = server.asked.total()
    for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "0", "0x7f.1", "[::ffff:127.0.0.1]"):
        assert outcome(server.url("good/2", host)) in (guard.PRIVATE, "image file cannot be read"), host
    assert outcome("http://169.254.169.254/latest/meta-data") == guard.PRIVATE
    assert outcome("HTTP://10.0.0.1/a.png") == guard.PRIVATE
    assert server.asked.total() == asked
    assert outcome(server.url("to/http://127.0.0.1:PORT/good/2", PUBLIC)) == guard.PRIVATE
    assert server.asked["good/2"] == 0
    assert outcome(server.url("to/file:///etc/passwd", PUBLIC)) == "image file cannot be read"


def test_the_host_of_the_users_own_table_may_be_private(server: Server) -> None:
    table = server.url("t.csv")
    assert outcome("good/3", table) == outcome(server.url("good/3"), table) == jpeg(3)
    assert outcome(server.url("good/4", "127.0.0.3"), table) == guard.PRIVATE
    assert outcome("http://127.0.0.1:9/good/4", table) == guard.PRIVATE, "another port is another server"
    assert outcome(server.url("to/http://127.0.0.3:PORT/good/4"), table) == guard.PRIVATE
    assert server.asked["good/4"] == 0


def test_answers_have_an_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MAX_IMAGE_BYTES", 1 << 20)
    monkeypatch.setattr(addresses, "FETCH_SECONDS", 0.5)
    assert outcome(server.url("huge/said", PUBLIC)) == guard.TOO_LARGE
    assert outcome(server.url("huge/endless", PUBLIC)) == guard.TOO_LARGE
    assert outcome(server.url("drip/counted", PUBLIC)) == guard.TOO_SLOW
    assert outcome(server.url("missing/1", PUBLIC)) == "its server returned 404"
    for path in ("cut/1", "good/ü x"):
        assert outcome(server.url(path, PUBLIC)) == "image file cannot be read"
    assert outcome(f"http://{PUBLIC}:9/a.png") == "its server is unreachable"
    assert outcome(f"http://{PUBLIC}:99999/a") == "its server is unreachable", "there is no such port"
    assert outcome("http://") == "image file cannot be read"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("status/404", "there is no {}: its server returned 404; check the address"),
        ("status/403", "the server does not let you read {} (answer 403): log in or set up its credentials"),
        ("status/401", "the server does not let you read {} (answer 401): log in or set up its credentials"),
        ("status/503", "the server of {} answers 503: try again later"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "{00..01}.tar", "t.parquet"])
def test_a_server_that_refuses(server: Server, path: str, message: str, name: str) -> None:
    pattern = server.url(f"{path}/{name}")
    # A server that fails may have a manifest; one that denies a file has none.
    asked = pattern.replace("{00..01}.tar", "manifest.json" if "503" in path else "00.tar")
    for size in (None, 9):
        with pytest.raises(ValueError) as refused:
            list(in_order(open_source(pattern, size=size)))
        assert message.format(asked) in str(refused.value)


@pytest.mark.parametrize("name", ["t.csv", "{00..01}.tar", "t.parquet", "*.tar"])
def test_no_server_at_all(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"the server of http://127\.0\.0\.1:9/.* cannot be reached \(.*refused"
    ):
        open_source(f"http://127.0.0.1:9/{name}")


def test_errors_of_other_stores() -> None:
    """botocore's are no OSError, and s3fs translates answers to those of files."""

    class EndpointConnectionError(Exception):
        pass

    address = "s3://bucket/t.csv"
    for error, message in (
        (
            EndpointConnectionError('Could not connect to "https://s3"'),
            "the server of s3://bucket/t.csv cannot be",
        ),
        (PermissionError("Access Denied"), "the server does not let you read s3://bucket/t.csv: log in"),
        (FileNotFoundError("The specified key does not exist."), "there is no s3://bucket/t.csv"),
        (TimeoutError(), "the server of s3://bucket/t.csv cannot be reached"),
        (ImportError("Install s3fs to access S3"), "s3://bucket/t.csv needs another package: Install s3fs"),
        (
            ValueError("Protocol not known: s4"),
            "cannot open s3://bucket/t.csv: ValueError: Protocol not known",
        ),
    ):
        assert explain_failure(address, error).startswith(message)


def test_a_table_of_a_stranger(tmp_path: Path, server: Server) -> None:
    """Through everything that opens pairs: the usable row is read, and nothing is asked for."""
    (tmp_path / "ok.png").write_bytes(pairs(1)[0][0])
    names = [server.url("good/5"), "reference://a::file:///refs.json", "file:///etc/hostname", "ok.png"]
    (tmp_path / "t.jsonl").write_text(
        "\n".join(json.dumps({"image": name, "caption": "x"}) for name in names)
    )
    found: list[str] = []
    for sample in in_order(open_source(str(tmp_path / "t.jsonl"))):
        try:
            found.append(f"{len(sample.image_bytes())} bytes")
        except SkippedSample as reason:
            found.append(str(reason))
    assert found == [guard.PRIVATE, KIND, KIND, f"{len(pairs(1)[0][0])} bytes"]
    assert server.asked["good/5"] == 0


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    done = threading.Event()

    def read() -> None:
        for name in ("pipe.png", "zero.png", "/dev/zero", "."):
            assert outcome(name, str(tmp_path / "t.csv")) in (
                "not a regular file",
                "image file cannot be read",
            )
        for name in ("pipe.png", "zero.png"):
            with pytest.raises(ValueError, match="not a regular file"):
                open_binary(str(tmp_path / name))
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(20)


ENDLESS = (
    "{0..999999999}.tar",
    "{1..2000}{1..2000}.tar",
    "{1..9" + "9" * 5000 + "}",
    "{" + "," * 10 + "}" * 7 + "{1..999999}.tar",
)
BRACES = (
    "a.tar", "{a,b}{0..9}", "{000..099}.tar", "{10..1..3}x", "{-2..2}", "{a..e}", "{a,{b,c}}", "{a,{b},c,d}",
    "{0..9\n}", r"{a\},b,c}", "}{a,b{0..9},c{0..9}",
)  # fmt: skip


@pytest.mark.parametrize("pattern", ENDLESS, ids=range(4))
def test_patterns_of_endlessly_many_files(pattern: str) -> None:
    assert brace_count(pattern) > MAX_NAMED
    with pytest.raises(ValueError, match="names more than 1,000,000 files"):
        expand(pattern, "*.tar")


@pytest.mark.parametrize("pattern", BRACES)
def test_braces_are_counted_at_least(pattern: str) -> None:
    assert len([*braceexpand.braceexpand(pattern)]) <= brace_count(pattern)


@pytest.mark.parametrize("name", ["a[1].tar", "[ab].tar", "{0,1}.tar", "{0..1}.tar", "{.tar"])
def test_a_file_may_be_called_like_a_pattern(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert expand(str(tmp_path / name), "*.tar") == [str(tmp_path / name)]
