"""Read a user's image files as training does; what cannot be used is refused in one sentence that names the file."""

import hashlib
import io
import os
import warnings
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from advflyp.data.pairs.images import (
    MIN_SIDE,
    NEEDS_HEIF,
    NEEDS_JXL,
    UNREADABLE,
    as_rgb,
    check_size,
    finish_image,
    open_image,
)
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_ASPECT, MAX_IMAGE_BYTES, MAX_PIXELS, read_image_file

ImageLike = str | Path | Image.Image
CONVERT = "or convert it to JPEG"
KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
SENTENCES = {
    "empty image file": "is empty",
    "not an image": f"is not an image that can be read ({KINDS})",
    NEEDS_HEIF: f"is a HEIC image: install a reader with `pip install pillow-heif`, {CONVERT}",
    NEEDS_JXL: f"is a JPEG XL image: install a reader with `pip install pillow-jxl-plugin`, {CONVERT}",
    "image has too many pixels": f"has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller",
    "image is too long and thin": f"is more than {MAX_ASPECT} times as long as it is wide; cut it",
    "image takes too long to decode": "is a JPEG with too many scans; save it again",
    "image file is too large": f"is larger than {MAX_IMAGE_BYTES >> 20} MB; make it smaller",
    "not a regular file": "is not a regular file; name an image file",
    "image is too small": f"is smaller than {MIN_SIDE} pixels on a side",
    "truncated image": "is cut off before its end; copy it again",
    "unreadable image": "is damaged, or uses a pixel format whose colours are not defined",
    "floating-point pixels outside 0 to 1": "has floating-point pixels outside 0 to 1; save it with 8 or 16 bits",
    "signed or 32-bit pixels": "has signed or 32-bit pixels, whose range is ambiguous; save it with 8 or 16 bits",
}


def load_image(image: ImageLike) -> Image.Image:
    """Load the first frame as RGB, upright, with transparent parts white. ValueError if that fails."""
    if isinstance(image, Image.Image):
        try:
            check_size(image, min_side=1)
            return as_rgb(image)
        except SkippedSample as error:
            raise ValueError(f"the image {SENTENCES[str(error)]}") from None
        except UNREADABLE:
            raise ValueError(f"the image {SENTENCES['unreadable image']}") from None
    return from_bytes(_bytes(Path(image)), str(image))


def check_image(image: ImageLike) -> None:
    """ValueError for a file that is missing or does not begin like an image, and for other objects; decodes nothing."""
    if not isinstance(image, str | Path | Image.Image):
        raise ValueError(
            f"an image is a file or a PIL image, not {type(image).__name__}; make one, for example with "
            "PIL.Image.fromarray"
        )
    if not isinstance(image, Image.Image):
        _opened(_bytes(Path(image)), str(image))


def from_bytes(data: bytes, name: str) -> Image.Image:
    """Decode an image as `load_image` does; `name` is what a ValueError calls it."""
    image = _opened(data, name)
    try:
        return finish_image(image)
    except SkippedSample as error:
        raise ValueError(f"{name} {SENTENCES[str(error)]}") from None


def as_png(pixels: Tensor) -> bytes:
    """(3, H, W) pixels in [0, 1] → a PNG file; exact if they are multiples of 1/255."""
    stream = io.BytesIO()
    to_pil_image((pixels.detach().cpu() * 255).round().byte()).save(stream, "png", optimize=True)
    return stream.getvalue()


def as_pil(png: bytes) -> Image.Image:
    """Decode the result of `as_png`."""
    return Image.open(io.BytesIO(png))


def name_of(image: ImageLike) -> str:
    """The name of an image in results."""
    return "image" if isinstance(image, Image.Image) else str(image)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; ValueError if there is none."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def _bytes(path: Path) -> bytes:
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; name image files, for example {path}/*.jpg")
    if not os.path.isfile(path):
        raise ValueError(f"there is no image {path}")
    try:
        return read_image_file(path)
    except SkippedSample as reason:
        raise ValueError(f"{path} {SENTENCES[str(reason)]}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # `open_image` refuses such images anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return open_image(data)
    except SkippedSample as error:
        raise ValueError(f"{name} {SENTENCES[str(error)]}") from None
