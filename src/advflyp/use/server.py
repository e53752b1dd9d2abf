"""The demo's web server: one page and one question, for browsers on this machine only."""

import base64
import errno
import hashlib
import io
import json
import socket
import socketserver
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from advflyp.documents import parse_json
from advflyp.escape import for_terminal
from advflyp.terminal import say

LOOPBACK = "127.0.0.1"
# What a browser on this machine may call it. A page from elsewhere whose name was made to point here says its own.
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_PICTURE = 16 * 2**20
# In base64, with labels.
MAX_BODY = MAX_PICTURE * 4 // 3 + 2**20
# Questions that may arrive, or wait for the one that is being answered: as many bodies are in memory.
WAITING = 4
# Connections at a time.
MAX_CONNECTIONS = 32
# Of the request line and the headers; a browser sends one to two thousand.
MAX_HEAD = 2**15
# Seconds for the head, for a body, and for an answer to be taken.
HEAD_SECONDS, BODY_SECONDS, ANSWER_SECONDS = 10.0, 20.0, 30.0
# Seconds without a byte until a client that was refused is cut off.
IDLE_SECONDS = 1.0
LONGEST_ERROR = 500
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class LocalServer(ThreadingHTTPServer):
    """Bound to the loopback address; `show` says what it serves.

    ValueError for a port that is in use or impossible.
    """

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, port: int) -> None:
        self.page, self.policy = b"", ""
        self.answer: Answer = lambda asked: {}
        self.slots = threading.BoundedSemaphore(1 + WAITING)
        self.connections = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.one = threading.Lock()
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OverflowError:
            raise ValueError(f"a port is a number from 0 to 65535, not {port}") from None
        except OSError as error:
            why = {
                errno.EADDRINUSE: "is in use; choose another with --port, or --port 0 for any free one",
                errno.EACCES: "is reserved; choose one above 1023 with --port, or --port 0 for any free one",
            }.get(error.errno or 0, f"cannot be used: {error.strerror}")
            raise ValueError(f"port {port} {why}") from None

    def server_bind(self) -> None:
        # HTTPServer's own asks the name service what this machine is called.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there are not too many."""
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        try:
            request.setblocking(False)
            request.send(BUSY)
        except OSError:
            pass  # gone already, or not listening
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing for a client that has gone; everything else on the terminal."""
        if not isinstance(sys.exc_info()[1], OSError):
            _tell()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}/"

    def show(
        self, *, head: str, style: str, body: str, data: dict[str, Any], script: str, answer: Answer
    ) -> None:
        """Serve a page of these parts, which may load nothing from anywhere.

        data:   for the script, as the element "setup"
        answer: called with each question, one at a time; a ValueError of its is shown to the asker
        """
        # "</script>" in a text would end the element.
        setup = json.dumps(data).replace("<", "\\u003c")
        self.page = (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{head}\n'
            f"<style>{style}</style>\n</head>\n"
            f'<body>\n{body}\n<script id="setup" type="application/json">{setup}</script>\n<script>{script}</script>\n'
            "</body>\n</html>\n"
        ).encode()
        self.policy = (
            "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors 'none'; style-src {_sha256(style)}; script-src {_sha256(script)}"
        )
        self.answer = answer


def _sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _tell() -> None:
    """What went wrong just now, on the terminal."""
    say(for_terminal(traceback.format_exc(), keep="\n"), to_stderr=True)


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Arriving(io.RawIOBase):
    """What a client sends, up to a number of bytes and a moment, however slowly it does."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.allow(MAX_HEAD, HEAD_SECONDS)

    def allow(self, count: int, seconds: float) -> None:
        """So much more, and so long from now on."""
        self.left, self.until, self.cut = count, time.monotonic() + seconds, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.cut = not self.left
        if self.cut:
            return 0
        seconds = self.until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("too slow")
        self.connection.settimeout(seconds)
        count = self.connection.recv_into(memoryview(buffer)[: self.left])
        self.left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    server_version = "advflyp"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self.arriving)

    def do_GET(self) -> None:
        self._answered(self._page)

    def do_POST(self) -> None:
        self._answered(self._attack)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in one sentence; what is no HTTP at all gets here, too."""
        self.request_version = self.protocol_version  # or there would be no status line
        error = json.dumps({"error": (message or explain or "this is not answered")[:LONGEST_ERROR]})
        self._send(code, "application/json", error.encode())
        self._drain()

    def _answered(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        try:
            kind, content = answer()
        except _Refused as refused:
            self.send_error(refused.status, str(refused))
        else:
            self._send(200, kind, content)

    def _page(self) -> tuple[str, bytes]:
        self._check("/")
        return "text/html; charset=utf-8", self.server.page

    def _attack(self) -> tuple[str, bytes]:
        self._check("/attack")
        length = self._length()
        if not self.server.slots.acquire(blocking=False):
            raise _Refused(503, "too many questions at once; wait for the answers and ask again")
        try:
            body = self._body(length)
            with self.server.one:
                return "application/json", json.dumps(self._answer(body)).encode()
        finally:
            self.server.slots.release()

    def _check(self, path: str) -> None:
        if self.arriving.cut:
            raise _Refused(431, f"the request has more than {MAX_HEAD >> 10} kB of headers")
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            raise _Refused(403, f"this page answers only to {' and '.join(HOSTS[:2])}")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(403, "only this page's own questions are answered")
        if self.path.partition("?")[0] != path:
            raise _Refused(404, "there is nothing here but /")

    def _length(self) -> int:
        """Of the body."""
        # No other page may send this type without asking first, which nobody here answers.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "ask in application/json")
        given = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not given:
            raise _Refused(411, "say how long the question is")
        length = given[0].strip()
        if len(given) > 1 or not (length.isascii() and length.isdecimal()):
            raise _Refused(400, "Content-Length must be one number of bytes")
        # A number of thousands of digits is none for `int`.
        if len(length) > 12 or int(length) > MAX_BODY:
            raise _Refused(413, f"the picture is larger than {MAX_PICTURE // 2**20} MB; make it smaller")
        return int(length)

    def _body(self, length: int) -> bytes:
        self.arriving.allow(length, BODY_SECONDS)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise _Refused(408, f"the question did not arrive within {BODY_SECONDS:g} seconds") from None
        if len(body) < length:
            raise _Refused(400, "the question was cut off")
        return body

    def _answer(self, body: bytes) -> dict[str, Any]:
        try:
            asked = parse_json(body)
        except ValueError as error:
            raise _Refused(400, f"the question is not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise _Refused(400, "the question is not a JSON object")
        try:
            return self.server.answer(asked)
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        except Exception:
            # The terminal gets all of it, and the page lives on.
            _tell()
            raise _Refused(500, "this failed; the terminal of `advflyp demo` says how") from None

    def _drain(self) -> None:
        """Take what is still on its way: a browser that is cut off while it sends shows no answer."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(IDLE_SECONDS)
        left, until = 4 * MAX_BODY, time.monotonic() + BODY_SECONDS
        while left > 0 and time.monotonic() < until and (part := self.connection.recv(min(left, 2**16))):
            left -= len(part)

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.connection.settimeout(ANSWER_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
