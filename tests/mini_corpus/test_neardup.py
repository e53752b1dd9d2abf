import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools.mini_corpus.neardup import find


def canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    return image, ImageDraw.Draw(image)


def icon(number: int) -> np.ndarray:
    """One of many sparse line drawings: four strokes of 3 px."""
    rng = np.random.default_rng(number)
    image, draw = canvas()
    for start, end in zip(rng.integers(4, 60, (4, 2)), rng.integers(4, 60, (4, 2)), strict=True):
        draw.line([*start.tolist(), *end.tolist()], fill=(0, 0, 0, 255), width=3)
    return np.asarray(image)


def picture(number: int, hue: int = 0) -> np.ndarray:
    """One of many coloured drawings: three filled shapes; `hue` turns the colours round."""
    rng = np.random.default_rng(number)
    image, draw = canvas()
    for shape in range(3):
        left, top = rng.integers(2, 34, 2).tolist()
        width, height = rng.integers(16, 28, 2).tolist()
        colour = (*np.roll(rng.integers(0, 230, 3), hue).tolist(), 255)
        (draw.ellipse if shape % 2 else draw.rectangle)([left, top, left + width, top + height], fill=colour)
    return np.asarray(image)


ICONS = np.stack([icon(number) for number in range(40)])
PICTURES = np.stack([picture(number) for number in range(40)])


def itself(n: int = 40) -> set[tuple[int, int]]:
    return {(number, number) for number in range(n)}


def noisy(pictures: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, (*pictures.shape[:3], 3))
    out = pictures.copy()
    out[..., :3] = (pictures[..., :3] + noise).clip(0, 255)
    return out


@pytest.mark.parametrize("pictures", [ICONS, PICTURES], ids=["icons", "pictures"])
@pytest.mark.parametrize(
    "copy",
    [
        lambda p: p,
        lambda p: np.roll(p, (1, -1), (1, 2)),
        lambda p: p[:, :, ::-1],
        noisy,
    ],
    ids=["equal", "shifted", "mirrored", "noisy"],
)
def test_copies_are_found(pictures: np.ndarray, copy) -> None:
    assert itself() <= find(copy(pictures), pictures)


def test_recoloured_copies_are_found_by_their_edges() -> None:
    turned = np.stack([picture(number, hue=1) for number in range(40)])
    found = find(turned, PICTURES)
    assert len(itself() & found) >= 30
    red = ICONS.copy()
    red[..., 0] = 255
    assert itself() <= find(red, ICONS)


def test_different_sparse_icons_are_spared() -> None:
    others = np.stack([icon(number) for number in range(100, 180)])
    assert find(others, ICONS) == set()
    # A plain root-mean-square difference would not have told them apart.
    ink = [1 - p[..., 3].astype(float) / 255 for p in (others[0], ICONS[0])]
    assert np.sqrt(((ink[0] - ink[1]) ** 2).mean()) < 0.5


def test_different_pictures_are_spared() -> None:
    others = np.stack([picture(number) for number in range(100, 180)])
    assert find(others, PICTURES) == set()


def test_distances_and_empty_collections() -> None:
    # Float32: a² + b² − 2ab is in error by some 2⁻²⁴, and the root of that is 2e-4.
    assert find(ICONS[:1], ICONS, colour_limit=1e-3, edge_limit=-1) == {(0, 0)}
    assert find(ICONS[:1], ICONS, colour_limit=-1, edge_limit=1e-3) == {(0, 0)}
    assert find(ICONS[:0], ICONS) == find(ICONS, ICONS[:0]) == set()


def test_every_copy_is_found_however_many_there_are() -> None:
    many = np.concatenate([ICONS, noisy(np.repeat(ICONS[:1], 70, 0)), ICONS[1:]])
    assert {reference for _, reference in find(ICONS[:1], many)} == {0, *range(40, 110)}
