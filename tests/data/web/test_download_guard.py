"""The guard of img2dataset's processes, in this one: `urllib.request.urlopen` against a server on this machine."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advflyp.data.isolated import advflyp_guard as guard
from webserver import PUBLIC, Server, jpeg


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    urllib.request.install_opener(None)  # pyright: ignore[reportArgumentType]


def get(url: str, timeout: float = 5) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read()


def error(url: str, timeout: float = 5) -> str:
    with pytest.raises(Exception) as raised:
        get(url, timeout)
    message = str(raised.value)
    if isinstance(raised.value, urllib.error.HTTPError):
        raised.value.close()  # it holds the answer
    return message


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address: str) -> None:
    assert guard.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
        "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2002:c0a8:101::1", "2001:0:7f00:1::1",
    ],
)  # fmt: skip
def test_not_public(address: str) -> None:
    assert not guard.is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"],
)
def test_this_machine_is_refused(server: Server, host: str) -> None:
    guard.install(guard.Limits())
    before = server.asked.total()
    assert guard.PRIVATE in error(f"http://{host}:{server.port}/good/1")
    assert guard.PRIVATE in error(f"https://{host}:{server.port}/good/1")
    assert server.asked.total() == before
    guard.install(guard.Limits(allow_private=True))
    if host[0] != "[":
        assert get(f"http://{host}:{server.port}/good/1") == jpeg(1)


def test_redirects_are_checked(server: Server, internet: None) -> None:
    guard.install(guard.Limits())
    assert get(server.url("good/2", PUBLIC)) == jpeg(2)
    assert get(server.url(f"to/http://{PUBLIC}:PORT/good/3", PUBLIC)) == jpeg(3)
    server.asked.clear()
    for target in (
        "http://127.0.0.1:PORT/good/4",
        "http://localhost:PORT/good/4",
        "https://127.0.0.1:PORT/good/4",
    ):
        assert guard.PRIVATE in error(server.url(f"to/{target}", PUBLIC))
    assert server.asked["good/4"] == 0
    assert guard.PRIVATE in error(
        server.url(f"to/http://{PUBLIC}:PORT/to/http://127.0.0.1:PORT/good/4", PUBLIC)
    )


def test_connects_to_the_address_it_checked(
    server: Server, internet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when asked for the first time and private from then on."""
    answers = [PUBLIC, "127.0.0.1", "127.0.0.1"]

    def resolve(host: str, port: int, *_: Any) -> list[Any]:
        assert host == "rebinds.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    guard.install(guard.Limits())
    assert get(server.url("good/5", "rebinds.example")) == jpeg(5)
    assert len(answers) == 2 and server.reached[-1] == PUBLIC
    assert guard.PRIVATE in error(server.url("good/5", "rebinds.example"))


def test_private_ones_of_several_addresses_are_left_out(
    server: Server, internet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.port)) for ip in ("127.0.0.1", PUBLIC)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: entries)
    guard.install(guard.Limits())
    get(server.url("good/6", "both.example"))
    assert server.reached[-1] == PUBLIC


def test_only_http(server: Server, internet: None, tmp_path: Path) -> None:
    """urllib alone would read the file."""
    (tmp_path / "picture.jpg").write_bytes(jpeg(1))
    url = (tmp_path / "picture.jpg").as_uri()
    assert get(url) == jpeg(1)
    guard.install(guard.Limits(allow_private=True))
    for refused in (url, "ftp://127.0.0.1/x", "data:text/plain,x"):
        assert "unknown url type" in error(refused)
        assert "error" in error(server.url(f"to/{refused}", PUBLIC)).lower()


def test_large_answers(server: Server) -> None:
    guard.install(guard.Limits(allow_private=True, max_bytes=1 << 20))
    assert error(server.url("huge/said")) == guard.TOO_LARGE
    assert error(server.url("huge/endless")) == guard.TOO_LARGE
    time.sleep(0.2)
    assert server.huge_sent < 16 << 20
    assert get(server.url("large/1")) == jpeg(1, (900, 600))


@pytest.mark.parametrize("path", ["drip/counted", "drip/uncounted"])
def test_dripping_answers(server: Server, path: str) -> None:
    """Each byte comes within the timeout, all of them take a minute."""
    guard.install(guard.Limits(allow_private=True, seconds=1))
    begun = time.monotonic()
    assert error(server.url(path)) == guard.TOO_SLOW
    assert time.monotonic() - begun < 30


def test_dripping_headers() -> None:
    """Between headers nothing is read by us."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n")
                    for number in range(600):
                        connection.sendall(f"X-{number}: x\r\n".encode())
                        time.sleep(0.1)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        guard.install(guard.Limits(allow_private=True, seconds=1))
        begun = time.monotonic()
        assert guard.TOO_SLOW in error(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        assert time.monotonic() - begun < 30


def test_certificates_are_loaded_once_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ssl.SSLContext] = []
    load = ssl.SSLContext.load_default_certs

    def counted(context: ssl.SSLContext, *args: Any) -> None:
        loaded.append(context)
        load(context, *args)

    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", counted)
    guard.install(guard.Limits(allow_private=True))
    for _ in range(3):
        assert "refused" in error("https://127.0.0.1:9/")
    assert len(loaded) == 1
    assert loaded[0].verify_mode == ssl.CERT_REQUIRED and loaded[0].check_hostname


def test_answers_that_are_cut_off(server: Server) -> None:
    guard.install(guard.Limits(allow_private=True))
    assert "IncompleteRead" in error(server.url("cut/1"))
    assert "timed out" in error(server.url("slow/1"), timeout=0.3)
    assert "404" in error(server.url("missing/1"))


def test_a_proxy_may_be_private(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    guard.install(guard.Limits())
    assert get("http://93.184.216.34/good/7") == jpeg(7)
    assert get("http://only-the-proxy-knows.invalid/good/8") == jpeg(8)
    for host in ("10.0.0.1", "localhost", "169.254.169.254", f"127.0.0.1:{server.port}"):
        assert guard.PRIVATE in error(f"http://{host}/good/9")
    assert server.asked["good/9"] == 0
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert guard.PRIVATE in error(server.url("good/9"))


def test_the_worker_puts_the_guard_up(server: Server) -> None:
    class Base:
        def __init__(self, sample_writer_class: Any) -> None:
            pass

        def __call__(self, row: str) -> str:
            return error(row)

    worker = type("Worker", (guard.GuardedDownloader, Base), {})(guard.Limits(), sample_writer_class=None)
    assert get(server.url("good/1")) == jpeg(1)
    assert guard.PRIVATE in worker(server.url("good/1"))


FULL = """
import errno
from advflyp.data.isolated import advflyp_guard as guard

class Kind:
    def __init__(self, shard):
        print(shard, flush=True)

    def write(self, *sample):
        if sample == ("bad",):
            raise OSError(errno.ENOSPC, "No space left on device")
        print(*sample, flush=True)

    def close(self):
        print("closed", flush=True)

writer = guard.Writer(Kind, 7)
writer.write("a", 1)
writer.close()
try:
    writer.write("bad")
finally:
    print("went on", flush=True)
"""


def test_a_full_disk_ends_the_job() -> None:
    """Its whole process group, before anything else is written."""
    done = subprocess.run(
        [sys.executable, "-c", FULL], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "7\na 1\nclosed\n")
