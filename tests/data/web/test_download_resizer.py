"""What img2dataset is given to decode; with the real one in `test_download.py`, `-m network`."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from advflyp.data.isolated import advflyp_resizer as resizer
from advflyp.data.pairs.images import read_image
from advflyp.data.web.rounds import reason


def stored(kind: str, orientation: int, order: str = "<") -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[resizer.ORIENTATION] = "a maker", orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_that_of_our_own_decoder(kind: str, order: str) -> None:
    for orientation in range(1, 9):
        data = stored(kind, orientation, order)
        assert resizer.exif_orientation(data) == orientation
        turned = resizer.turned(np.asarray(read_image(data, upright=False)), orientation)
        assert np.array_equal(turned, np.asarray(read_image(data)))


class OpenCV:
    """Decodes an AVIF to `pixels`, or for IMREAD_COLOR to 8 bits, and encodes to the pixels themselves."""

    IMREAD_UNCHANGED, IMREAD_COLOR, IMREAD_IGNORE_ORIENTATION, IMWRITE_PNG_COMPRESSION = -1, 1, 128, 16

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def imdecode(self, _: np.ndarray, how: int) -> np.ndarray:
        return self.pixels if how == -1 else (self.pixels[..., :3] >> 4).astype(np.uint8)

    def imencode(self, _: str, pixels: np.ndarray, options: list[int]) -> tuple[bool, np.ndarray]:
        return True, pixels


def test_avif_keeps_its_transparency(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stored("AVIF", 6)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
    monkeypatch.setattr(resizer, "cv2", OpenCV(pixels))
    assert resizer.prepared(data) == np.rot90(pixels, -1).tobytes()
    assert resizer.prepared(data, turn=False) == pixels.tobytes()
    deep = pixels.astype(np.uint16) << 4
    monkeypatch.setattr(resizer, "cv2", OpenCV(deep[..., :3]))
    assert resizer.prepared(data, turn=False) == pixels[..., :3].tobytes()
    monkeypatch.setattr(resizer, "cv2", OpenCV(deep))
    with pytest.raises(ValueError, match=resizer.DEEP_ALPHA):
        resizer.prepared(data)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_transparent_grey_becomes_white(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    most = 2**bits - 1
    values = rng.integers(0, min(most, 3) + 1, (12, 20)).astype(np.uint16 if bits == 16 else np.uint8)
    colour, stream = int(values[0, 0]), io.BytesIO()
    Image.fromarray(values.astype(bool) if bits == 1 else values).save(stream, "PNG", transparency=colour)
    data = stream.getvalue()
    # As OpenCV decodes it.
    monkeypatch.setattr(resizer, "cv2", OpenCV(values * 255 if bits == 1 else values))
    made = np.frombuffer(resizer.prepared(data), np.uint8).reshape(12, 20)
    assert np.array_equal(made, np.asarray(read_image(data))[..., 0])
    assert (made[values == colour] == 255).all()
    assert resizer.transparent_grey(stored("PNG", 1)) is None


def test_an_error_of_the_decoder_is_the_reason_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(OpenCV):
        def imdecode(self, _: np.ndarray, how: int) -> np.ndarray:
            raise RuntimeError("(-215:Assertion failed) !buf.empty() in function 'imdecode_'")

    monkeypatch.setattr(resizer, "cv2", Failing(np.zeros(1)))
    resize = resizer.UprightResizer()
    resize.disable_all_reencoding = False  # pyright: ignore[reportAttributeAccessIssue]
    *nothing, said = resize(io.BytesIO(b""))
    assert nothing == [None] * 5 and reason(said) == "not an image"


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


@pytest.mark.parametrize(
    ("extra", "dtype"), [(2, np.uint8), (1, np.uint8), (1, np.uint16), (2, np.uint16), (0, np.uint8)]
)
def test_a_transparent_tiff_is_not_darkened(
    extra: int, dtype: type[np.unsignedinteger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV multiplies the colours of 8 bits by the alpha, and img2dataset does so again."""
    straight = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
    straight[:4, :, 3], straight[-4:, :, 3] = 0, 255
    data = rgba_tiff(straight, extra)
    expected = np.asarray(read_image(data)).astype(int)
    multiplied = np.rint(straight[..., :3] * (straight[..., 3:] / 255)).astype(np.uint8)
    colours = multiplied if extra == 1 or (extra == 2 and dtype == np.uint8) else straight[..., :3]
    pixels = np.dstack([colours, straight[..., 3]]).astype(dtype) * (257 if dtype == np.uint16 else 1)
    monkeypatch.setattr(resizer, "cv2", OpenCV(pixels))
    made = np.frombuffer(resizer.prepared(data), np.uint8).reshape(12, 20, -1).astype(float)
    if made.shape[2] == 4:  # as img2dataset does it
        alpha = made[..., 3:]
        made = np.rint(alpha / 255 * made[..., :3] + 255 - alpha)
    assert np.abs(made - expected).max() <= (0 if extra == 0 else 1)


def rgba_tiff(straight: np.ndarray, extra: int) -> bytes:
    """A TIFF whose fourth sample has this meaning; `extra` 1 stores multiplied colours."""
    stored = straight.copy()
    if extra == 1:
        stored[..., :3] = np.rint(straight[..., :3] * (straight[..., 3:] / 255))
    stream = io.BytesIO()
    Image.fromarray(stored).save(stream, "TIFF")
    data = stream.getvalue()
    assert resizer.tiff_tags(data)[resizer.EXTRA] == 2
    return data.replace(
        struct.pack("<HHIH", resizer.EXTRA, 3, 1, 2), struct.pack("<HHIH", resizer.EXTRA, 3, 1, extra)
    )


def test_a_grey_tiff_whose_alpha_is_lost_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("LA", (9, 9), (3, 4)).save(stream, "TIFF")
    monkeypatch.setattr(resizer, "cv2", OpenCV(np.full((9, 9), 3, np.uint8)))
    with pytest.raises(ValueError, match=resizer.GREY_ALPHA):
        resizer.prepared(stream.getvalue())
