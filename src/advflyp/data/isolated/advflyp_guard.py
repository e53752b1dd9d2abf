"""A guard between URLs from the web and the user's own network.

It runs inside img2dataset's processes in the isolated environment, and in advflyp's own for addresses that tables of
pairs name (`data/pairs/addresses.py`), so it uses only the standard library and nothing from advflyp. img2dataset
downloads through `urllib.request.urlopen`, which opens file:, ftp: and data: URLs too, connects to any address, and
reads responses of any size for as long as they last. `install` gives urllib an opener that

- allows only http and https, also after a redirect;
- resolves each host once, refuses addresses that are not public, and connects to the very address it checked, so that
  a name cannot point elsewhere a moment later;
- gives up on responses that are too large or take too long in total.

A proxy set by the environment may be at a private address, since the user chose it. It resolves names itself, so a
request through it is refused only if the target host is, or resolves here to, a private address.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

PRIVATE = "private address"
TOO_LARGE = "answer is too large"
TOO_SLOW = "timed out"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Reserved, but public for some versions of Python.
RESERVED = (
    "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "3fff::/20", "5f00::/16",
)  # fmt: skip

if __name__ == "advflyp_guard":
    from img2dataset.downloader import Downloader  # pyright: ignore[reportMissingImports]
else:  # in advflyp's own environment
    Downloader = object


@dataclass(frozen=True)
class Limits:
    """What a download may do.

    Attributes:
        allow_private: Connect to any address.
        max_bytes: Maximum size of one response.
        seconds: Maximum duration of one response in total; img2dataset's own timeout applies to each pause.
        named: Host and port that may be at a private address, since the user named them.
    """

    allow_private: bool = False
    max_bytes: int = 32 << 20
    seconds: float = 60.0
    named: tuple[str, int] | None = None

    def may_reach(self, host: str, port: int | None) -> bool:
        """Whether a host needs no check."""
        return self.allow_private or (host.lower(), port) == self.named


class Refused(OSError):
    """The guard's own errors; the message is the reason."""


