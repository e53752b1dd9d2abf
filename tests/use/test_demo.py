"""The demo's page in a real browser, and its server under questions that no page asks."""

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advflyp.cli import main
from advflyp.model.hub import load_model
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


def test_a_port_in_use(server: LocalServer, capsys: pytest.CaptureFixture[str]) -> None:
    for port, message in (
        (server.server_port, "is in use; choose another with --port"),
        (70000, "from 0 to 65535"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["demo", "mini", "--port", str(port)])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
