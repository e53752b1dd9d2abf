"""A web server on this machine with every kind of answer that a list of addresses from the web meets."""

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

# Another loopback address takes the part of the internet.
PUBLIC = "127.0.0.2"


def jpeg(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256)).save(stream, "JPEG")
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Listens on every loopback address; `asked` counts paths, `reached` the own addresses it was asked at."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("0.0.0.0", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.reached: list[str] = []
        self.delay = 0.0
        self.huge_sent = 0

    @property
    def port(self) -> int:
        return self.server_address[1]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # whoever was asking hung up


class Handler(BaseHTTPRequestHandler):
    """By the first part of the path."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.removeprefix("http://").partition("/")[2]
        self.server.asked[path] += 1
        self.server.reached.append(self.connection.getsockname()[0])
        kind, _, rest = path.partition("/")
        getattr(self, f"send_{kind}")(rest)

    do_HEAD = do_GET

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_good(self, rest: str) -> None:
        time.sleep(self.server.delay)
        self.answer(jpeg(int(rest)))

    def send_large(self, rest: str) -> None:
        self.answer(jpeg(int(rest), (900, 600)))

    def send_deep(self, rest: str) -> None:
        """16 bits, grey."""
        stream = io.BytesIO()
        Image.fromarray(np.full((64, 96), int(rest) * 257, np.uint16)).save(stream, "PNG")
        self.answer(stream.getvalue())

    def send_turned(self, rest: str) -> None:
        """A camera held upright: EXIF orientation 6."""
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.open(io.BytesIO(jpeg(int(rest)))).save(stream, "JPEG", exif=exif)
        self.answer(stream.getvalue())

    def send_missing(self, rest: str) -> None:
        self.answer(b"no", 404)

    def send_status(self, rest: str) -> None:
        self.answer(b"", int(rest.partition("/")[0]))

    def send_slow(self, rest: str) -> None:
        time.sleep(8)
        self.answer(jpeg(1))

    def send_drip(self, rest: str) -> None:
        body = jpeg(2)
        self.send_response(200)
        if rest == "counted":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.1)

    def send_cut(self, rest: str) -> None:
        body = jpeg(3)
        self.answer(body[: len(body) // 2], length=len(body))

    def send_text(self, rest: str) -> None:
        self.answer(b"<html>not a picture</html>")

    def send_empty(self, rest: str) -> None:
        self.answer(b"")

    def send_huge(self, rest: str) -> None:
        """Without end, or, at huge/said, with a length that says so."""
        if rest == "said":
            self.answer(b"x", length=10**10)
            return
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 16))
            self.server.huge_sent += 1 << 16

    def send_optout(self, rest: str) -> None:
        self.answer(jpeg(4), X_Robots_Tag="noai")

    def send_to(self, rest: str) -> None:
        """Redirect to whatever follows."""
        self.answer(b"", 302, Location=rest.replace("PORT", str(self.server.port)))


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
