"""Render SVG and raster images to 64×64 RGBA with straight alpha, the drawing fitted into 60 px."""

import io
import re

import numpy as np
from PIL import Image

SIZE = 64
MARGIN = 2
MAX_ASPECT = 6.0
_RASTER = 128
_DPI = 90.0  # pixels per inch in the drawing programs of the clip art's time
_FAR = 20_000.0  # side of the canvas that is searched for a drawing without any size, in user units
_ROOT = re.compile(r"<svg\b[^>]*>", re.S)


def require_renderer() -> None:
    """ValueError unless resvg_py is installed."""
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise ValueError("rendering pictures needs resvg_py: pip install resvg_py") from error


def icon_svg(body: str, left: float, top: float, width: float, height: float) -> str:
    """An icon's body as an SVG document; currentColor becomes black."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{body.replace('currentColor', '#000')}</svg>"
    )


def render_svg(svg: str) -> Image.Image:
    """An SVG as RGBA, large enough for its drawing to be about 128 px long; ValueError if it cannot be read."""
    svg = _sized(svg)
    image = _rasterise(svg)
    box = _drawn_box(image)
    side = max(box[2] - box[0], box[3] - box[1]) if box else _RASTER
    if side < 3 * _RASTER // 4:  # a small drawing on a large page
        image = _rasterise(svg, min(8 * _RASTER, _RASTER * image.width // side))
    return image


def fit(image: Image.Image) -> np.ndarray:
    """(64, 64, 4) uint8 with straight alpha: the drawing of an image, cropped and centred with a margin of 2 px.

    Raises:
        ValueError: The image is empty or more than 6 times longer than wide.
    """
    image = image.convert("RGBA")
    box = _drawn_box(image)
    if box is None:
        raise ValueError("the picture draws nothing")
    image = image.crop(box)
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"the picture is {width}×{height}: too long and thin to be recognised at {SIZE} px")
    scale = (SIZE - 2 * MARGIN) / max(width, height)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    pixels = np.asarray(image, np.float32) / 255
    alpha = pixels[..., 3]
    # Premultiplied, or the colour of invisible pixels would bleed into the border.
    planes = [*(pixels[..., channel] * alpha for channel in range(3)), alpha]
    resized = np.stack([np.asarray(Image.fromarray(plane).resize(small, how)) for plane in planes], -1)
    alpha = resized[..., 3:].clip(0, 1)
    colour = resized[..., :3].clip(0, alpha)
    straight = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 1 / 255)
    out = np.zeros((SIZE, SIZE, 4), np.uint8)
    x, y = (SIZE - small[0]) // 2, (SIZE - small[1]) // 2
    out[y : y + small[1], x : x + small[0]] = (np.concatenate([straight, alpha], -1) * 255).round()
    return out


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(…, 4) uint8 with straight alpha → (…, 3) uint8 on white."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def encode_webp(pixels: np.ndarray, quality: int = 75) -> bytes:
    """(H, W, 3 or 4) uint8 as lossy WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, alpha_quality=60, method=4)
    return buffer.getvalue()


def _sized(svg: str) -> str:
    """The SVG with a size: its own, else that of its view box, else that of its drawing."""
    found = _ROOT.search(svg)
    if found is None:
        raise ValueError("this is no SVG picture: there is no <svg> element")
    root = found.group()
    box = [float(number) for number in re.findall(r"[-+.\deE]+", _attribute(root, "viewBox"))]
    if _is_length(_attribute(root, "width")) and _is_length(_attribute(root, "height")):
        return svg
    if len(box) == 4 and box[2] > 0 and box[3] > 0:
        return _with_size(svg, found, box)
    side = 8 * _RASTER
    probe = _rasterise(_with_size(svg, found, [-_FAR / 2, -_FAR / 2, _FAR, _FAR]), side)
    drawn = _drawn_box(probe)
    if drawn is None:
        raise ValueError("the picture draws nothing")
    left, top, right, bottom = (
        (edge + widen) * _FAR / side - _FAR / 2 for edge, widen in zip(drawn, (-1, -1, 1, 1), strict=True)
    )
    return _with_size(svg, found, [left, top, right - left, bottom - top])


def _rasterise(svg: str, width: int = _RASTER) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, dpi=_DPI, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _drawn_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    return image.getchannel("A").point([0] * 9 + [255] * 247).getbbox()


def _attribute(root: str, name: str) -> str:
    found = re.search(rf"\s{name}\s*=\s*[\"']([^\"']*)[\"']", root)
    return found.group(1) if found else ""


def _is_length(text: str) -> bool:
    """Whether this is an absolute length, not a percentage of a page that we do not have."""
    found = re.fullmatch(r"\s*([\d.]+)\s*(px|pt|mm|cm|in|pc)?\s*", text)
    return found is not None and float(found.group(1)) > 0


def _with_size(svg: str, found: re.Match[str], box: list[float]) -> str:
    root = re.sub(r"\s(width|height|viewBox)\s*=\s*([\"']).*?\2", "", found.group(), flags=re.S)
    left, top, width, height = box
    size = f' width="{width:g}" height="{height:g}" viewBox="{left:g} {top:g} {width:g} {height:g}"'
    return svg[: found.start()] + "<svg" + size + root[len("<svg") :] + svg[found.end() :]
