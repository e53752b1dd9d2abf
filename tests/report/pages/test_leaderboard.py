"""The page, the CSV and the rules of a leaderboard."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.evaluation.protocols import find_protocol
from advflyp.report.pages.leaderboard import leaderboard

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
