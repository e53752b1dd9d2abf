import math
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
import pytest

from advflyp.evaluation.results import Cell
from advflyp.report.figures.curves import (
    accuracy_against_eps,
    loss_curve,
    training_lines,
    validation_curve,
)
from advflyp.report.figures.dots import dumbbells, per_set
from advflyp.report.figures.number import against_number
from advflyp.report.figures.plots import INK, MARKERS, MODELS, REFERENCE, SHAPES, VARIABLES, Look, svg
from advflyp.report.measure.estimates import Estimate
from advflyp.report.measure.results import Results
from advflyp.training.runlog import read_metrics
from report.cells import cell


def texts(picture: str) -> list[str]:
    return [
        text.strip() for element in ET.fromstring(picture).iter() if (text := element.text) and text.strip()
    ]


@pytest.mark.parametrize("width", [350, 900])
def test_per_set(cells: list[Cell], width: int) -> None:
    results = Results(cells)
    shown = [results.conditions[0], results.conditions[2]]
    picture = svg(per_set(results, shown, Look.of(results.models), width=width), 'a "description" & more')
    words = texts(picture)
    assert words.count("accuracy (%)") == 2
    assert {"clean images", "PGD-10, ε = 2/255", "mean of 3", "food", "<b>icons</b>"} <= set(words)
    for condition in shown:
        before, after = (results.get(m, "mini/food", condition) for m in results.models)
        assert before and after and f"+{100 * (after.value - before.value):.1f}" in words
    assert f'viewBox="0 0 {width} ' in picture


@pytest.mark.parametrize("width", [350, 900])
def test_sets_with_long_names_fit(width: int) -> None:
    """Of a path the end remains; the figure used to fail for some fifty letters."""
    path = "/data/my photographs/2026/" + "x" * 400 + "/animals/test split"
    results = Results(cell(model, name, 0, 50) for model in ("a", "b") for name in (path, "food"))
    rows = [("a" * 300, Estimate(0.5, 0.4, 0.6), None)]
    figures = (
        per_set(results, results.conditions, Look.of(results.models), width=width),
        dumbbells(rows, Look.of(["a" * 300]), width=width, title="food"),
    )
    for figure in figures:
        assert all(axes.get_position().width > 0.3 for axes in figure.axes)
    assert any(word.startswith("…") and word.endswith("/test split") for word in texts(svg(figures[0], "")))


