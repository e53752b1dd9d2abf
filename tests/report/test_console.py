import pytest
from rich.console import Console
from rich.table import Table

from advflyp.evaluation.results import Cell
from advflyp.report.console import before_after_table, results_table


def printed(table: Table, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_results_fit_80_columns(cells: list[Cell]) -> None:
    mine = [c for c in cells if c.model == "mini"]
    text = printed(results_table(mine))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    for c in mine:
        assert f"{100 * c.accuracy:.1f}" in text and f"{100 * c.ci95[0]:.0f}–{100 * c.ci95[1]:.0f}" in text
    lines = [line for line in text.splitlines() if line.strip()]
    assert any(line.startswith("mean of 3") for line in lines)


def test_several_models_are_blocks(cells: list[Cell]) -> None:
    text = printed(results_table(cells), 100)
    assert text.count("mean of 3") == 2
    assert text.index("mini + robust") > text.index("mean of 3")


def test_before_after(cells: list[Cell]) -> None:
    text = printed(before_after_table(cells, "mini", "mini + robust", 2 / 255))
    assert "PGD-10, ε = 2/255" in text and "…" not in text
    food = next(line for line in text.splitlines() if line.startswith("food"))
    values = {(c.model, round(c.eps * 255)): 100 * c.accuracy for c in cells if c.set == "mini/food"}
    for grey in (0, 2):
        before, after = values["mini", grey], values["mini + robust", grey]
        for number in (f"{before:.1f}", f"{after:.1f}", f"+{after - before:.1f}"):
            assert number in food
    assert "mean change in points: clean +" in text and "97 images a set" in text


def test_before_after_mistakes(cells: list[Cell]) -> None:
    with pytest.raises(ValueError, match="no results of nobody, only of mini, mini"):
        before_after_table(cells, "mini", "nobody", 2 / 255)
    with pytest.raises(ValueError, match="no results of an attack at ε = 3/255"):
        before_after_table(cells, "mini", "mini + robust", 3 / 255)
