"""The demo's page in a real browser, and its server under questions that no page asks."""

import base64
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from advflyp.cli.main import main
from advflyp.model.load import load_model
from advflyp.use import server as module
from advflyp.use.demo import open_demo
from advflyp.use.server import LocalServer
from browser import CHROMIUM, Browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
ANSWERED = "document.querySelectorAll('.card').length === 2 && !document.querySelector('.stale')"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer(0) as found:
        open_demo(found, [load_model("mini"), load_model("mini-vit")])
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


@needs_browser
def test_a_click_attacks_a_picture(server: LocalServer, browser: Browser, tmp_path: Path) -> None:
    browser.window(1280, 900)
    browser.open(server.url)
    browser.wait(ANSWERED)
    first = browser.js("document.querySelector('#cards').innerText")
    browser.click("#samples > :nth-child(2)")
    browser.wait(f"document.querySelector('#cards').innerText !== {json.dumps(first)} && {ANSWERED}")
    text = browser.js("document.querySelector('#cards').innerText")
    assert "strawberry" in text and "mini-vit" in text and "Attacked" in text and "%" in text
    size = browser.screenshot(tmp_path / "page.png").stat().st_size
    assert Image.open(tmp_path / "page.png").size == (1280, 900) and size > 20_000
    assert browser.complaints() == []
    assert all(url.startswith((server.url, "data:")) for url in browser.requests() if url != "about:blank")


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(server: LocalServer, browser: Browser, tmp_path: Path, dark: bool) -> None:
    browser.window(390, 844, dark=dark, touch=True)
    browser.open(server.url)
    browser.wait(ANSWERED)
    assert browser.js("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    background = browser.js("getComputedStyle(document.documentElement).backgroundColor")
    body = browser.js("getComputedStyle(document.body).backgroundColor")
    shade = body if body != "rgba(0, 0, 0, 0)" else background
    values = [int(float(v)) for v in shade[shade.index("(") + 1 : -1].split(",")[:3]]
    assert (max(values) < 80) == dark, shade


@needs_browser
def test_a_picture_of_ones_own(server: LocalServer, browser: Browser, tmp_path: Path) -> None:
    browser.open(server.url)
    browser.wait(ANSWERED)
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "red.png")
    before = browser.js("document.querySelector('#cards').innerText")
    browser.choose_file("#file", tmp_path / "red.png")
    browser.wait(f"document.querySelector('#cards').innerText !== {json.dumps(before)} && {ANSWERED}")
    (tmp_path / "text.png").write_text("no picture")
    browser.choose_file("#file", tmp_path / "text.png")
    browser.wait("!document.querySelector('#error').hidden")
    assert "text.png is not a picture that can be read" in browser.js(
        "document.querySelector('#error').innerText"
    )


