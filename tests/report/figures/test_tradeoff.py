import itertools
import random
import xml.etree.ElementTree as ET

import pytest

from advflyp.report.figures.plots import Look, spread, svg
from advflyp.report.figures.tradeoff import Box, pareto, place_labels, tradeoff
from advflyp.report.measure.measured import Estimate


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


@pytest.mark.parametrize("seed", range(12))
def test_labels_do_not_overlap(seed: int) -> None:
    generator = random.Random(seed)
    frame = Box(0, 0, 830, 420)
    points = [(generator.uniform(60, 770), generator.uniform(30, 390)) for _ in range(14)]
    sizes = [(generator.uniform(40, 150), 15.0) for _ in points]
    boxes = place_labels(points, sizes, frame)
    for one, two in itertools.combinations(boxes, 2):
        assert one.overlap(two) == 0
    for box, (w, h) in zip(boxes, sizes, strict=True):
        assert (box.width, box.height) == (w, h) and box.outside(frame) < 1e-6
        assert all(box.overlap(Box(x - 4, y - 4, 8, 8)) == 0 for x, y in points)


def test_boxes() -> None:
    one = Box(0, 0, 4, 2)
    assert one.overlap(Box(3, 1, 4, 4)) == 1 and one.overlap(Box(4, 0, 1, 1)) == 0
    assert one.outside(Box(1, 0, 9, 9)) == 2 and one.outside(Box(0, 0, 9, 9)) == 0


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
    figure = tradeoff(points, Look.of(list(points)), width=width, height=420, robust="PGD-10", title="Mean")
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
        tradeoff(points, Look.of(list(points)), width=500, height=300, robust="x"), ""
    )