def is_public(address: str) -> bool:
    """Whether an address, as text, is on the internet: not private, loopback, link-local, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # These lead to an IPv4 address, which decides.
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    if any(ip in ipaddress.ip_network(network) for network in RESERVED):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def public_addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """`getaddrinfo` without the addresses that are not public; `Refused` if none is left."""
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    public = [entry for entry in found if is_public(str(entry[4][0]))]
    if not public:
        raise Refused(PRIVATE)
    return public


def connect_public(
    address: tuple[str, int],
    timeout: Any = socket._GLOBAL_DEFAULT_TIMEOUT,  # pyright: ignore[reportAttributeAccessIssue]
    source_address: Any = None,
    **_: Any,
) -> socket.socket:
    """`socket.create_connection` to public addresses only."""
    problem: OSError | None = None
    for family, kind, protocol, _name, target in public_addresses(*address):
        sock = socket.socket(family, kind, protocol)
        try:
            if timeout is not socket._GLOBAL_DEFAULT_TIMEOUT:  # pyright: ignore[reportAttributeAccessIssue]
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(target)
            return sock
        except OSError as error:
            problem = error
            sock.close()
    assert problem is not None
    raise problem


class Watchdog:
    """Shuts down connections past their deadline, so that a server that drips bytes cannot hold a thread forever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: list[tuple[float, weakref.ref[socket.socket]]] = []
        self._thread: threading.Thread | None = None

    def watch(self, sock: socket.socket, deadline: float) -> None:
        with self._lock:
            self._watched.append((deadline, weakref.ref(sock)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="advflyp-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(0.25)
            with self._lock:
                now, left = time.monotonic(), []
                for deadline, reference in self._watched:
                    sock = reference()
                    if sock is None or sock.fileno() < 0:
                        continue
                    if now < deadline:
                        left.append((deadline, reference))
                        continue
                    with contextlib.suppress(OSError):  # it ended by itself
                        sock.shutdown(socket.SHUT_RDWR)
                self._watched = left


WATCHDOG = Watchdog()


def _connection(
    base: type[http.client.HTTPConnection], limits: Limits, proxied: bool
) -> type[http.client.HTTPConnection]:
    """A connection class that keeps to the limits."""

    class Response(http.client.HTTPResponse):
        deadline = float("inf")

        def begin(self) -> None:
            try:
                super().begin()
            except Exception as error:
                raise self._late(error) from error

        def read(self, amt: int | None = None) -> bytes:
            if amt is not None:
                return super().read(amt)
            if self.length is not None and self.length > limits.max_bytes:
                raise Refused(TOO_LARGE)
            try:
                # If the length is known, only reading everything at once detects a truncated response.
                data = super().read() if self.length is not None else self._read_on()
            except Exception as error:
                raise self._late(error) from error
            if time.monotonic() > self.deadline:
                raise Refused(TOO_SLOW)
            return data

        def _read_on(self) -> bytes:
            parts, total = [], 0
            while part := super().read(1 << 16):
                parts.append(part)
                total += len(part)
                if total > limits.max_bytes:
                    raise Refused(TOO_LARGE)
            return b"".join(parts)

        def _late(self, error: Exception) -> Exception:
            return Refused(TOO_SLOW) if time.monotonic() > self.deadline else error

    class Connection(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.deadline = time.monotonic() + limits.seconds
            if not proxied and not limits.may_reach(self.host, self.port):
                self._create_connection = connect_public
            self.response_class = self._response  # pyright: ignore[reportAttributeAccessIssue]

        def connect(self) -> None:
            super().connect()
            WATCHDOG.watch(self.sock, self.deadline)

        def _response(self, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
            response = Response(*args, **kwargs)
            response.deadline = self.deadline
            return response

    return Connection


class GuardedHandler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """http: and https: through the guard."""

    def __init__(self, limits: Limits) -> None:
        # One for all connections: loading the certificates takes 20 ms. Set up as `http.client` does for each.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        urllib.request.HTTPSHandler.__init__(self, context=context)
        self.limits, self.context = limits, context

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connection(http.client.HTTPConnection, self.limits, req.has_proxy()), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        proxied = req.has_proxy() or bool(getattr(req, "_tunnel_host", None))
        kind = _connection(http.client.HTTPSConnection, self.limits, proxied)
        return self.do_open(kind, req, context=self.context)


class GuardedProxyHandler(urllib.request.ProxyHandler):
    """The environment's proxies; hosts that resolve here to private addresses are not requested through them."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits

    def proxy_open(self, req: urllib.request.Request, proxy: str, type: str) -> Any:
        kind = http.client.HTTPSConnection if req.type == "https" else http.client.HTTPConnection
        target = kind(req.host)
        if not self.limits.may_reach(target.host, target.port) and not getattr(
            req, "_advflyp_checked", False
        ):
            try:
                public_addresses(target.host, 0)
            except Refused as reason:
                raise urllib.error.URLError(reason) from None
            except (OSError, UnicodeError):
                pass  # only the proxy can resolve it
            req._advflyp_checked = True  # pyright: ignore[reportAttributeAccessIssue]
        return super().proxy_open(req, proxy, type)  # pyright: ignore[reportAttributeAccessIssue]


def guarded_opener(limits: Limits) -> urllib.request.OpenerDirector:
    """An opener of http and https addresses that enforces the limits."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        GuardedProxyHandler(limits),
        urllib.request.UnknownHandler(),
        GuardedHandler(limits),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def install(limits: Limits) -> None:
    """Let `urllib.request.urlopen` keep to the limits in this process."""
    urllib.request.install_opener(guarded_opener(limits))


class Writer:
    """img2dataset's writer of a shard, except that a failure to write ends the job and leaves the shard unfinished.

    img2dataset itself would go on without the sample, or wait forever if its log cannot be written either.
    """

    def __init__(self, kind: Any, *args: Any) -> None:
        self.writer = kind(*args)
        self.close = self.writer.close

    def write(self, *args: Any) -> None:
        try:
            self.writer.write(*args)
        except OSError:
            os.killpg(os.getpgid(0), signal.SIGTERM)
            raise


class GuardedDownloader(Downloader):  # pyright: ignore[reportGeneralTypeIssues]
    """img2dataset's worker. Every process that unpickles it imports this module and installs the guard first: a process
    or a cluster machine that does not have the module cannot download anything.
    """

    def __init__(self, limits: Limits, *, sample_writer_class: Any, **kwargs: Any) -> None:
        super().__init__(sample_writer_class=partial(Writer, sample_writer_class), **kwargs)
        self.limits = limits

    def __call__(self, row: Any) -> Any:
        install(self.limits)
        return super().__call__(row)  # pyright: ignore[reportAttributeAccessIssue]
