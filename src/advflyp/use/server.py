"""The demo's web server: one page and one question, for browsers on this machine only."""

import base64
import errno
import hashlib
import json
import socketserver
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
# What a browser on this machine may call it. A page from elsewhere whose name was made to point here says its own.
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_PICTURE = 16 * 2**20
# In base64, with labels.
MAX_BODY = MAX_PICTURE * 4 // 3 + 2**20
# Questions that may wait for the one that is being answered.
WAITING = 4

Answer = Callable[[dict[str, Any]], dict[str, Any]]


class LocalServer(ThreadingHTTPServer):
    """Bound to the loopback address; `show` says what it serves.

    ValueError for a port that is in use or impossible.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        self.page, self.policy = b"", ""
        self.answer: Answer = lambda asked: {}
        self.slots = threading.BoundedSemaphore(1 + WAITING)
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


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: LocalServer
    timeout = 30
    server_version = "advflyp"
    sys_version = ""

    def do_GET(self) -> None:
        try:
            self._check(("/",))
            self._send(200, "text/html; charset=utf-8", self.server.page)
        except _Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})

    def do_POST(self) -> None:
        try:
            self._check(("/attack",))
            self._send_json(200, self._answer(self._question()))
        except _Refused as refused:
            self._send_json(refused.status, {"error": str(refused)})

    def _check(self, paths: tuple[str, ...]) -> None:
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            raise _Refused(403, f"this page answers only to {' and '.join(HOSTS[:2])}")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise _Refused(403, "only this page's own questions are answered")
        if urlsplit(self.path).path not in paths:
            raise _Refused(404, "there is nothing here but /")

    def _question(self) -> dict[str, Any]:
        # No other page may send this type without asking first, which nobody here answers.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "ask in application/json")
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise _Refused(411, "say how long the question is") from None
        if length > MAX_BODY:
            self._drain(min(length, 4 * MAX_BODY))
            raise _Refused(413, f"the picture is larger than {MAX_PICTURE // 2**20} MB; make it smaller")
        try:
            asked = json.loads(self.rfile.read(max(0, length)))
        except (ValueError, RecursionError):
            raise _Refused(400, "the question is not JSON") from None
        if not isinstance(asked, dict):
            raise _Refused(400, "the question is not a JSON object")
        return asked

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        server = self.server
        if not server.slots.acquire(blocking=False):
            raise _Refused(503, "too many questions at once; wait for the answers and ask again")
        try:
            with server.one:
                return server.answer(asked)
        except ValueError as error:
            raise _Refused(400, str(error)) from None
        except Exception:
            # The terminal gets all of it, and the page lives on.
            traceback.print_exc()
            raise _Refused(500, "this failed; the terminal of `advflyp demo` says how") from None
        finally:
            server.slots.release()

    def _drain(self, length: int) -> None:
        """A browser that is cut off while it sends shows no answer."""
        while length > 0 and (part := self.rfile.read(min(length, 2**16))):
            length -= len(part)

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
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
