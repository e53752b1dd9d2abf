"""The demo: what it answers, its page in a real browser, and requests that are not that page's."""

import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from advflyp.cli.main import main
from advflyp.model.load import load_model
from advflyp.use.demo import NOT_SAID, SAMPLES, Demo, _free_port, card, served
from browser import Browser, needs_browser
from helpers import encoded_png

NAMES = "cat\npizza\nhouse\nteddy bear"
ANSWERED = "[...document.querySelectorAll('.verdict')].filter((e) => /[✗✓–]/.test(e.innerText)).length === 2"


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo([load_model("mini", device="cpu"), load_model("mini-vit", device="cpu")])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("gradio")
    models = [load_model("mini", device="cpu"), load_model("mini-vit", device="cpu")]
    with served(models, _free_port(0)) as found:
        yield found


def test_each_model_is_attacked_for_itself(demo: Demo) -> None:
    found = demo.attack(0, 4, "PGD-10", "pizza", NAMES)
    assert found.models == ["mini", "mini-vit"] and len(found.made) == 2
    for number in range(2):
        head, clean, change, attacked, before, after = card(found, number)
        assert "is fooled: &#x27;pizza&#x27; becomes" in head and "more than 4 of 255 grey levels" in head
        assert clean.size == change.size == attacked.size == (64, 64)
        assert max(before, key=before.__getitem__) == "pizza" != max(after, key=after.__getitem__)
        assert sum(before.values()) == pytest.approx(1, abs=1e-4)


def test_no_model_is_wrong_where_nobody_said_what_is_right(demo: Demo) -> None:
    names = "cat\nhouse\nteddy bear\ncar"
    found = demo.attack(0, 2, "random noise, no attack", NOT_SAID, names)
    first, second = (guesses[0].label for guesses in found.clean)
    assert first != second, "else this shows nothing"
    assert not any("without an attack" in card(found, number)[0] for number in range(2))
    assert "says &#x27;" in card(demo.attack(0, 2, "PGD-10", "cat", names), 0)[0]


def test_text_of_anybody_is_no_markup(demo: Demo) -> None:
    evil = "<img src=x onerror=alert(1)>"
    head = card(demo.attack(0, 2, "PGD-10", NOT_SAID, f"{evil}\ncat"), 0)[0]
    assert "<img" not in head and "&lt;img" in head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "cat"}, "at least two"),
        ({"names": "\n".join(map(str, range(201)))}, "at most 200 labels here, not 201"),
        ({"eps": 0.2}, "at least 1/255"),
        ({"eps": float("inf")}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"label": "dog"}, "'dog' is not among the labels"),
        ({"image": b"text"}, "the image is not an image that can be read"),
        ({"image": encoded_png(Image.new("RGB", (9000, 9)))}, "times as long as it is wide"),
    ],
)
def test_what_cannot_be_done(demo: Demo, change: dict[str, object], message: str) -> None:
    asked = {"image": 0, "eps": 2, "attack": "PGD-10", "label": NOT_SAID, "names": NAMES, **change}
    with pytest.raises(ValueError, match=message):
        demo.attack(**asked)  # type: ignore[arg-type]


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "mini"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "advflyp: the demo needs Gradio: pip install gradio\n"


def test_ports() -> None:
    port = _free_port(0)
    assert port > 0 and _free_port(port) == port
    with pytest.raises(ValueError, match="from 0 to 65535, not 70000"):
        _free_port(70000)


def test_a_port_in_use(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ValueError, match=f"port {port} cannot be used .*choose another with --port"):
        _free_port(port)


def ask(
    url: str, path: str = "/", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], str]:
    place = url.split("/")[2]
    connection = http.client.HTTPConnection(place, timeout=60)
    connection.request("GET" if body is None else "POST", path, body, {"Host": place, **headers})
    answer = connection.getresponse()
    return (
        answer.status,
        {k.lower(): v for k, v in answer.getheaders()},
        answer.read().decode("utf-8", "replace"),
    )


def test_the_page_is_for_this_machine_only(url: str) -> None:
    place = url.split("/")[2]
    status, headers, text = ask(url)
    assert status == 200 and "connect-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "fonts.googleapis.com/css" not in text
    assert ask(url, Origin=f"http://{place}")[0] == 200
    for wrong in ({"Host": "evil.example"}, {"Host": f"127.0.0.1.evil.example:{place[-5:]}"}, {"Host": ""}):
        assert ask(url, **wrong)[0] == 403
    for origin in ("http://evil.example", "null", "http://[", f"https://{place}", "http://localhost:1"):
        assert ask(url, Origin=origin)[0] == 403
        assert ask(url, "/gradio_api/upload", b"x", Origin=origin)[0] == 403


def test_large_requests(url: str) -> None:
    body = json.dumps({"data": ["x" * (2 << 20)]}).encode()
    status, _, _ = ask(url, "/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    assert 400 <= status < 500
    assert ask(url)[0] == 200


@needs_browser
def test_a_click_attacks_an_image(url: str, browser: Browser, tmp_path: Path) -> None:
    browser.window(1280, 900)
    browser.open(url)
    browser.wait(ANSWERED, 90)
    assert "pizza" in browser.js("document.querySelector('.verdict').innerText")
    browser.click("#samples .gallery-item:nth-child(2) button")
    browser.wait(
        f"document.querySelector('.verdict').innerText.includes('{SAMPLES[1][1]}') && {ANSWERED}", 90
    )
    assert browser.screenshot(tmp_path / "page.png").stat().st_size > 20_000
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no image")
    before = browser.js("document.querySelector('.verdict').innerText")
    browser.choose_file("input[type=file]", tmp_path / "red.png")
    browser.wait(f"document.querySelector('.verdict').innerText !== {json.dumps(before)} && {ANSWERED}", 90)
    browser.choose_file("input[type=file]", tmp_path / "text.png")
    browser.wait(
        "document.querySelector('[role=alert]')?.innerText.includes('not an image that can be read')", 90
    )
    assert browser.complaints() == []
    assert all(
        link.startswith((url, "data:", "blob:")) for link in browser.requests() if link != "about:blank"
    )


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone(url: str, browser: Browser, dark: bool) -> None:
    browser.window(390, 844, dark=dark, touch=True)
    browser.open(url)
    browser.wait(ANSWERED, 90)
    assert browser.js("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    shade = browser.js("getComputedStyle(document.body).backgroundColor")
    values = [int(float(v)) for v in shade[shade.index("(") + 1 : -1].split(",")[:3]]
    assert (max(values) < 80) == dark, shade
