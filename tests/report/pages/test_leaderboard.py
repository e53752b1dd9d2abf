"""The page, the CSV and the rules of a leaderboard."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.evaluation.protocols import find_protocol
from advflyp.evaluation.results import read_cells
from advflyp.report.pages.leaderboard import facts_of, leaderboard
from hostile import NAMES, assert_printable

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs/results/reproduce-mini/results"
MINI = find_protocol("advflyp-2026-mini")


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "leaderboard.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_results_of_others(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('["FARE"]\nbackbone = "<b>x"\nlink = "https://example.org"\n')
    page = leaderboard([RESULTS / "fare-s0.jsonl", RESULTS / "pairs-all-64-s0.jsonl"], MINI, tmp_path)
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
    small = replace(MINI, sets=("mini/food",), attacks=("clean", "pgd1"), eps=(1 / 255,), limit=8)
    leaderboard([tiny_folder], small, tmp_path, device="cpu")
    (row,) = rows(tmp_path)
    assert (row["source"], row["status"]) == ("measured here", "admitted")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("advflyp.evaluation.suite.Evaluator.run", never)
    leaderboard([tiny_folder], small, tmp_path, device="cpu")
    leaderboard([], small, tmp_path)
    assert rows(tmp_path) == [row]


@pytest.mark.parametrize(
    "models, message",
    [
        (["fare4-vit-l14"], "the zoo has no model 'fare4-vit-l14'; did you mean 'fare4-vit-l-14'"),
        (["nothing.jsonl"], "there are no results at nothing.jsonl"),
    ],
)
def test_mistakes(
    models: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", "--models", *models, "--out", str(tmp_path / "board")])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "board").exists()


def test_a_link_that_is_a_script(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('["x"]\nlink = "javascript:alert(1)"\n')
    with pytest.raises(ValueError, match="link must be an address"):
        leaderboard([], MINI, tmp_path)


HOSTILE = (*NAMES, "x" * 5000, "../../../etc/passwd", "hf-hub:evil/repo", "</script>")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_in_results_of_others(name: str, tmp_path: Path) -> None:
    """They change neither page nor table, whether their results are admitted or not."""
    sent = tmp_path / "board/submissions"
    sent.mkdir(parents=True)
    for source, count in (("whole", 70), ("part", 3)):
        cells = read_cells(RESULTS / "fare-s0.jsonl")
        named = [replace(one, model=name, checkpoint_sha256=f"{count:064x}") for one in cells]
        lines = [json.dumps(asdict(one)) for one in named if one.attack != "autoattack"][:count]
        (sent / f"{source}.jsonl").write_text("\n".join(lines) + "\n")
    page = leaderboard([], MINI, tmp_path / "board").read_text(encoding="utf-8")
    assert_printable(page)
    plain = leaderboard([RESULTS / "fare-s0.jsonl"], MINI, tmp_path / "plain").read_text(encoding="utf-8")
    assert page.count("<script") == plain.count("<script") and "onload=" not in re.sub("&#34;.*", "", page)
    table = (tmp_path / "board/leaderboard.csv").read_text(encoding="utf-8")
    assert_printable(table)
    found = rows(tmp_path / "board")
    assert [row["status"][:8] for row in found] == ["admitted", "not admi"]
    assert not any(value.startswith(("=", "+", "@", "\t")) for row in found for value in row.values())


def test_the_name_in_results_of_others_opens_no_file(tmp_path: Path, tiny_folder: Path) -> None:
    """A card on this machine says nothing of a model that somebody else calls by its path."""
    card = {"recipe": {"method": {"name": "secret"}, "model": {"name": "of this machine"}}}
    private = shutil.copytree(tiny_folder, tmp_path / "private")
    (private / "card.json").write_text(json.dumps(card))
    sent = tmp_path / "sent.jsonl"
    cells = [replace(one, model=str(private)) for one in read_cells(RESULTS / "fare-s0.jsonl")]
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
