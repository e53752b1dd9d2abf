"""The one decoder: encoded images → RGB images and pixels at the model's resolution, and which images are skipped.

Training pairs, labelled sets, retrieval, overlap, captions, `predict` and `attack` all decode here, so that the same
file is the same pixels everywhere. Chosen by measurement (`benchmarks/loader.py`): JPEGs go through libjpeg-turbo
(simplejpeg) and torchvision's resize of uint8 tensors, which differ from Pillow's by a hundredth of a grey level on
average; Pillow decodes anything unusual.
"""

import struct
import zlib
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode
from torchvision.transforms.v2 import functional as F

from advflyp.data.pairs import jpeg_xl
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_ASPECT, MAX_PIXELS, MAX_SCANNED

# Formats that Pillow decodes itself; for others (PostScript, for example) it would start a program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF", "JXL")
# Plugins for these that are not loaded with Pillow.
PLUGINS = ("PIL.WebPImagePlugin", "PIL.TiffImagePlugin", "PIL.AvifImagePlugin", "PIL.Jpeg2KImagePlugin")
# Optional packages that add a format to Pillow, and the function in them that registers it.
PACKAGES = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
# Brands of HEIF files, as their first box names them.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
NEEDS_HEIF = "HEIC image (pip install pillow-heif, or convert it to JPEG)"
NEEDS_JXL = "JPEG XL image (pip install pillow-jxl-plugin, or convert it to JPEG)"
# What Pillow and the libraries behind it raise for a file that is not an image, or a truncated one.
UNREADABLE = (
    OSError, ValueError, SyntaxError, RuntimeError, ArithmeticError, LookupError, TypeError, MemoryError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# Smaller images of the web are spacers and tracking pixels.
MIN_SIDE = 8
# The EXIF tag, and how Pillow undoes each of its values.
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels of a transparent image that are put on white at a time.
STRIP_PIXELS = 1 << 20
START_OF_SCAN = b"\xff\xda"
# Where Pillow keeps metadata that may hold the orientation.
METADATA = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# Place of the bits of a channel in a PNG.
PNG_DEPTH = 24
# Tags of a TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2


class ImageReader:
    """Images as training takes them: (3, H, W) uint8 at the model's resolution.

    The geometry is open_clip's. Pixels differ from its floats by the rounding to 8 bits and the resize's arithmetic.

    Args:
        settings: open_clip's preprocessing of the model ("preprocess_cfg").
        resize: Length of the shorter side before the centre crop; None is the model's own, which crops nothing off it.
        interpolation: "bilinear" or "bicubic"; None is the model's own.
    """

    def __init__(
        self, settings: dict[str, Any], resize: int | None = None, interpolation: str | None = None
    ) -> None:
        if interpolation is not None:
            settings = {**settings, "interpolation": interpolation}
        parsed = PreprocessCfg(**settings)
        size, mode = parsed.size, parsed.resize_mode
        height, width = self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        if resize is not None and resize < max(self.size):
            raise ValueError(
                f"data.resize must be at least the model's {max(self.size)} pixels, not {resize}; "
                "`--data.resize none` uses the model's own preprocessing"
            )
        if resize is not None and mode != "shortest":
            raise ValueError(
                f"data.resize is for models that crop, and this one resizes images to {size}: "
                "`--data.resize none`"
            )
        self.interpolation = InterpolationMode(parsed.interpolation)
        self.to = list(self.size) if mode == "squash" else [resize or min(self.size)]
        # open_clip pads for "longest", and resizes a non-square "shortest" in its own way. Both are rare: left to it.
        self.own = mode == "longest" or (mode == "shortest" and height != width)
        transform: Any = image_transform_v2(parsed, is_train=False)
        self.transform = Compose(transform.transforms[:-1])

    def from_bytes(self, data: bytes) -> Tensor:
        """An encoded image → (3, H, W) uint8; `SkippedSample` if it is no image, damaged, too small or too large."""
        image = open_image(data)
        if not self.own and _is_plain_jpeg(image):
            with suppress(ValueError):  # cut off, or recoverable: Pillow knows which
                pixels = simplejpeg.decode_jpeg(data, "RGB")
                return self._fit(torch.from_numpy(pixels).permute(2, 0, 1))
        return self.from_image(finish_image(image))

    def from_image(self, image: Image.Image) -> Tensor:
        """An RGB image → (3, H, W) uint8."""
        if self.own:
            return (cast(Tensor, self.transform(image)) * 255).round().to(torch.uint8)
        return self._fit(F.pil_to_tensor(image))

    def _fit(self, pixels: Tensor) -> Tensor:
        pixels = F.resize(pixels, self.to, self.interpolation, antialias=True)
        return F.center_crop(pixels, list(self.size))


def read_image(
    data: bytes, *, upright: bool = True, border: int = 0, min_side: int = MIN_SIDE
) -> Image.Image:
    """An encoded image → RGB, 8 bits, transparent parts white, the first frame.

    Args:
        data: The bytes of the file.
        upright: Whether EXIF orientation is applied. The protocols of the published benchmarks ignore it.
        border: Pixels to cut off on each side, before the image is turned.
        min_side: Smaller images are skipped. Labelled sets pass 1, so that all of their images are evaluated.

    Raises:
        SkippedSample: The image cannot be decoded, or its size is out of bounds.
    """
    return finish_image(open_image(data, min_side), upright=upright, border=border)


def open_image(data: bytes, min_side: int = MIN_SIDE) -> Image.Image:
    """Open an image without decoding it; `SkippedSample` if it is unreadable or its size is out of bounds."""
    if not data:
        raise SkippedSample("empty image file")
    size = jpeg_xl.jpeg_xl_size(data) if "JXL" in _formats() else None
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise SkippedSample("image has too many pixels")
    try:
        image = Image.open(BytesIO(data), formats=_formats())
    except Image.DecompressionBombError:
        raise SkippedSample("image has too many pixels") from None
    except UNREADABLE:
        raise SkippedSample(_not_read(data)) from None
    check_size(image, min_side)
    if image.format == "PNG" and data.startswith(b"\x89PNG"):
        _scale_transparency(image, data[PNG_DEPTH])
    # A progressive JPEG may scan all its pixels any number of times, for a few bytes per scan.
    if (
        image.format in ("JPEG", "MPO")
        and data.count(START_OF_SCAN) * image.width * image.height > MAX_SCANNED
    ):
        raise SkippedSample("image takes too long to decode")
    return image


def _scale_transparency(image: Image.Image, bits: int) -> None:
    """Give the transparent colour of a PNG 8 bits, where Pillow scales the pixels to 8 bits but leaves the colour."""
    colour = image.info.get("transparency")
    if image.mode in ("1", "L") and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    elif image.mode == "RGB" and bits == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _not_read(data: bytes) -> str:
    """Why Pillow cannot open a file."""
    if data.startswith((jpeg_xl.SIGNATURE, jpeg_xl.CONTAINER)):
        return "unreadable image" if "JXL" in _formats() else NEEDS_JXL
    if data[4:8] == b"ftyp" and b"avif" in data[8:64]:
        return "unreadable image"
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "unreadable image" if "HEIF" in _formats() else NEEDS_HEIF
    return "not an image"


def check_size(image: Image.Image, min_side: int = MIN_SIDE) -> None:
    """`SkippedSample` for an image whose size is beyond reason."""
    if image.width * image.height > MAX_PIXELS:
        raise SkippedSample("image has too many pixels")
    if min(image.size) < min_side:
        raise SkippedSample("image is too small")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise SkippedSample("image is too long and thin")


def finish_image(image: Image.Image, *, upright: bool = True, border: int = 0) -> Image.Image:
    """Decode and convert an image from `open_image`; see `read_image`."""
    try:
        image.load()
        return as_rgb(image, upright=upright, border=border)
    except UNREADABLE as error:
        raise SkippedSample("truncated image" if "truncated" in str(error) else "unreadable image") from None


def as_rgb(image: Image.Image, *, upright: bool = True, border: int = 0) -> Image.Image:
    """Convert a decoded image of any Pillow mode as `read_image` does; its own results are returned as they are.

    16-bit pixels are scaled by 1/257; floats must be in [0, 1]. Pillow's own conversions clip both at 255, which makes
    16-bit images white and floats black.

    Raises:
        SkippedSample: The pixels have no defined range of values.
    """
    if image.mode == "RGB" and not image.info and not border:
        return image
    turn = TURNS.get(_orientation(image)) if upright else None
    image = on_white(_eight_bits(image))
    if border:
        image = image.crop((border, border, image.width - border, image.height - border))
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}  # or the next reader of its metadata would rotate it again
    return image


