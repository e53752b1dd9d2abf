"""Servers that fail after a file was opened, or that send less than is needed."""

import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFile

from advflyp.data.pairs.addresses import open_binary, read_named
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.web.sample import sample
from advflyp.errors import RunError, SkippedSample
from helpers import members, pairs, write_tar

PAIRS = pairs(6)
SIZE = 1000


class Disconnected(Exception):
    pass


def fail_from(monkeypatch: pytest.MonkeyPatch, place: int, error: Exception) -> None:
    """Let fsspec's in-memory files fail from a byte on."""
    real = MemoryFile.read

    def read(self: MemoryFile, *arguments: int) -> bytes:
        if self.tell() < place:
            return real(self, *arguments)
        raise error

    monkeypatch.setattr(MemoryFile, "read", read)


@pytest.mark.parametrize("name", ["t.parquet", "t.tar"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Disconnected("server disconnected"), "Disconnected: server disconnected"),
        # Without an errno, as Arrow's own are.
        (FSTimeoutError(), r"cannot be reached \(FSTimeoutError\)"),
        (PermissionError("Forbidden"), "does not let you read"),
        (FileNotFoundError("gone"), "there is no"),
        (ValueError("The HTTP server doesn't appear to support range requests."), "download it first"),
    ],
)
def test_a_store_that_fails_in_the_middle(
    tmp_path: Path, name: str, error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sample is skipped, whatever the error: every file system of fsspec has errors of its own."""
    if name == "t.tar":
        write_tar(tmp_path / name, members(PAIRS * 9))
    else:
        rows = PAIRS * 9
        table = pa.table({"image": [image for image, _ in rows], "caption": [text for _, text in rows]})
        pq.write_table(table, tmp_path / name, row_group_size=3, compression="none")
    address = f"memory://fails/{name}"
    fsspec.filesystem("memory").pipe(address, (tmp_path / name).read_bytes())
    source = open_source(address, size=9 * len(PAIRS))
    fail_from(monkeypatch, (tmp_path / name).stat().st_size // 3, error)
    seen = []
    with pytest.raises(RunError, match=message) as raised:
        for sample in in_order(source):
            seen.append(sample.problem)
    assert address in str(raised.value) and seen and set(seen) == {None}


def test_an_image_of_a_store_that_fails_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("memory://fails/a.png", PAIRS[0][0])
    assert read_named("memory://fails/a.png", "memory://fails/t.csv") == PAIRS[0][0]
    fail_from(monkeypatch, 0, Disconnected())
    with pytest.raises(SkippedSample, match="image file cannot be read"):
        read_named("memory://fails/a.png", "memory://fails/t.csv")


class Handler(BaseHTTPRequestHandler):
    """By the first part of the path."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        kind = self.path.split("/")[1]
        self.send_response(200)
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", "0" if kind == "empty" else str(SIZE))
        self.end_headers()

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "late":
            self.send_error(503)
        elif kind == "malformed":
            self.wfile.write(b"no HTTP\r\n\r\n")
        else:
            self.do_HEAD()
            self.wfile.write({"chunked": b"3\r\nabc\r\n0\r\n\r\n", "cut": b"abc", "empty": b""}[kind])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="fsspec needs it for http")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "{0..1}.tar"])
def test_a_server_that_fails_once_a_file_is_open(url: str, name: str) -> None:
    """So a manifest is not taken for missing."""
    asked = f"{url}/late/{'manifest.json' if name == '{0..1}.tar' else name}"
    with pytest.raises(RunError, match=f"the server of {re.escape(asked)} answers 503: try again later"):
        open_source(f"{url}/late/{name}", size=5)


def test_a_server_that_fails_while_metadata_are_sampled(url: str, tmp_path: Path) -> None:
    said = f"^the server of {re.escape(url)}/late/m.parquet answers 503: try again later$"
    with pytest.raises(RunError, match=said):
        sample([f"{url}/late/m.parquet"], num=5, out=tmp_path / "urls.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.tar"])
def test_a_server_that_serves_no_parts(url: str, name: str) -> None:
    message = rf"^{re.escape(url)}/chunked/{name}: its server serves no parts of a file; download it first"
    with pytest.raises(ValueError, match=message):
        list(in_order(open_source(f"{url}/chunked/{name}", size=5)))


def test_an_empty_file_on_a_server(url: str) -> None:
    with open_binary(f"{url}/empty/t.csv") as file:
        assert file.seek(0, 2) == 0 and file.read() == b""


@pytest.mark.parametrize(("kind", "reason"), [("cut", "Not enough data"), ("malformed", "Bad status line")])
def test_an_answer_that_is_cut_off_or_malformed(url: str, kind: str, reason: str) -> None:
    """aiohttp's error says 400, which no server answered."""
    with open_binary(f"{url}/{kind}/t.csv") as file, pytest.raises(RunError) as raised:
        file.read()
    assert f"/t.csv cannot be reached ({reason}" in str(raised.value) and "400" not in str(raised.value)
