"""The page, the CSV and the rules of a leaderboard."""

import csv
import json
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.evaluation.admission import Entrant
from advflyp.evaluation.protocols import find_protocol
from advflyp.evaluation.results import Cell, read_cells
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model, weights_sha256
from advflyp.model.load import load_model
from advflyp.report.pages.leaderboard import contents, facts_of, leaderboard
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


def test_own_datasets_cannot_be_checked(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "own").mkdir()
    protocol = replace(SMALL, sets=("mini/food", str(tmp_path / "own")))
    with pytest.raises(ValueError, match=r"cannot check results on \S+own, whose images"):
        leaderboard([tiny_folder], protocol, tmp_path / "board", device="cpu")
    assert not (tmp_path / "board").exists()


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
    assert facts_of(Entrant(model=str(private), sha256="", cells=[]), {}, {}).method == "secret"


def test_a_card_says_nothing_of_weights_that_were_in_the_folder_before(tiny: CLIP, tmp_path: Path) -> None:
    entrants, folder = [], tmp_path / "run"
    for method in ("tecoa", "fare"):
        tiny.net.logit_scale.data += 1
        save_model(tiny, folder, {"recipe": {"method": {"name": method}}})
        sha256 = weights_sha256(load_model(folder))
        entrants.append(Entrant(model=str(folder), sha256=sha256, cells=[]))
    assert [facts_of(one, {}, {}).method for one in entrants] == ["?", "fare"]
    bundled = Entrant(model="mini", sha256=weights_sha256(load_model("mini")), cells=[])
    assert facts_of(bundled, {}, {}).method == "advflyp"


@pytest.mark.parametrize("eps", ["4/255", [1], {"a": 1}, None, True, float("nan"), float("inf"), 1e308])
def test_the_card_of_a_stranger(eps: object, tmp_path: Path) -> None:
    """It was measured here, and its author wrote whatever they liked."""
    recipe = {"method": {"name": ["<b>"]}, "model": {}, "attack": {"steps": 10, "eps": eps, "norm": {}}}
    (tmp_path / "card.json").write_text(json.dumps({"recipe": recipe}))
    assert facts_of(Entrant(model=str(tmp_path), sha256="", cells=[]), {}, {}).method == "['<b>']"


def lines(cells: Sequence[Cell], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    return path


@pytest.fixture
def fare(results: Path) -> list[Cell]:
    return [cell for cell in read_cells(results / "fare-s0.jsonl") if cell.attack != "autoattack"]


def test_a_name_of_the_zoo_alone_says_nothing(tmp_path: Path, fare: list[Cell]) -> None:
    """The zoo's method, paper and licence are for its weights: those that were measured here."""
    zoo, method = "fare4-vit-l-14", "FARE"
    named = [replace(cell, model=zoo) for cell in fare]
    lines(named, tmp_path / "sent/submissions/x.jsonl")
    leaderboard([], MINI, tmp_path / "sent")
    (row,) = rows(tmp_path / "sent")
    assert (row["status"], row["method"], row["licence"], row["link"]) == ("admitted", "?", "?", "")
    lines(named, tmp_path / "ours/results/x.jsonl")
    other = [replace(cell, checkpoint_sha256="e" * 64) for cell in named]
    lines(other, tmp_path / "ours/submissions/y.jsonl")
    leaderboard([], MINI, tmp_path / "ours")
    found = {row["source"]: (row["status"][:12], row["method"]) for row in rows(tmp_path / "ours")}
    assert found == {"measured here": ("admitted", method), "file y.jsonl": ("not admitted", "?")}


def test_two_configurations_and_a_file_that_an_older_version_began(tmp_path: Path, fare: list[Cell]) -> None:
    older = [replace(cell, config_sha256="c" * 64 if place > 2 else "") for place, cell in enumerate(fare)]
    lines(older, tmp_path / "results/a.jsonl")
    lines([replace(cell, config_sha256="d" * 64) for cell in fare], tmp_path / "results/b.jsonl")
    leaderboard([], MINI, tmp_path)
    found = {row["model"]: row for row in rows(tmp_path)}
    assert found.keys() == {"FARE (config cccccccc)", "FARE (config dddddddd)"}
    clean = [cell.accuracy for cell in fare if cell.norm is None]
    for row in found.values():
        assert float(row["clean"]) == pytest.approx(100 * sum(clean) / len(clean), abs=1e-3)


def test_a_submission_that_cannot_be_read(tmp_path: Path, fare: list[Cell]) -> None:
    """It is listed with the reason and stops no others; a file that is named is a mistake to be told of."""
    lines(fare, tmp_path / "submissions/good.jsonl")
    bad = tmp_path / "submissions/bad.jsonl"
    bad.write_text('{"model": 3}\n')
    (tmp_path / "submissions/empty.jsonl").touch()
    page = leaderboard([], MINI, tmp_path).read_text()
    assert [(row["model"], row["source"], row["status"][:42]) for row in rows(tmp_path)] == [
        ("FARE", "file good.jsonl", "admitted"),
        ("?", "file bad.jsonl", "not admitted: bad.jsonl, line 1 is not a r"),
        ("?", "file empty.jsonl", "not admitted: there are no results in empt"),
    ]
    assert "bad.jsonl, line 1 is not a result" in page and str(tmp_path) not in page
    with pytest.raises(ValueError, match="line 1 is not a result"):
        leaderboard([bad], MINI, tmp_path / "other")


def test_how_each_model_was_measured(tmp_path: Path, fare: list[Cell], results: Path) -> None:
    """Precision of the search, versions and source of the images may differ, so they are shown."""
    other = [cell for cell in read_cells(results / "fare-s1.jsonl") if cell.attack != "autoattack"]
    changed = [
        replace(cell, model="B", version="9.9" if cell.norm else "9.8", precision="fp32") for cell in other
    ]
    page = leaderboard(
        [lines(fare, tmp_path / "a.jsonl"), lines(changed, tmp_path / "b.jsonl")], MINI, tmp_path
    )
    shown = {row["model"]: (row["precision"], row["versions"], row["copies"]) for row in rows(tmp_path)}
    assert shown == {"FARE": ("bf16", "0.1.0", ""), "B": ("fp32", "9.8, 9.9", "")}
    assert "<td>bf16, 0.1.0</td>" in page.read_text() and "<td>fp32, 9.8, 9.9</td>" in page.read_text()
    copied = [replace(fare[0], set="cifar10", split="test (webdataset)"), *fare[1:]]
    entrant = Entrant(model="FARE", sha256=fare[0].checkpoint_sha256, cells=copied)
    made = contents([entrant], MINI, {})
    assert (
        "<td>bf16, 0.1.0; copies of cifar10</td>" in made["index.html"]
        and "cifar10" in made["leaderboard.csv"]
    )


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
