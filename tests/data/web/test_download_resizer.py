"""What img2dataset is given to decode; with the real one in `test_download.py`, `-m network`."""

import io

import numpy as np
import pytest
from PIL import Image

from advflyp.data.isolated import advflyp_resizer as resizer
from advflyp.data.pairs.images import read_image


def stored(kind: str, orientation: int, order: str = "<") -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[resizer.ORIENTATION] = "a maker", orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_that_of_our_own_decoder(kind: str, order: str) -> None:
    for orientation in range(1, 9):
        data = stored(kind, orientation, order)
        assert resizer.exif_orientation(data) == orientation
        turned = resizer.turned(np.asarray(read_image(data, upright=False)), orientation)
        assert np.array_equal(turned, np.asarray(read_image(data)))


def test_damaged_metadata_are_none() -> None:
    data = stored("JPEG", 6)
    at = data.index(b"Exif")
    assert [resizer.exif_orientation(data[:end]) for end in range(at, at + 14)] == [1] * 14
    for place in range(at + 6, at + 60):
        broken = data[:place] + b"\xff" * 4 + data[place + 4 :]
        assert 1 <= resizer.exif_orientation(broken) <= 8


def test_what_has_more_than_eight_bits() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        stream = io.BytesIO()
        Image.new("RGB", (9, 9)).save(stream, kind)
        assert resizer.has_eight_bits(stream.getvalue()) == (kind != "TIFF")
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9), 77 * 257, np.uint16)).save(stream, "PNG")
    assert not resizer.has_eight_bits(stream.getvalue()) and not resizer.has_eight_bits(b"")
    assert resizer.eight_bits(np.full((9, 9), 77 * 257, np.uint16)).tolist() == [[77] * 9] * 9
    assert resizer.eight_bits(np.full((9, 9, 3), 77 / 255, np.float32)).max() == 77
    for wrong in (np.full((9, 9), 7.0), np.full((9, 9), np.nan), np.zeros((9, 9), np.int32)):
        with pytest.raises(ValueError, match="pixels"):
            resizer.eight_bits(wrong)
