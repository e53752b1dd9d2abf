import itertools
import random
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from advflyp.report.figures.plots import Look, spread, svg
from advflyp.report.figures.tradeoff import crossed, pareto, tradeoff
from advflyp.report.measure.estimates import Estimate


def brute_force(points: list[tuple[float, float]]) -> set[int]:
    return {
        i for i, p in enumerate(points) if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)
    }


@pytest.mark.parametrize("seed", range(60))
def test_the_front_is_what_no_other_beats(seed: int) -> None:
    generator = random.Random(seed)
    # Few different values, so that ties and doubles are common.
    points = [(generator.randint(0, 8), generator.randint(0, 8)) for _ in range(generator.randint(1, 25))]
    front = pareto(points)
    assert set(front) == brute_force(points) and len(front) == len(set(front))
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@pytest.mark.parametrize("width", [350, 900])
@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_no_label_and_no_mark(seed: int, width: int) -> None:
    generator = random.Random(seed)
    points = {
        f"method {i}": tuple(
            Estimate(v, v, v) for v in (generator.uniform(0.2, 0.6), generator.uniform(0, 0.5))
        )
        for i in range(14 if width > 500 else 7)
    }
    figure = tradeoff(points, Look.of(list(points)), width=width, robust="PGD-10", title="", on_front=points)  # type: ignore[arg-type]
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    reach = 4.5 * figure.dpi / 72
    centres = axes.transData.transform([(100 * a.value, 100 * b.value) for a, b in points.values()])
    marks = [Bbox([centre - reach, centre + reach]) for centre in centres]
    for one, two in [*itertools.combinations(boxes, 2), *itertools.product(boxes, marks)]:
        assert not one.overlaps(two)
    frame = axes.get_window_extent().padded(1)
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)


@pytest.mark.parametrize("seed", range(5))
def test_lines_that_enter_a_box(seed: int) -> None:
    random = np.random.default_rng(seed)
    lines = [random.normal(size=(corners, 2)) for corners in (2, 2, 5, 3)]
    lines[1][1] = lines[1][0]  # of no length
    middles, half = random.normal(size=(50, 2)), random.uniform(0.05, 0.5, 2)
    boxes = [Bbox([middle - half, middle + half]) for middle in middles]
    expected = [sum(Path(line).intersects_bbox(box, filled=False) for line in lines) for box in boxes]
    assert crossed(middles, half, lines).tolist() == expected
    assert {0, 1, 2} <= set(expected)


def test_the_same_figure_each_time() -> None:
    points = {f"m{i}": (Estimate(0.3, 0.3, 0.3), Estimate(0.2 + i / 500, 0.2, 0.21)) for i in range(6)}
    drawn = [
        svg(tradeoff(points, Look.of(list(points)), width=500, robust="x", title="", on_front=points), "")
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]


def test_spread_keeps_order_distance_and_floor() -> None:
    assert spread([5.0, 5.0, 20.0], 4) == pytest.approx([11 / 3, 23 / 3, 56 / 3])
    low = spread([0.1, 0.2, 0.3], 4, floor=0)
    assert low == pytest.approx([0, 4, 8])
    assert spread([], 3) == []


@pytest.mark.parametrize("width", [350, 900])
def test_every_method_is_a_point_with_its_name(width: int) -> None:
    def around(value: float) -> Estimate:
        return Estimate(value, value - 0.01, value + 0.01)

    points = {f"method {i}": (around(0.3 + 0.02 * i), around(0.5 - 0.03 * i)) for i in range(8)}
    figure = tradeoff(
        points, Look.of(list(points)), width=width, robust="PGD-10", title="Mean", on_front=points
    )
    texts = [e.text for e in ET.fromstring(svg(figure, "d")).iter() if e.text]
    assert set(points) <= set(texts) and "accuracy on clean images (%)" in texts
    axes = figure.axes[0]
    markers = {
        (float(x[0]), float(y[0]))
        for line in axes.lines
        if len(x := line.get_xdata()) == 1
        for y in [line.get_ydata()]
    }  # type: ignore[arg-type,index]
    assert markers == {(100 * a.value, 100 * b.value) for a, b in points.values()}
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert all(low < x < high and bottom < y < top for x, y in markers)


def test_written_numbers_keep_their_digits() -> None:
    points = {"φ = 0.12345": (Estimate(0.3, 0.2, 0.4), Estimate(0.1, 0.1, 0.1))}
    assert "φ = 0.12345" in svg(
        tradeoff(points, Look.of(list(points)), width=500, robust="x", title="", on_front=points), ""
    )
