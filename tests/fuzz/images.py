"""Image files: of every format and mode, changed, cut off, of sizes that they only claim, with odd metadata."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, features

from advflyp.data.pairs.images import ImageReader, read_image
from advflyp.errors import SkippedSample
from advflyp.use import images as own_images
from fuzz.mutate import EDGES, mutated

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16", "F"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "AVIF": ("RGB", "RGBA"),
}
SIZES = (1, 3, 7, 8, 9, 17, 64, 300)
HUGE = (0, 1, 9_000, 9_459, 12_000, 65_535, 89_478_485, 2**31 - 1, 2**32 - 1)
READERS = [
    ImageReader({"size": 32}, resize=40),
    ImageReader({"size": 32, "resize_mode": "squash"}),
    ImageReader({"size": (32, 48)}),
    ImageReader({"size": 32, "resize_mode": "longest"}),
]


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A file, and every way in which the program decodes one."""
    data = encoded(rng)
    if rng.random() < 0.3:
        data = resized(rng, data)
    if rng.random() < 0.6:
        data = mutated(rng, data, rng.choice((1, 2, 8, 40)))
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    path = folder / "in" / "a.png"
    path.write_bytes(data)
    reader = rng.choice(READERS)
    upright, border = rng.random() < 0.5, rng.choice((0, 0, 0, 1))
    return lambda: decode(data, path, reader, upright, border)


def decode(data: bytes, path: Path, reader: ImageReader, upright: bool, border: int) -> None:
    """All decoders take a file, or all refuse it; what they give has the pixels that were asked for."""
    refused = []
    for read in (
        lambda: reader.from_bytes(data).shape,
        lambda: read_image(data, upright=upright, border=border).mode,
    ):
        try:
            found: Any = read()
        except SkippedSample as reason:
            refused.append(str(reason))
            continue
        assert found in ((3, *reader.size), "RGB"), found
    assert len(refused) in (0, 2) and len(set(refused)) < 2, refused
    own_images.load_image(path)


def encoded(rng: random.Random) -> bytes:
    """A small image of noise, with whatever a format can say beside its pixels."""
    kinds = [name for name in MODES if name not in ("AVIF", "JPEG2000") or _known(name)]
    kind = rng.choice(kinds)
    mode = rng.choice(MODES[kind])
    size = rng.choice(SIZES), rng.choice(SIZES)
    depth = {"1": 1, "I;16": 2, "I": 4, "F": 4}.get(mode, len(Image.new(mode, (1, 1)).getbands()))
    noise = rng.randbytes(size[0] * size[1] * depth)
    image = (
        Image.frombytes("L", size, noise).convert(mode)
        if mode in ("1", "P")
        else Image.frombytes(mode, size, noise)
    )
    if mode == "F":
        image = Image.frombytes("L", size, noise[: size[0] * size[1]]).convert("F")
    options: dict[str, Any] = {}
    if rng.random() < 0.5:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
        exif[0x010E] = rng.choice(("a", "\x1b[2J", "x" * 60_000))
        if rng.random() < 0.5:
            exif[0x8769] = {0x9003: "2020:01:01"}
        data = exif.tobytes()
        options["exif"] = (
            mutated(rng, data) if rng.random() < 0.5 and kind in ("JPEG", "WEBP", "PNG") else data
        )
    match kind:
        case "JPEG":
            options |= {"progressive": rng.random() < 0.5, "quality": rng.choice((1, 75, 100))}
            options |= {"comment": b"a" * 70} if rng.random() < 0.2 else {}
        case "TIFF":
            options["compression"] = rng.choice(
                (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
            )
            unfit = {"jpeg": image.mode in ("1", "P", "I", "I;16", "F"), "group4": image.mode != "1"}
            if unfit.get(options["compression"], False):
                # libtiff refuses to write these, and Pillow 12.3 then corrupts its own memory.
                options["compression"] = None
        case "GIF" | "WEBP" | "PNG" if rng.random() < 0.3:
            options |= {"save_all": True, "append_images": [image.copy() for _ in range(rng.choice((1, 50)))]}
        case _:
            pass
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        SystemError,
        RuntimeError,
    ):  # a combination that the format has not
        image.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _known(kind: str) -> bool:
    Image.init()
    return kind in Image.SAVE and bool(features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]))


def resized(rng: random.Random, data: bytes) -> bytes:
    """The file with other sizes in its header, where they are found, and checksums that are right."""
    width, height = rng.choice(HUGE), rng.choice(HUGE)
    if rng.random() < 0.2:
        # Whatever it is that stands there.
        place = rng.randrange(min(64, len(data)))
        return data[:place] + struct.pack("<I", rng.choice(EDGES[:9])) + data[place + 4 :]
    if data.startswith(b"\x89PNG"):
        head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data.startswith(b"\xff\xd8"):
        place = next((at for at in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if at > 0), 0)
        return data[: place + 5] + struct.pack(">HH", height & 0xFFFF, width & 0xFFFF) + data[place + 9 :]
    if data.startswith(b"GIF"):
        return data[:6] + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF) + data[10:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    if data.startswith(b"RIFF") and data[12:16] == b"VP8X":
        sides = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
        return data[:24] + sides + data[30:]
    if data.startswith((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")):
        return data[:3] + f"{width} {height}\n".encode() + data[3:]
    return data
