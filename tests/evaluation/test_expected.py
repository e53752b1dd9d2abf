"""Finished cells of a named dataset are found without its files."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advflyp.evaluation.expected import expected_of, place_of, published_size
from advflyp.evaluation.pixels import Pixels
from advflyp.evaluation.protocols import find_protocol
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from layouts import BUILDERS


@pytest.fixture
def eurosat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path / "sets"))
    BUILDERS["eurosat"](tmp_path / "sets")
    return tmp_path / "sets"


def forget() -> None:
    from advflyp.data.sets import labelled

    labelled._load.cache_clear()


@pytest.mark.parametrize("protocol", ["advflyp", "tecoa"])
def test_finished_cells_need_no_data(
    protocol: str, eurosat: Path, tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, chosen = tmp_path / "r.jsonl", find_protocol(protocol)
    asked = {"sets": "eurosat", "attacks": ["clean", "pgd2"], "limit": 20, "out": out, "protocol": chosen}
    first = evaluate(tiny, **asked)
    shutil.rmtree(eurosat)
    forget()

    def no_image(*_: object, **__: object) -> None:
        raise AssertionError("an image is opened")

    monkeypatch.setattr(Image, "open", no_image)
    assert evaluate(tiny, **asked) == first == read_cells(out)
    for change in ({"limit": 10}, {"attacks": ["pgd3"]}, {"seed": 1}, {"sanity": True}):
        with pytest.raises(ValueError, match="eurosat is not on this machine"):
            evaluate(tiny, **{**asked, **change})
    shutil.rmtree(out.with_suffix(".samples"))
    with pytest.raises(ValueError, match="eurosat is not on this machine"):
        evaluate(tiny, **asked)


def test_what_is_measured_is_what_was_expected(tiny: CLIP) -> None:
    """An oracle of the other kind: cells that are measured are those that the protocol foretells."""
    protocol = find_protocol("advflyp-2026-mini")
    cells = evaluate(tiny, "mini/food", ["clean", "pgd10"], [1 / 255], limit=60, protocol=protocol)
    expected = {one.place: one for one in expected_of(protocol)}
    assert len(expected) == 10 * 7
    for cell in cells:
        assert expected[place_of(cell)].difference(cell) == ""
    assert cells[0].subset["of"] == published_size("mini/food")


@pytest.mark.parametrize(
    "pixels, settings, reason",
    [
        (Pixels(), {}, ""),
        (Pixels(), {"resize": 96, "interpolation": "bicubic"}, "interpolation is 'bicubic', not None"),
        (Pixels(resize=96), {"resize": 96, "interpolation": "bicubic"}, ""),
        (Pixels(resize=96), {"resize": 64, "interpolation": "bicubic"}, "resize is 64, not 96"),
        (Pixels(resize=96), {}, "interpolation is None, not 'bicubic'"),
        (Pixels(resize=256, of=224), {"resize": 73, "interpolation": "bicubic"}, ""),
        (Pixels(resize=256, of=224), {"interpolation": "bicubic"}, "resize is None, not 'a size'"),
        (Pixels(native=True), {"perturbation": "native pixels", "upsampling": "bicubic"}, ""),
        (Pixels(native=True), {}, "perturbation is None, not 'native pixels'"),
    ],
)
def test_the_pixels_of_a_protocol(
    pixels: Pixels, settings: dict[str, Any], reason: str, reproduce_mini: Path
) -> None:
    """Without the model, a side that depends on its input size may be any; with it, only the one that follows."""
    cells = read_cells(reproduce_mini / "results/fare-s0.jsonl")
    cell = next(cell for cell in cells if (cell.set, cell.norm) == ("mini/food", None))
    protocol = replace(find_protocol("advflyp-2026-mini"), pixels=pixels)
    expected = next(one for one in expected_of(protocol) if one.place == place_of(cell))
    assert expected.difference(replace(cell, settings=settings)) == reason


def test_the_side_that_follows_from_the_model(tiny: CLIP) -> None:
    protocol = replace(find_protocol("advflyp-2026-mini"), pixels=Pixels(resize=256, of=224))
    (cell,) = evaluate(tiny, "mini/food", "clean", limit=60, protocol=protocol)
    expected = next(one for one in expected_of(protocol) if one.place == place_of(cell))
    assert cell.settings["resize"] == round(256 * tiny.image_size[0] / 224)
    assert expected.difference(cell, tiny) == expected.difference(cell) == ""
    other = replace(cell, settings={**cell.settings, "resize": 99})
    assert expected.difference(other, tiny).startswith("resize is 99") and not expected.difference(other)