def on_white(image: Image.Image) -> Image.Image:
    """RGB, transparent parts white."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    # A strip at a time: several copies of a whole image with four channels take more than a gigabyte.
    whole, rows = Image.new("RGB", image.size), max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        canvas = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(canvas, strip).convert("RGB"), box)
    return whole


@cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this Pillow supports; loading all of its plugins would take a third of a second."""
    Image.preinit()
    for name in PLUGINS:
        import_module(name)
    for name, register in PACKAGES.items():
        if find_spec(name):
            module = import_module(name)
            if register is not None:
                getattr(module, register)()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The orientation in the metadata, 1 to 8; 1 if it is missing or invalid."""
    if not any(key in image.info for key in METADATA):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except UNREADABLE:
        return 1  # the pixels are good even if the metadata are not
    return value if isinstance(value, int) and value in TURNS else 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert integers above 8 bits and floats, which are always grey, to 8 bits; other images stay as they are."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    # Only TIFF files that Pillow has read have these tags.
    tags: Any = getattr(image, "tag_v2", {})
    bits = max(tags.get(BITS_PER_SAMPLE, (16,)))
    signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    # Decoders use this mode for 16 bits, but `Image.fromarray` for any array of int32.
    in_memory = image.mode == "I" and image.format is None
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise SkippedSample("floating-point pixels outside 0 to 1")
        values = (255 * values).round()
    elif bits > 16 or signed or in_memory or values.min() < 0 or values.max() > 65535:
        raise SkippedSample("signed or 32-bit pixels")
    else:
        values = values.astype(np.int64) * 255 // (2**bits - 1)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 255 - values
    grey = Image.fromarray(values.astype(np.uint8))
    if isinstance(colour := image.info.get("transparency"), int):  # of a PNG, in its 16 bits
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == colour, 0, 255).astype(np.uint8)))
    return grey


def _is_plain_jpeg(image: Image.Image) -> bool:
    """A JPEG that needs no conversion of colours and no turning."""
    return image.format == "JPEG" and image.mode in ("RGB", "L") and _orientation(image) == 1
