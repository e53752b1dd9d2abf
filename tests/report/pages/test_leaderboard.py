"""The page, the CSV and the rules of a leaderboard."""

import csv
import json
import re
import shutil
import socket
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.evaluation.protocols import find_protocol
from advflyp.evaluation.results import read_cells
from advflyp.report.pages.leaderboard import facts_of, leaderboard
from browser import Browser, needs_browser
from hostile import NAMES, assert_printable
from hubserver import NOWHERE, use_hub

ROOT = Path(__file__).parents[3]
MINI = find_protocol("advflyp-2026-mini")
SMALL = replace(MINI, sets=("mini/food",), attacks=("clean", "pgd1"), eps=(1 / 255,), limit=8)


@pytest.fixture(scope="session")
def results(reproduce_mini: Path) -> Path:
    return reproduce_mini / "results"


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "leaderboard.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_results_of_others(tmp_path: Path, results: Path) -> None:
    (tmp_path / "models.toml").write_text('["FARE"]\nbackbone = "<b>x"\nlink = "https://example.org"\n')
    page = leaderboard([results / "fare-s0.jsonl", results / "pairs-all-64-s0.jsonl"], MINI, tmp_path)
    text = page.read_text()
    assert "&lt;b&gt;x" in text and "<b>x" not in text
    assert 'href="https://example.org"' in text and "fare4-vit-l-14" in text
    first, second = rows(tmp_path)
    assert (first["model"], first["status"], first["backbone"]) == ("FARE", "admitted", "<b>x")
    assert first["checkpoint_sha256"].startswith("f623624c") and float(first["clean"]) > 40
    assert second["status"] == "not admitted: 50 of 70 results missing, first mini/animals, pgd10 at 2/255"
    assert second["clean"] == "" and "50 of 70 results missing" in text
    assert (
        "advflyp eval MODEL --protocol advflyp-2026-mini --seed 0" in (tmp_path / "SUBMISSION.md").read_text()
    )


