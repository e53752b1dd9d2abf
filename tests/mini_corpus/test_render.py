import io

import numpy as np
import pytest
from PIL import Image

from tools.mini_corpus.render import encode_webp, fit, icon_svg, on_white, render_svg

XMLNS = 'xmlns="http://www.w3.org/2000/svg"'
RED = '<rect x="30" y="40" width="40" height="20" fill="#f00"/>'


def drawn(picture: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(picture[..., 3] > 8)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    "size",
    [
        'width="100" height="100"',
        'width="100" height="100" viewBox="0 0 100 100"',
        'viewBox="0 0 100 100"',
        'width="100%" height="100%" viewBox="0 0 100 100"',
        'width="10cm" height="10cm"',
        "",
    ],
)
def test_a_drawing_fills_the_picture_whatever_its_page(size: str) -> None:
    picture = fit(render_svg(f"<svg {XMLNS} {size}>{RED}</svg>"))
    assert picture.shape == (64, 64, 4)
    assert picture.dtype == np.uint8
    left, top, right, bottom = drawn(picture)
    assert (left, right) == (2, 62)  # 60 px wide in a margin of 2
    assert bottom - top == pytest.approx(30, abs=2)
    assert picture[32, 32].tolist() == [255, 0, 0, 255]


def test_a_small_drawing_on_a_large_page_is_sharp() -> None:
    svg = f'<svg {XMLNS} width="1000" height="1000"><rect x="5" y="5" width="40" height="40"/></svg>'
    alpha = fit(render_svg(svg))[..., 3]
    assert np.mean((alpha > 8) & (alpha < 247)) < 0.1


def test_drawings_beyond_the_origin_are_found_without_a_page() -> None:
    svg = f'<svg {XMLNS}><circle cx="-500" cy="900" r="300" fill="#00f"/></svg>'
    assert drawn(fit(render_svg(svg))) == (2, 2, 62, 62)


def test_icons_without_a_colour_are_black() -> None:
    svg = icon_svg('<path fill="currentColor" d="M4 4h16v16H4z"/>', 0, 0, 24, 24)
    picture = fit(render_svg(svg))
    assert picture[32, 32].tolist() == [0, 0, 0, 255]
    assert picture[0, 0, 3] == 0


def test_invisible_pixels_do_not_bleed_into_the_border() -> None:
    wide = np.zeros((200, 200, 4), np.uint8)
    wide[..., 1] = 255  # invisible green around a red square
    wide[50:150, 50:150] = (255, 0, 0, 255)
    picture = fit(Image.fromarray(wide))
    visible = picture[picture[..., 3] > 0]
    assert visible[:, 1].max() <= 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [("", "draws nothing"), ('<rect width="100" height="2"/>', "too long and thin")],
)
def test_what_64_pixels_cannot_show_is_refused(body: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit(render_svg(f'<svg {XMLNS} width="100" height="100">{body}</svg>'))


def test_what_is_no_svg_is_refused() -> None:
    with pytest.raises(ValueError, match="no SVG"):
        render_svg("<html></html>")
    with pytest.raises(ValueError, match="draws nothing"):
        render_svg(f"<svg {XMLNS}></svg>")


def test_webp_keeps_picture_and_alpha() -> None:
    picture = fit(
        render_svg(f'<svg {XMLNS} width="9" height="9"><circle cx="4" cy="4" r="4" fill="#08f"/></svg>')
    )
    image = Image.open(io.BytesIO(encode_webp(picture)))
    assert image.size == (64, 64)
    again = np.asarray(image.convert("RGBA"))
    assert np.abs(on_white(again).astype(int) - on_white(picture)).mean() < 3
    assert np.abs(again[..., 3].astype(int) - picture[..., 3]).max() < 24