def ask(server: LocalServer, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/attack", data, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


QUESTION = {"labels": ["cat", "dog"], "eps": 4 / 255, "attack": "pgd10", "sample": 0}


def test_questions(server: LocalServer) -> None:
    status, answer = ask(server, QUESTION)
    assert status == 200 and len(answer["models"]) == 2
    for change, message in (
        ({"labels": ["cat"]}, "at least two"),
        ({"eps": -1}, "eps"),
        ({"attack": "everything"}, "attack"),
        ({"sample": 10**6}, ""),
        ({"sample": None, "file": "!"}, ""),
        (
            {"sample": None, "file": base64.b64encode(b"text").decode(), "name": "a.png"},
            "a.png is not a picture",
        ),
        ({"unknown": 1}, "unknown"),
    ):
        status, answer = ask(server, {**QUESTION, **change})
        assert status == 400 and message in answer["error"], answer
    assert ask(server, b"{")[0] == 400 and ask(server, [1])[0] == 400


@needs_browser
def test_no_model_is_wrong_where_nobody_said_what_is_right(server: LocalServer, browser: Browser) -> None:
    browser.window(1280, 900)
    browser.open(server.url)
    browser.wait(ANSWERED)
    # The labels lack what the first image shows, so that the models only guess.
    browser.js(
        "document.querySelector('#more').open = true; at('labels').value = 'cat\\nhouse\\nteddy bear\\ncar';"
    )
    browser.js("at('labels').dispatchEvent(new Event('input'))")
    browser.wait(
        f"at('label').value === '' && !state.running && state.answer.labels.length === 4 && {ANSWERED}"
    )
    assert browser.js("state.answer.label") is None
    first, second = browser.js("state.answer.clean.map((guesses) => guesses[0].label)")
    assert first != second, "else this shows nothing"
    texts = browser.js("[...document.querySelectorAll('.said')].map((p) => p.innerText)")
    assert len(texts) == 2 and not any("wrong" in text for text in texts), texts
    assert first in texts[0] and second in texts[1]


def test_only_this_page_is_answered(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, QUESTION, Host="evil.example")[0] == 403
    assert ask(server, QUESTION, Origin="http://evil.example")[0] == 403
    assert ask(server, QUESTION, **{"Content-Type": "text/plain"})[0] == 415
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    for path in ("/../../etc/passwd", "/card.json"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 404 and b"root" not in answer.read()
    monkeypatch.setattr(module, "MAX_BODY", 1000)
    status, answer = ask(server, b"x" * 3000)
    assert status == 413 and "larger than 16 MB" in answer["error"]


def raw(server: LocalServer, data: bytes) -> bytes:
    """The answer to bytes, whatever they are."""
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def head(first: str = "POST /attack HTTP/1.1", **headers: str) -> bytes:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = {"Host": "localhost", "Content-Type": "application/json", **given}
    named = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{first}\r\n{named}\r\n".encode("latin-1")


MALFORMED = {
    "origin": (head(Origin="http://["), 403),
    "origin null": (head(Origin="null"), 403),
    "origin of another scheme": (head(Origin="https://localhost"), 403),
    "host": (head(Host="[::1"), 403),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 403),
    "path": (head("GET //[ HTTP/1.1"), 404),
    "absolute path": (head("GET http://localhost/ HTTP/1.1"), 404),
    "no length": (head(), 411),
    "chunked": (head(Transfer_Encoding="chunked") + b"2\r\n{}\r\n0\r\n\r\n", 411),
    "negative length": (head(Content_Length="-1"), 400),
    "length with a sign": (head(Content_Length="+2") + b"{}", 400),
    "length in other digits": (head(Content_Length="\xb2") + b"{}", 400),
    "two lengths": (
        b"POST /attack HTTP/1.1\r\nContent-Length: 2\r\n" + head("Content-Length: 9") + b"{}",
        400,
    ),
    "endless length": (head(Content_Length="9" * 5000), 413),
    "too long": (head(Content_Length=str(10**9)) + b"x" * 10**6, 413),
    "cut off": (head(Content_Length="100") + b"{", 400),
    "type": (head(Content_Type="\xff\xfe;;="), 415),
    "method": (head("PUT / HTTP/1.1") + b"x" * 10**6, 501),
    "head": (head("HEAD / HTTP/1.1"), 501),
    "large header": (head(X="y" * 40_000), 431),
    "large line": (b"GET /" + b"y" * 40_000, 431),
    "many headers": (head(**{f"h{number}": "" for number in range(200)}), 431),
    "version": (head("GET / HTTP/9"), 400),
    "no request": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "deep": (head(Content_Length="200000") + b"[" * 200_000, 400),
    "not UTF-8": (head(Content_Length="3") + b'"\xff"', 400),
    "a key twice": (head(Content_Length="16") + b'{"eps":1,"eps":2}', 400),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_are_answered(
    server: LocalServer, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, status = MALFORMED[case]
    answer = raw(server, data)
    assert answer.startswith(f"HTTP/1.0 {status} ".encode()), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert b"content-security-policy" in answer.lower()
    assert "Traceback" not in capfd.readouterr().err


@given(
    first=st.sampled_from(["GET / HTTP/1.1", "POST /attack HTTP/1.0", "POST /attack", "x y z", ""]),
    headers=st.dictionaries(
        st.sampled_from(["Host", "Origin", "Content-Length", "Content-Type", "Transfer-Encoding", "Expect"])
        | st.text(st.characters(max_codepoint=255), max_size=5),
        st.text(st.characters(max_codepoint=255), max_size=9) | st.sampled_from(["1", "9e9", "localhost"]),
        max_size=5,
    ),
    body=st.binary(max_size=50),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_answered(
    server: LocalServer, capfd: pytest.CaptureFixture[str], first: str, headers: dict[str, str], body: bytes
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    answer = raw(server, f"{first}\r\n{lines}\r\n".encode("latin-1") + body)
    if first.strip():
        assert answer.startswith((b"HTTP/1.0 ", b"{"))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        '"eps": 1' + "0" * 400,
        '"eps": 1' + "0" * 5000,
        '"eps": 1e400',
        '"eps": NaN',
        '"eps": -Infinity',
        '"eps": true',
        '"eps": null',
        '"eps": {}',
        '"eps": 1e-300',
        '"sample": 1' + "0" * 400,
        '"sample": 1.5',
        '"sample": true',
        '"labels": "cat,dog"',
        '"labels": [1, 2]',
        '"labels": ["cat", null]',
        '"labels": ["cat", "' + "x" * 100_000 + '"]',
        '"label": []',
        '"attack": ["pgd10"]',
        '"' + "k" * 100_000 + '": 1',
    ],
    ids=range(19),
)
def test_values_that_nobody_means(server: LocalServer, change: str) -> None:
    rest = {key: value for key, value in QUESTION.items() if f'"{key}"' not in change.partition(":")[0]}
    status, answer = ask(server, f"{json.dumps(rest)[:-1]}, {change}}}".encode())
    assert status == 400 and 0 < len(answer["error"]) <= 500, answer


def test_halves_of_characters(server: LocalServer) -> None:
    assert ask(server, {**QUESTION, "labels": ["cat", "\ud83d"], "name": "\ud83d"})[0] == 200


def test_bodies_that_do_not_arrive(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many clients that send half a body, a few are waited for, and not for long."""
    monkeypatch.setattr(module, "BODY_SECONDS", 1.0)
    half = head(Content_Length=str(module.MAX_BODY)) + b" " * 10_000
    connections = [socket.create_connection(("127.0.0.1", server.server_port), timeout=20) for _ in range(60)]
    for connection in connections:
        connection.sendall(half)
    answers = Counter(connection.recv(2**16).split(b" ")[1] for connection in connections)
    assert answers.keys() == {b"408", b"503"}
    assert 0 < answers[b"408"] <= 1 + module.WAITING, "as many bodies are in memory at a time"
    for connection in connections:
        connection.close()
    assert ask(server, QUESTION)[0] == 200


def test_a_client_that_sends_drop_by_drop(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte arrives in time; all of them do not."""
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        began = time.monotonic()
        try:
            while time.monotonic() - began < 10:
                connection.sendall(b"x")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - began < 5


def test_a_port_in_use(server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
    for port, message in (
        (server.server_port, "is in use; choose another with --port"),
        (70000, "from 0 to 65535"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["demo", "mini", "--port", str(port)])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
