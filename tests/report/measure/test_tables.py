import dataclasses
import math

import pytest

from advflyp.evaluation.results import Cell, mean_interval
from advflyp.report.measure.estimates import Condition, Estimate, radius, signed
from advflyp.report.measure.render import as_csv, markdown, plain
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import accuracy_table, comparison_table, models_table
from report.cells import cell


def test_conditions_come_clean_first_then_by_radius(cells: list[Cell]) -> None:
    results = Results(reversed(cells))
    assert [c.title for c in results.conditions] == [
        "clean",
        "PGD-10, ε = 1/255",
        "PGD-10, ε = 2/255",
        "PGD-10, ε = 4/255",
    ]
    assert results.strongest(2 / 255) == Condition("pgd10", "linf", 2 / 255)
    assert results.strongest() == Condition("pgd10", "linf", 1 / 255)
    assert results.strongest(3 / 255) is None


def test_the_strongest_attack_leads(cells: list[Cell]) -> None:
    weak = [dataclasses.replace(c, attack="weak", accuracy=1.0) for c in cells if c.norm]
    assert Results([*weak, *cells]).strongest(1 / 255) == Condition("pgd10", "linf", 1 / 255)


def test_every_number_is_its_cells(cells: list[Cell]) -> None:
    results = Results(cells)
    table = accuracy_table(results, "mini + robust")
    mine = [c for c in cells if c.model == "mini + robust"]
    for row in table.rows:
        expected = [Estimate(c.accuracy, *c.ci95) for c in mine if c.set == f"mini/{row[0]}"]
        assert row[1:] == ["97", *expected]
    for column, grey in enumerate((0, 1, 2, 4), 2):
        value, (low, high) = mean_interval(c for c in mine if c.eps == grey / 255)
        assert table.footer[column] == Estimate(value, low, high)
    assert models_table(results).rows[1][1:] == table.footer[2:]


def test_means_are_over_the_same_sets_for_all(cells: list[Cell]) -> None:
    fewer = [c for c in cells if not (c.model == "mini" and c.set == "mini/flags" and c.eps == 1 / 255)]
    results = Results(fewer)
    clean = Condition("clean", None, 0.0)
    kept = [c for c in fewer if c.model == "mini + robust" and c.norm is None and c.set != "mini/flags"]
    mean = results.mean("mini + robust", clean)
    assert mean is not None and mean.value == pytest.approx(sum(c.accuracy for c in kept) / 2)
    table = accuracy_table(results, "mini")
    assert table.footer[0] == "mean of 2"
    assert "flags" in table.note
    assert plain(table.rows[1][3]) == "–"


def test_one_set_has_no_mean_row(cells: list[Cell]) -> None:
    assert accuracy_table(Results(c for c in cells if c.set == "mini/food"), "mini").footer == []


def test_comparison(cells: list[Cell]) -> None:
    results = Results(cells)
    table = comparison_table(results, "mini", "mini + robust", results.conditions[:2])
    assert len(table.columns) == len(table.rows[0]) == len(table.footer) == 7
    _, before, after, change, *_ = table.rows[0]
    assert isinstance(before, Estimate) and isinstance(after, Estimate) and isinstance(change, Estimate)
    assert change.value == after.value - before.value
    # Of these nothing is stored but how many were right: as if the images were independent it would be too wide.
    assert plain(change) == change.number and math.isnan(change.low)
    assert as_csv(table).splitlines()[0].count("low") == 4, "none of the changes"


def test_a_note_says_what_differs_between_two_models() -> None:
    """Nobody sees from 75 and 50 % that they are not of the same images."""
    one = cell("a", "mini/food", 0, 15, n=20, subset={"of": 88, "limit": 20, "seed": 0})
    for changes, note in (
        ({}, ""),
        (
            {"n": 40, "subset": {"of": 88, "limit": 40, "seed": 0}},
            "The number of images varies: food (20, 40).",
        ),
        ({"subset": {"of": 88, "limit": 20, "seed": 1}}, "Measured with different random images: food."),
        ({"settings": {"set_sha256": "x"}}, "Measured with different images or class names: food."),
        ({"prompt": "{}"}, "Measured with different prompts: food."),
    ):
        other = dataclasses.replace(one, model="b", checkpoint_sha256="f" * 64, **changes)
        results = Results([one, other])
        assert comparison_table(results, "a", "b", results.conditions).note == note
        assert models_table(results).note == note
        # A table of one model has its own number of images, and says of how many.
        tables = [accuracy_table(results, model) for model in ("a", "b")]
        assert [table.rows[0][1] for table in tables] == ["20", str(other.n)]
        assert tables[0].note == "Class-balanced subsets: food (20 of 88)."


def test_markdown_keeps_names_from_being_markup(cells: list[Cell]) -> None:
    text = markdown(
        accuracy_table(Results(dataclasses.replace(c, model="a|b_c") for c in cells[:12]), "a|b_c")
    )
    assert "a\\|b\\_c" in text and "<b>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 + 1
    first = cells[0]
    assert f"{100 * first.accuracy:.1f} ({100 * first.ci95[0]:.0f}–{100 * first.ci95[1]:.0f})" in rows[2]


def test_two_checkpoints_of_one_name_are_two_models(cells: list[Cell]) -> None:
    retrained = [dataclasses.replace(c, checkpoint_sha256="f" * 64) for c in cells if c.model == "mini"]
    models = Results([*cells, *retrained]).models
    assert models == ["mini (6d696e69)", "mini + robust", "mini (ffffffff)"]


def test_the_same_cell_twice_is_one_but_other_settings_are_an_error(cells: list[Cell]) -> None:
    assert len(Results([*cells, *cells]).runs) == len(cells)
    with pytest.raises(
        ValueError, match=r"mini on mini/food under clean twice, with different seed \(0 and 5\)"
    ):
        Results([*cells, dataclasses.replace(cells[0], seed=5)])
    # Two random subsets: otherwise the last one would count, and somebody could choose it.
    one, two = (
        dataclasses.replace(cells[0], subset={"of": 500, "limit": 97, "seed": seed}) for seed in (0, 1)
    )
    with pytest.raises(ValueError, match="mini on mini/food under clean twice, with different subset"):
        Results([one, two])
    changed = dataclasses.replace(cells[0], settings={"set_sha256": "x"})
    with pytest.raises(ValueError, match="mini on two states of mini/food, .*; measure into a new file"):
        Results([cells[0], changed])


@pytest.mark.parametrize(
    ("eps", "norm", "text"),
    [
        (2 / 255, "linf", "2/255"),
        (0.5 / 255, "linf", "0.5/255"),
        (0.5, "l2", "0.5 (L2)"),
        (0.01, "linf", "2.55/255"),
        (0.0157, "linf", "0.0157"),  # not quite 4/255
        (4 / 255 + 1e-9, "linf", "4/255"),
    ],
)
def test_radius(eps: float, norm: str, text: str) -> None:
    assert radius(eps, norm) == text


def test_signed() -> None:
    assert [signed(v) for v in (3.21, -0.44, 0.0, -0.01)] == ["+3.2", "−0.4", "0.0", "0.0"]
    assert math.isclose(float(signed(-5.25, 2).replace("−", "-")), -5.25)