def test_colours_are_the_pages_and_ids_are_unique(cells: list[Cell]) -> None:
    results = Results(cells)
    pictures = [
        svg(per_set(results, results.conditions[:n], Look.of(results.models), width=500), "") for n in (1, 2)
    ]
    both = "".join(pictures)
    assert "var(--ink)" in both and "var(--m0)" in both and "var(--m1)" in both
    # Whatever matplotlib drew with a colour of its own would vanish on one of the two grounds.
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(url\(|href=")#[\w-]+', "", both))
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', both)) == set(ids)


def test_every_colour_has_a_variable() -> None:
    assert len(VARIABLES) == len(set(VARIABLES.values())) == 3 + len(MODELS)
    names = [str(i) for i in range(56)]
    many = Look.of(["original", *names], references=["original"])
    assert len({(many.colours[n], many.markers[n]) for n in names}) == 56
    assert len({many.colours[n] for n in ["original", *names[:8]]}) == 9
    assert (many.colours["original"], many.markers["original"]) == (INK, REFERENCE)
    assert set(MARKERS) | {REFERENCE} == set(SHAPES)
    look = Look.of(["a", "b", "c"], {"a": "before"})
    assert look.names == {"a": "before", "b": "b", "c": "c"} and len(set(look.colours.values())) == 3


def test_accuracy_against_eps() -> None:
    curves = {
        model: [(grey / 255, Estimate(y, y - 0.05, y + 0.05)) for grey, y in zip((0, 1, 8), ys, strict=True)]
        for model, ys in {"a": (0.5, 0.2, 0.05), "b": (0.5, 0.4, 0.06)}.items()
    }
    figure = accuracy_against_eps(curves, Look.of(["a", "b"]), width=400, height=300, ceiling=60)
    axes = figure.axes[0]
    assert axes.lines[0].get_xdata() == pytest.approx([0, 1, 8])
    assert axes.lines[1].get_ydata() == pytest.approx([50, 40, 6])
    labels = {text.get_text(): text.xy[1] for text in axes.texts}  # type: ignore[attr-defined]
    assert labels["b"] - labels["a"] >= 3, "the labels do not overlap, though the lines end together"
    assert {"0", "1", "8", "accuracy (%)"} <= set(texts(svg(figure, "")))


def test_accuracy_against_a_number() -> None:
    lines = {
        "batch 64": [
            (1500, Estimate(0.3, 0.2, 0.4)),
            (6000, Estimate(0.35, 0.3, 0.4)),
            (math.inf, Estimate(0.4, 0.3, 0.5)),
        ],
        "batch 256": [(1500, Estimate(0.2, 0.2, 0.2)), (1_000_000, Estimate(0.4, 0.3, 0.5))],
    }
    figure = against_number(lines, Look.of(list(lines)), what="pairs", title="clean images", named=True)
    words = texts(svg(figure, ""))
    named = {"1,500", "6,000", "1,000,000", "all", "batch 64", "batch 256", "pairs", "accuracy (%)"}
    assert named <= set(words)
    axes = figure.axes[0]
    drawn = [line.get_ydata() for line in axes.lines if line.get_marker() != "None"]
    assert [list(y) for y in drawn] == [pytest.approx([30, 35, 40]), pytest.approx([20, 40])]
    labels = [text.xy[1] for text in axes.texts]  # type: ignore[attr-defined]
    assert abs(labels[0] - labels[1]) > 0.5, "both lines end at 40"


def test_dumbbells() -> None:
    rows = [("a", Estimate(0.5, 0.4, 0.6), Estimate(0.2, 0.1, 0.3)), ("b", Estimate(0.3, 0.2, 0.4), None)]
    figure = dumbbells(rows, Look.of(["a", "b"]), width=300, title="food", ceiling=60)
    marks = [m for line in figure.axes[0].lines if len(m := line.get_xydata()) == 1]
    assert [m[0].tolist() for m in marks] == [pytest.approx(p) for p in ([50, 0], [20, 0], [30, 1])]
    assert {"a", "b", "food", "accuracy (%)"} <= set(texts(svg(figure, "")))


def test_training_curves(run_folder) -> None:
    lines = training_lines(read_metrics(run_folder))
    assert list(lines["loss"]) == ["total", "clip", "feature", "logit"]
    assert lines["loss"]["clip"] == [(10, 3.0), (20, 2.25)]
    assert lines["validation"]["robust"] == [(10, 0.25), (20, 0.375)]
    words = texts(svg(loss_curve("clip", lines["loss"]["clip"], width=290, height=180, steps=20), ""))
    assert {"clip", "3.00 → 2.25", "20 steps"} <= set(words)
    words = texts(svg(validation_curve(lines["validation"], width=290, height=180, steps=20), ""))
    assert {"clean 45.0", "robust 37.5"} <= set(words)


def test_a_single_point_and_a_zero_loss_can_be_drawn() -> None:
    svg(loss_curve("clip", [(5, 0.0)], width=200, height=150, steps=5), "")
    svg(validation_curve({"clean": [(5, 0.0)]}, width=200, height=150, steps=5), "")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.7e308])
def test_what_cannot_be_drawn_is_left_out_of_training_curves(value: float) -> None:
    def line(step: int, loss: float, clean: float) -> list[dict[str, Any]]:
        at = {"step": step, "time": 1.0 + step}
        return [
            at | {"kind": "train", "loss": loss, "loss/clip": loss, "loss/gone": value},
            at | {"kind": "validate", "clean": clean, "robust": value},
        ]

    lines = training_lines([*line(1, 3.0, 0.5), *line(2, value, value), *line(3, 2.0, 0.25)])
    assert lines["loss"] == {name: [(1, 3.0), (3, 2.0)] for name in ("total", "clip")}
    assert lines["validation"] == {"clean": [(1, 0.5), (3, 0.25)]}
    svg(loss_curve("clip", lines["loss"]["clip"], width=200, height=150, steps=3), "")
    svg(validation_curve(lines["validation"], width=200, height=150, steps=3), "")


def test_a_run_that_was_only_validated_before_its_first_step_can_be_drawn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words = texts(svg(validation_curve({"clean": [(0, 0.5)]}, width=290, height=180, steps=0), ""))
    assert {"0", "1 step", "clean 50.0"} <= set(words)


def test_matplotlibs_settings_stay_as_they_were(cells: list[Cell]) -> None:
    before = dict(matplotlib.rcParams)
    results = Results(cells)
    svg(per_set(results, results.conditions, Look.of(results.models), width=500), "")
    assert dict(matplotlib.rcParams) == before and before["text.color"] != INK
