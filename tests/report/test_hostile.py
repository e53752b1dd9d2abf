"""Every way in which a report shows names, with names that are nobody's friend."""

import csv
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from advflyp.console import SafeConsole
from advflyp.data.pairs.samples import Skipped
from advflyp.data.tools.check import Checked
from advflyp.evaluation.results import append_cell
from advflyp.report.console import as_rich, results_table, verdicts
from advflyp.report.measure.render import as_csv, latex, markdown
from advflyp.report.measure.tables import Table
from advflyp.report.pages.model_card import model_card
from advflyp.report.pages.pairs_page import check_page, skipped_table, write_page
from advflyp.report.pages.report import report_from_paths
from hostile import NAMES, assert_printable
from report.cells import cell


def printed(*things: object) -> str:
    stream = io.StringIO()
    for thing in things:
        SafeConsole(file=stream, width=200).print(thing)
    return stream.getvalue()


def test_tables_on_a_terminal() -> None:
    cells = [cell(name, name, 0, 3, unreadable=[name]) for name in NAMES]
    assert_printable(printed(results_table(cells), *verdicts(cells)))


def test_samples_that_are_left_out(tmp_path: Path) -> None:
    skipped = Skipped()
    for number, name in enumerate(NAMES):
        skipped.add(f"reason {number}", name)
    found = Checked(
        name=NAMES[0],
        seen=50,
        usable=50 - len(NAMES),
        skipped=skipped,
        words=Counter([3]),
        sides=Counter([64]),
    )
    assert_printable(printed(as_rich(skipped_table(found))))
    page = write_page(tmp_path, check_page(found)).read_text(encoding="utf-8")
    assert_printable(page)
    assert "<script" not in page


def test_tables_in_files() -> None:
    table = Table(
        title=" ".join(NAMES),
        columns=list(NAMES),
        rows=[list(NAMES)],
        note=" ".join(NAMES),
        groups=[(name, 1) for name in NAMES],
        blocks=[(NAMES[0], 1)],
    )
    for write in (markdown, latex, as_csv):
        assert_printable(write(table))
    for row in csv.reader(io.StringIO(as_csv(table))):
        assert not [name for name in row if name.lstrip().startswith(tuple("=+-@"))]


def test_a_whole_report(tmp_path: Path) -> None:
    """Names with formulas of matplotlib and halves of characters, which it cannot draw, among them."""
    store = tmp_path / "results.jsonl"
    for number, name in enumerate(NAMES):
        for model in ("$\\frac$[/b]", "\ud83d\x1b[2J"):
            append_cell(store, cell(model, name, 0, number + 3))
            append_cell(store, cell(model, name, 1, number + 2, attack="$\\frac$\ud83d"))
    page = report_from_paths([store], tmp_path / "report")
    files = [path for path in page.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".html", ".md", ".csv", ".tex"}
    for path in files:
        assert_printable(path.read_text(encoding="utf-8"))
    assert "<script" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_model_card(name: str) -> None:
    card = {"recipe": {"model": {"name": name}, "method": {"name": "advflyp"}}, "data": name, "licence": name}
    attacked = cell(name, name, 1, 2, attack=name, attack_args={name: name}, precision=name)
    text = model_card(
        "me/model", "open_clip", card, "0" * 64, [cell(name, name, 0, 3), attacked], None, False
    )
    assert_printable(text)
    assert "<script" not in text.partition("```toml")[0].rpartition("---")[2]


@pytest.mark.parametrize("eps", [{}, {"eps": "1/255"}])
def test_a_model_card_of_an_unknown_attack(eps: dict) -> None:
    recipe = {"method": {"name": "advflyp"}, "attack": {"steps": 2, **eps}}
    text = model_card("me/model", "open_clip", {"recipe": recipe}, "0" * 64, [], None, False)
    assert "PGD-2 at ε = ?" in text
    recipe["attack"]["steps"] = "<script>"
    assert (
        "<script>"
        not in model_card("me/model", "open_clip", {"recipe": recipe}, "0" * 64, [], None, False).partition(
            "```toml"
        )[0]
    )
    recipe["attack"]["steps"] = 2
    recipe["method"] = {"name": [1]}
    assert "PGD-2" not in model_card("me/model", "open_clip", {"recipe": recipe}, "0" * 64, [], None, False)
    recipe["method"] = {"name": "advflyp", "what": None}
    assert "```toml" not in model_card("me/model", "open_clip", {"recipe": recipe}, "0" * 64, [], None, False)


def test_lines_that_python_would_split(tmp_path: Path) -> None:
    """A line of JSON ends with a line feed only."""
    store = tmp_path / "results.jsonl"
    one = dataclasses.asdict(cell("a\u2028b\x85c", "mini/food", 0, 3))
    store.write_text(json.dumps(one, ensure_ascii=False) + "\n", encoding="utf-8")
    assert "a\\u2028b\\x85c" in (report_from_paths([store], tmp_path / "r").parent / "results.md").read_text(
        encoding="utf-8"
    ).replace("\\\\", "\\")
