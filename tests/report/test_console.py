import dataclasses

import pytest
from rich.console import Console

from advflyp.evaluation.results import Cell
from advflyp.report.console import TerminalTable, as_rich, before_after_table, results_table
from advflyp.report.measure.grid import MARKS, means_table, methods_table
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import comparison_table


def printed(table: TerminalTable, width: int = 80) -> str:
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
    assert "mean change in points: clean +" in text and "images of each set: 97" in text


def test_a_number_that_failed_its_check_is_marked(cells: list[Cell]) -> None:
    """As in every other form of the table, whose note explains the mark."""
    failed = {"passed": False, "n": 5, "failed": ["a"]}
    table = means_table(Results([dataclasses.replace(c, sanity=failed) if c.eps else c for c in cells]))
    text = printed(as_rich(table), 120)
    assert text.count("†") > 6 and table.note.count("†") == 1


def test_before_after_mistakes(cells: list[Cell]) -> None:
    with pytest.raises(ValueError, match="no results of nobody, only of mini, mini"):
        before_after_table(cells, "mini", "nobody", 2 / 255)
    with pytest.raises(ValueError, match="no results of an attack at ε = 3/255"):
        before_after_table(cells, "mini", "mini + robust", 3 / 255)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_what_does_not_fit_stands_below_and_is_never_cut(cells: list[Cell], width: int) -> None:
    """Seven conditions of a model with a long name: every number is there, whole, on a line with its set's name."""
    more = [dataclasses.replace(c, attack="cw10", correct=c.correct + 1) for c in cells if c.norm]
    mine = [c for c in [*cells, *more] if c.model == "mini"]
    text = printed(results_table(mine), width)
    lines = text.splitlines()
    assert "…" not in text and max(map(len, lines)) <= width
    for c in mine:
        number = f"{100 * c.accuracy:.1f} {f'{100 * c.ci95[0]:.0f}–{100 * c.ci95[1]:.0f}':>5}"
        assert any(line.startswith(c.set.removeprefix("mini/")) and number in line for line in lines), number
    assert text.count("each accuracy is followed by") == 1 and (text.count("mini set") > 1) == (width <= 80)


def test_a_comparison_of_many_methods_fits(cells: list[Cell]) -> None:
    results = Results(
        [dataclasses.replace(c, model=f"{c.model} with a very long name indeed") for c in cells]
    )
    for table in (
        methods_table(results),
        means_table(results),
        comparison_table(results, *results.models, results.conditions),
    ):
        text = printed(as_rich(table), 80)
        assert "…" not in text and max(map(len, text.splitlines())) <= 80, table.title
        assert MARKS not in " ".join(text.split()), "there are none on a terminal"
