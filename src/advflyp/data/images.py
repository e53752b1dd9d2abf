"""Encoded pictures → pixels at the model's resolution, and what makes a picture unusable.

Chosen by measurement (`benchmarks/loader.py`): JPEGs go through libjpeg-turbo (simplejpeg) and torchvision's resize of
uint8 tensors, which differ from Pillow's by a hundredth of a grey level in the mean; anything unusual is Pillow's.
"""

from io import BytesIO
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode
from torchvision.transforms.v2 import functional as F

from advflyp.data.dirt import Unusable
from advflyp.data.pictures import UNREADABLE

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
# Pillow's own limit for what may be a decompression bomb: 89 million pixels, 270 MB decoded.
MAX_PIXELS = 89_478_485
# Smaller pictures are spacers and tracking pixels.
MIN_SIDE = 8
ORIENTATION = 0x0112


class PictureReader:
    """Pictures as training takes them: (3, H, W) uint8 at the model's resolution.

    settings: open_clip's preprocessing of the model ("preprocess_cfg")
    resize:   length of the shorter side before the centre crop; None is the model's own, which crops nothing off it

    The geometry is open_clip's. Its float pixels and these differ by rounding to 8 bits and the resize's arithmetic.
    """

    def __init__(self, settings: dict[str, Any], resize: int | None = None) -> None:
        parsed = PreprocessCfg(**settings)
        size = parsed.size
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        height, width = self.size
        if resize is not None and resize < max(self.size):
            raise ValueError(
                f"data.resize must be at least the model's {max(self.size)} pixels, not {resize}; "
                "`--data.resize none` is the model's own preprocessing"
            )
        if resize is not None and parsed.resize_mode != "shortest":
            raise ValueError(
                f"data.resize goes with models that crop; this one's pictures are resized to {size}: "
                "`--data.resize none`"
            )
        self.shorter = resize or min(self.size)
        self.interpolation = InterpolationMode(parsed.interpolation)
        self.squash = parsed.resize_mode == "squash"
        # open_clip pads for "longest", and for an oblong "shortest" resizes in its own way: rare, so left to it.
        self.own = parsed.resize_mode == "longest" or (parsed.resize_mode == "shortest" and height != width)
        transform: Any = image_transform_v2(parsed, is_train=False)
        self.transform = Compose(transform.transforms[:-1])

    def from_bytes(self, data: bytes) -> Tensor:
        """An encoded picture → (3, H, W) uint8; `Unusable` where it is none, damaged, too small or too large."""
        image = open_image(data)
        if not self.own and _is_plain_jpeg(image):
            try:
                pixels = simplejpeg.decode_jpeg(data, "RGB")
            except ValueError:
                pass  # cut off, or recoverable: Pillow knows which
            else:
                return self._fit(torch.from_numpy(pixels).permute(2, 0, 1))
        return self.from_image(finish_image(image))

    def from_image(self, image: Image.Image) -> Tensor:
        """An RGB picture → (3, H, W) uint8."""
        if self.own:
            return (cast(Tensor, self.transform(image)) * 255).round().to(torch.uint8)
        return self._fit(F.pil_to_tensor(image))

    def _fit(self, pixels: Tensor) -> Tensor:
        if self.squash:
            return F.resize(pixels, list(self.size), self.interpolation, antialias=True)
        pixels = F.resize(pixels, [self.shorter], self.interpolation, antialias=True)
        return F.center_crop(pixels, list(self.size))


def read_image(data: bytes) -> Image.Image:
    """RGB, upright, 8 bits, transparent parts white, the first frame; `Unusable` where there is no such picture."""
    return finish_image(open_image(data))


def open_image(data: bytes) -> Image.Image:
    """The picture before anything is decoded; refused by its size if that is beyond reason."""
    if not data:
        raise Unusable("empty image file")
    try:
        image = Image.open(BytesIO(data))
    except Image.DecompressionBombError:
        raise Unusable("image has too many pixels") from None
    except UNREADABLE:
        raise Unusable("not an image") from None
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("image has too many pixels")
    if min(image.size) < MIN_SIDE:
        raise Unusable("image is too small")
    return image


def finish_image(image: Image.Image) -> Image.Image:
    """Decoded and converted; see `read_image`."""
    try:
        image.load()
        return on_white(_eight_bits(ImageOps.exif_transpose(image)))
    except UNREADABLE as error:
        raise Unusable("truncated image" if "truncated" in str(error) else "unreadable image") from None


def on_white(image: Image.Image) -> Image.Image:
    """RGB, transparent parts white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of 16-bit grey clips at 255, which makes nearly everything white."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    return image


def _is_plain_jpeg(image: Image.Image) -> bool:
    """A JPEG that needs no conversion of colours and no turning."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    return "exif" not in image.info or image.getexif().get(ORIENTATION, 1) == 1
