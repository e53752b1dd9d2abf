"""img2dataset's resizer, given the same pixels as advflyp's own decoder: upright and 8-bit.

It runs in the isolated environment. img2dataset decodes with OpenCV, ignores orientation and the transparent colour of
a grey PNG, turns 16-bit images white, and multiplies the colours of a transparent TIFF by its alpha twice. Such
images are passed to it as upright 8-bit PNGs; all others as they are.
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np

try:
    import cv2  # pyright: ignore[reportMissingImports]
    from img2dataset.resizer import Resizer  # pyright: ignore[reportMissingImports]
except ImportError:  # in advflyp's own environment, for the tests
    cv2, Resizer = None, object

PNG = b"\x89PNG\r\n\x1a\n"
# The marker of EXIF data in a JPEG, a PNG and a WebP, and the offset of the TIFF header from the marker's start.
EXIF = ((b"Exif\0\0", 6), (b"eXIf", 4), (b"EXIF", 8))
ORIENTATION = 0x0112
# Tags of a TIFF: the number of samples of a pixel, and what the first one after the colours is.
SAMPLES, EXTRA = 0x0115, 0x0152
UNSPECIFIED, PREMULTIPLIED = 0, 1
# The EXIF orientation that AVIF's boxes amount to: by irot, in quarter turns, and then by imir (none, or its axis).
AVIF = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))
RANGE = "floating-point pixels outside 0 to 1"
DEEP_ALPHA = "transparent AVIF of more than 8 bits"
GREY_ALPHA = "transparent grey TIFF"


class UprightResizer(Resizer):  # pyright: ignore[reportGeneralTypeIssues]
    """An image with boxes to blur is not rotated, since the boxes refer to the image as it is stored."""

    def __call__(self, img_stream: Any, blurring_bbox_list: Any = None) -> Any:
        if not self.disable_all_reencoding:  # pyright: ignore[reportAttributeAccessIssue]
            img_stream.seek(0)
            try:
                img_stream = io.BytesIO(prepared(img_stream.read(), turn=blurring_bbox_list is None))
            except Exception as error:  # img2dataset would not count the row
                return None, None, None, None, None, str(error)
        return super().__call__(img_stream, blurring_bbox_list)  # pyright: ignore[reportAttributeAccessIssue]


def prepared(data: bytes, *, turn: bool = True) -> bytes:
    """The file itself if it is upright and 8-bit, else a PNG that is; ValueError if its pixels cannot be converted."""
    orientation, colour = exif_orientation(data) if turn else 1, transparent_grey(data)
    if orientation == 1 and colour is None and has_eight_bits(data):
        return data
    stored = np.frombuffer(data, np.uint8)
    pixels = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)  # pyright: ignore
    if pixels is None:
        return data  # img2dataset reports it
    if is_avif(data) and pixels.dtype != np.uint8:
        # OpenCV returns 10-bit and 12-bit values as they are, without telling the bit depth.
        if pixels.shape[2:] == (4,):
            raise ValueError(DEEP_ALPHA)
        pixels = cv2.imdecode(stored, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)  # pyright: ignore
    if data.startswith((b"II*\0", b"MM\0*")):
        pixels = tiff_on_white(pixels, tiff_tags(data))
    if colour is not None:
        pixels[pixels == colour] = np.iinfo(pixels.dtype).max
    made = cv2.imencode(".png", turned(eight_bits(pixels), orientation), [cv2.IMWRITE_PNG_COMPRESSION, 1])  # pyright: ignore
    return made[1].tobytes()


def has_eight_bits(data: bytes) -> bool:
    """Whether a file is of a format that has at most 8 bits, or a PNG whose header says so."""
    if data.startswith(PNG):
        return len(data) > 24 and data[24] <= 8
    return data.startswith((b"\xff\xd8", b"GIF8", b"RIFF", b"BM"))


def transparent_grey(data: bytes) -> int | None:
    """The value of a grey PNG's decoded pixels that is transparent, if there is one."""
    at, pixels = data.find(b"tRNS"), data.find(b"IDAT")
    if not data.startswith(PNG) or not 25 < at < pixels or data[25] != 0:
        return None
    bits, value = data[24], int.from_bytes(data[at + 4 : at + 6], "big")
    return value * 255 // (2**bits - 1) if bits < 8 else value


def is_avif(data: bytes) -> bool:
    """Whether it is AVIF, among the formats that OpenCV decodes."""
    return data[4:8] == b"ftyp"


def tiff_on_white(pixels: Any, tags: dict[int, int]) -> Any:
    """OpenCV's pixels of a TIFF without alpha, or with one that img2dataset understands.

    Its 8-bit colours are multiplied by the alpha, a fourth sample without a meaning counts as alpha, and the alpha of a
    grey image is lost (ValueError).
    """
    extra = tags.get(EXTRA)
    if extra and tags.get(SAMPLES) == 2:
        raise ValueError(GREY_ALPHA)
    if extra is None or pixels.shape[2:] != (4,):
        return pixels
    if extra == UNSPECIFIED:
        return pixels[..., :3]
    if pixels.dtype.kind != "u" or (pixels.dtype != np.uint8 and extra != PREMULTIPLIED):
        return pixels
    most = np.iinfo(pixels.dtype).max
    colours, alpha = pixels[..., :3].astype(np.int64), pixels[..., 3:].astype(np.int64)
    return np.minimum(colours + most - alpha, most).astype(pixels.dtype)


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8, of AVIF that of its boxes; 1 if it is missing or invalid."""
    if is_avif(data):
        turns, mirror = (re.search(rb"\0\0\0\t" + box + rb"([\0-\3])", data) for box in (b"irot", b"imir"))
        return AVIF[turns[1][0] if turns else 0][1 + (mirror[1][0] & 1) if mirror else 0]
    for sign, length in EXIF:
        at = data.find(sign)
        # After WebP's marker there may be a JPEG's, which was looked for first.
        found = _orientation(data[at + length : at + length + (1 << 16)]) if at >= 0 else 1
        if found != 1:
            return found
    return 1


def _orientation(tiff: bytes) -> int:
    value = tiff_tags(tiff).get(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def tiff_tags(tiff: bytes) -> dict[int, int]:
    """The tags of the first image of a TIFF, or of EXIF data, read as single 16-bit numbers."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    found: dict[int, int] = {}
    if order is None:
        return found
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for number in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, first + 2 + 12 * number)
            found.setdefault(tag, value)
    except struct.error:
        pass  # damaged, or cut off
    return found


def turned(pixels: Any, orientation: int) -> Any:
    """(H, W, …) as a viewer shows it."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def eight_bits(pixels: Any) -> Any:
    """Convert to 8 bits as advflyp's own decoder does; ValueError if the pixels have no defined range of values."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return (pixels // 257).astype(np.uint8)
    if pixels.dtype.kind != "f":
        raise ValueError("signed or 32-bit pixels")
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(RANGE)
    return (255 * pixels).round().astype(np.uint8)