def test_a_model_is_measured_and_resumed(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaderboard([tiny_folder], SMALL, tmp_path, device="cpu")
    (row,) = rows(tmp_path)
    assert (row["source"], row["status"]) == ("measured here", "admitted")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("advflyp.evaluation.suite.Evaluator.run", never)
    leaderboard([tiny_folder], SMALL, tmp_path, device="cpu")
    leaderboard([], SMALL, tmp_path)
    assert rows(tmp_path) == [row]


@pytest.mark.parametrize(
    "models, message",
    [
        (["fare4-vit-l14"], "the zoo has no model 'fare4-vit-l14'; did you mean 'fare4-vit-l-14'"),
        (["nothing.jsonl"], "there are no results at nothing.jsonl"),
        (["mini", "./runs/robst"], "there is no model at ./runs/robst"),
    ],
)
def test_mistakes(
    models: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", "--models", *models, "--out", str(tmp_path / "board")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def test_a_board_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is nothing to list; name models"):
        leaderboard([], MINI, tmp_path / "board")
    assert not (tmp_path / "board").exists()


def test_a_link_that_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('["x"]\nlink = "javascript:alert(1)"\n')
    with pytest.raises(ValueError, match="link must be an address"):
        leaderboard([], MINI, tmp_path)


HOSTILE = (*NAMES, "x" * 5000, "../../../etc/passwd", "hf-hub:evil/repo", "</script>")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_in_results_of_others(name: str, tmp_path: Path, results: Path) -> None:
    """They change neither page nor table, whether their results are admitted or not."""
    sent = tmp_path / "board/submissions"
    sent.mkdir(parents=True)
    for source, count in (("whole", 70), ("part", 3)):
        cells = read_cells(results / "fare-s0.jsonl")
        named = [replace(one, model=name, checkpoint_sha256=f"{count:064x}") for one in cells]
        lines = [json.dumps(asdict(one)) for one in named if one.attack != "autoattack"][:count]
        (sent / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
    page = leaderboard([], MINI, tmp_path / "board").read_text(encoding="utf-8")
    assert_printable(page)
    plain = leaderboard([results / "fare-s0.jsonl"], MINI, tmp_path / "plain").read_text(encoding="utf-8")
    assert page.count("<script") == plain.count("<script") and "onload=" not in re.sub("&#34;.*", "", page)
    table = (tmp_path / "board/leaderboard.csv").read_text(encoding="utf-8")
    assert_printable(table)
    found = rows(tmp_path / "board")
    assert [row["status"][:8] for row in found] == ["admitted", "not admi"]
    assert not any(value.startswith(("=", "+", "@", "\t")) for row in found for value in row.values())


def test_the_name_in_results_of_others_opens_no_file(
    tmp_path: Path, tiny_folder: Path, results: Path
) -> None:
    """A card on this machine says nothing of a model that somebody else calls by its path."""
    card = {"recipe": {"method": {"name": "secret"}, "model": {"name": "of this machine"}}}
    private = shutil.copytree(tiny_folder, tmp_path / "private")
    (private / "card.json").write_text(json.dumps(card))
    sent = tmp_path / "sent.jsonl"
    cells = [replace(one, model=str(private)) for one in read_cells(results / "fare-s0.jsonl")]
    sent.write_text("".join(json.dumps(asdict(one)) + "\n" for one in cells))
    page = leaderboard([sent], MINI, tmp_path / "board").read_text()
    assert "secret" not in page and "of this machine" not in page
    assert facts_of(str(private), {}, is_ours=True).method == "secret"


@pytest.mark.parametrize("eps", ["4/255", [1], {"a": 1}, None, True, float("nan"), float("inf"), 1e308])
def test_the_card_of_a_stranger(eps: object, tmp_path: Path) -> None:
    """It was measured here, and its author wrote whatever they liked."""
    recipe = {"method": {"name": ["<b>"]}, "model": {}, "attack": {"steps": 10, "eps": eps, "norm": {}}}
    (tmp_path / "card.json").write_text(json.dumps({"recipe": recipe}))
    assert facts_of(str(tmp_path), {}, is_ours=True).method == "['<b>']"


def test_without_a_network(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local models connect to nothing; a published one is refused in a sentence, and the page stays as it was."""
    asked: list[object] = []

    def refuse(_: socket.socket, address: object) -> None:
        asked.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: refuse(socket.socket(), host))
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    board = tmp_path / "board"
    page = leaderboard([tiny_folder, "mini-vit"], SMALL, board, device="cpu")
    assert {row["source"] for row in rows(board)} == {"measured here"} and len(rows(board)) == 2
    assert not asked

    before = {path.name: path.read_bytes() for path in board.iterdir() if path.is_file()}
    with pytest.raises(
        ValueError, match=rf"the hub \({NOWHERE}\) cannot be reached and chs20/fare4-clip is not in its cache"
    ):
        leaderboard(["fare4-vit-l-14"], SMALL, board, device="cpu")
    assert asked, "else nothing above was watched"
    assert {path.name: path.read_bytes() for path in board.iterdir() if path.is_file()} == before
    assert page.is_file() and len(list((board / "results").glob("*.jsonl"))) == 2


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_sorting_and_filtering(tmp_path: Path, browser: Browser, results: Path, width: int) -> None:
    facts = {"TeCoA": "mini-vit", "FARE": "mini-vit", "TeCoA, ResNet": "mini", "AdvFLYP, ResNet": "mini"}
    (tmp_path / "models.toml").write_text(
        "".join(f'["{name}"]\nbackbone = "{backbone}"\n' for name, backbone in facts.items())
    )
    files = [results / f"{name}-s0.jsonl" for name in ("fare", "tecoa-other", "advflyp-other", "tecoa")]
    page = leaderboard(files, MINI, tmp_path)
    clean = {row["model"]: float(row["clean"]) for row in rows(tmp_path)}
    assert clean.keys() == facts.keys() and len({*clean.values()}) == len(clean)
    browser.window(width, 800, touch=width < 600)
    browser.open(page.as_uri())

    def shown(what: str = "names") -> list[str]:
        """Names of the rows, or radii of the columns, that a reader sees in the table of what was measured."""
        return browser.js(
            """(what => {
                const seen = all => [...all].filter(one => one.getClientRects().length);
                const table = document.querySelector("table.board");
                return what === "names" ? seen(table.tBodies[0].rows).map(row => row.cells[0].innerText.trim())
                    : seen(table.tHead.rows[0].cells).map(cell => cell.dataset.eps).filter(eps => eps);
            })"""
            + f"({json.dumps(what)})"
        )

    def choose(name: str, value: str) -> None:
        browser.js(
            f"(select => {{ select.value = {json.dumps(value)}; select.dispatchEvent(new Event('change')); }})"
            f"(document.getElementById({json.dumps(name)}))"
        )

    best_first = sorted(clean, key=clean.__getitem__, reverse=True)
    head = "table.board th:nth-child(2)"
    browser.click(f"{head} button")
    assert shown() == best_first and browser.js(f"document.querySelector('{head}').ariaSort") == "descending"
    browser.click(f"{head} button")
    assert shown() == best_first[::-1]
    browser.click("table.board th:nth-child(1) button")
    assert shown() == sorted(clean, key=str.casefold)

    choose("backbone", "mini")
    assert sorted(shown()) == ["AdvFLYP, ResNet", "TeCoA, ResNet"]
    browser.click(f"{head} button")
    assert shown() == [name for name in best_first if facts[name] == "mini"]
    choose("backbone", "")
    assert shown() == best_first

    everything = shown("radii")
    assert {*everything} == {"1/255", "2/255", "4/255"}
    choose("eps", "2/255")
    assert shown("radii") == ["2/255", "2/255"] and shown() == best_first
    choose("eps", "")
    assert shown("radii") == everything

    assert browser.js("document.documentElement.scrollWidth <= innerWidth"), (
        "the page itself never scrolls sideways"
    )
    assert not browser.complaints()
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
