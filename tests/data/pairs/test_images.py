"""What a picture is, what it becomes, and what is refused."""

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from advflyp import limits
from advflyp.data.pairs import images
from advflyp.data.pairs.images import ImageReader, as_rgb, read_image
from advflyp.data.pairs.jpeg_xl import CONTAINER as JPEG_XL_CONTAINER
from advflyp.data.pairs.jpeg_xl import jpeg_xl_size
from advflyp.data.sets.images import Files
from advflyp.data.sets.labelled import load_set
from advflyp.errors import SkippedSample
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.use.images import load_image
from helpers import siglip_config, small_model

CLIP_224 = {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest"}


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def photos() -> list[Image.Image]:
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    return [
        china,
        flower,
        china.crop((100, 0, 356, 300)),
        flower.resize((512, 341)),
        flower.rotate(90, expand=True),
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_those_of_open_clips_preprocessing(kind: str) -> None:
    """On photographs: the mean difference is a hundredth of a grey level, the largest two."""
    reader = ImageReader(CLIP_224)
    for photo in photos():
        data = encoded(photo, kind, quality=90) if kind != "PNG" else encoded(photo)
        ours = reader.from_bytes(data)
        assert ours.shape == (3, 224, 224) and ours.dtype == torch.uint8
        theirs = reader.transform(Image.open(io.BytesIO(data)).convert("RGB")) * 255
        difference = (ours.float() - theirs).abs()
        assert difference.mean() < 0.02 and difference.max() <= 2.5


def test_the_models_own_geometry(tiny: CLIP) -> None:
    """SigLIP squashes, CLIP crops."""
    squashing = small_model(siglip_config())
    for model in (tiny, squashing):
        reader = ImageReader(model.config["preprocess_cfg"])
        for photo in photos():
            difference = reader.from_bytes(encoded(photo)).float() - model.preprocess(photo) * 255
            assert difference.abs().mean() < 0.1


def test_a_fast_jpeg_is_pillows_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ImageReader(CLIP_224)
    data = [encoded(photo, "JPEG", quality=75) for photo in photos()]
    data.append(encoded(photos()[0].convert("L"), "JPEG"))
    fast = [reader.from_bytes(one) for one in data]
    monkeypatch.setattr(images, "_is_plain_jpeg", lambda image: False)
    assert all(torch.equal(reader.from_bytes(one), pixels) for one, pixels in zip(data, fast, strict=True))


def test_resizing_before_the_crop() -> None:
    """The paper's: shorter side 256, then the middle 224."""
    photo = photos()[1].resize((600, 400))
    ours = ImageReader(CLIP_224, resize=256).from_bytes(encoded(photo)).float()
    resized = photo.resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    assert (ours - torch.from_numpy(np.array(resized)).permute(2, 0, 1)).abs().mean() < 0.02
    with pytest.raises(ValueError, match=r"data\.resize must be at least the model's 224 pixels, not 100"):
        ImageReader(CLIP_224, resize=100)
    with pytest.raises(ValueError, match=r"data\.resize is for models that crop"):
        ImageReader({**CLIP_224, "resize_mode": "squash"}, resize=256)


def test_the_released_codes_pixels() -> None:
    """Shorter side 256 by Pillow's bilinear resize, then the middle 224, whatever the model's interpolation is."""
    photo = photos()[1].resize((512, 600))
    ours = ImageReader(CLIP_224, resize=256, interpolation="bilinear").from_bytes(encoded(photo)).float()
    resized = photo.resize((256, 300), Image.Resampling.BILINEAR).crop((16, 38, 240, 262))
    theirs = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
    assert (ours - theirs).abs().mean() < 0.02
    bicubic = ImageReader(CLIP_224, resize=256).from_bytes(encoded(photo)).float()
    assert (bicubic - theirs).abs().mean() > 0.1
    assert torch.equal(
        ImageReader(CLIP_224, resize=256, interpolation="bicubic").from_bytes(encoded(photo)).float(), bicubic
    )


def solid(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (20, 10), colour)  # type: ignore[arg-type]


RED = solid("RGB", (255, 0, 0))


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[images.ORIENTATION] = orientation
    return made


@pytest.mark.parametrize(
    ("name", "data", "colour"),
    [
        ("CMYK", encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        ("palette", encoded(solid("RGB", (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)), (10, 200, 30)),
        ("grey", encoded(solid("L", 77)), (77, 77, 77)),
        ("16 bits", encoded(Image.fromarray(np.full((10, 20), 77 * 257, np.uint16))), (77, 77, 77)),
        ("16 bits, TIFF", encoded(Image.fromarray(np.full((10, 20), 77 * 257, np.uint16)), "TIFF"), (77, 77, 77)),
        ("16 bits, PGM", encoded(Image.fromarray(np.full((10, 20), 77 * 257, np.uint16)), "PPM"), (77, 77, 77)),
        ("white is zero", encoded(
            Image.fromarray(np.full((10, 20), 77 * 257, np.uint16)), "TIFF", tiffinfo={262: 0}
        ), (178, 178, 178)),
        ("floats", encoded(Image.fromarray(np.full((10, 20), 77 / 255, np.float32)), "TIFF"), (77, 77, 77)),
        ("AVIF", encoded(solid("RGB", (255, 0, 0)), "AVIF"), (255, 0, 0)),
        ("alpha", encoded(solid("RGBA", (255, 0, 0, 0))), (255, 255, 255)),
        ("half alpha", encoded(solid("LA", (0, 128))), (127, 127, 127)),
        ("one bit", encoded(solid("1", 1)), (255, 255, 255)),
        ("bilevel tiff", encoded(solid("1", 0), "TIFF"), (0, 0, 0)),
        ("animated", encoded(RED, "GIF", save_all=True, append_images=[solid("RGB", (0, 0, 255))]), (255, 0, 0)),
    ],
)  # fmt: skip
def test_unusual_pictures_become_rgb(name: str, data: bytes, colour: tuple[int, int, int]) -> None:
    image = read_image(data)
    assert image.mode == "RGB" and image.size == (20, 10)
    assert np.abs(np.array(image).astype(int) - colour).max() <= 4
    assert ImageReader({"size": 8}).from_bytes(data).shape == (3, 8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """A camera turned: the marked corner comes out where the viewer sees it."""
    upright = Image.new("RGB", (40, 24), "white")
    upright.paste((200, 0, 0), (0, 0, 10, 8))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    data = encoded(stored, "JPEG", quality=98, exif=exif(orientation))
    image = read_image(data)
    assert image.size == (40, 24)
    assert np.abs(np.array(image).astype(int) - np.array(upright)).mean() < 6
    fast = ImageReader({"size": 24}).from_bytes(data).float()
    assert (fast - ImageReader({"size": 24}).from_image(upright).float()).abs().mean() < 6


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("JPEG", {"exif": exif(6)}),
        ("JPEG", {"xmp": XMP}),
        ("PNG", {"exif": exif(6)}),
        ("WEBP", {"exif": exif(6)}),
    ],
)
def test_every_way_decodes_the_same_pixels(kind: str, how: dict[str, object], tmp_path: Path) -> None:
    """A file as bytes, on the fast way of training, as an open image, in a folder, in a table's benchmark."""
    stored = photos()[2]
    data = encoded(stored, kind, **how)
    upright = read_image(data)
    assert upright.size == stored.size[::-1]
    assert as_rgb(upright) is upright, "it is not turned again"
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(as_rgb(opened), upright) and np.array_equal(load_image(opened), upright)
    ours = ImageReader(CLIP_224)
    assert (ours.from_bytes(data).float() - ours.from_image(upright).float()).abs().mean() < 0.2
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(data)
    labelled = load_set(str(tmp_path))
    assert np.array_equal(labelled.image(0), upright)
    benchmark = Files(tmp_path, ["a/1.jpg"], [0])
    benchmark.upright = False
    assert benchmark.image(0).size == stored.size, "the protocol of the table's benchmarks"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_do_no_harm() -> None:
    data = encoded(photos()[0], "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\x07" * 30)
    assert read_image(data).size == photos()[0].size
    assert ImageReader({"size": 8}).from_bytes(data).shape == (3, 8, 8)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, in a hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


WHOLE = encoded(solid("RGB", (1, 2, 3)).resize((64, 64)), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty image file"),
        (b"<html>404</html>", "not an image"),
        (bomb(30_000, 30_000), "image has too many pixels"),
        (bomb(10_000, 9_999), "image has too many pixels"),
        (encoded(Image.new("RGB", (1, 1))), "image is too small"),
        (encoded(Image.new("RGB", (300, 2))), "image is too small"),
        (encoded(photos()[0], "JPEG")[:20_000], "truncated image"),
        (encoded(photos()[0])[:20_000], "truncated image"),
        (WHOLE[:30], "not an image"),
        (encoded(Image.new("F", (20, 20), 7.5), "TIFF"), "floating-point pixels outside 0 to 1"),
        (encoded(Image.new("F", (20, 20), float("nan")), "TIFF"), "floating-point pixels outside 0 to 1"),
        (encoded(Image.new("I", (20, 20), 200), "TIFF"), "signed or 32-bit pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n", "not an image"),
    ],
)
def test_what_cannot_be_used(data: bytes, reason: str) -> None:
    for read in (read_image, ImageReader({"size": 8}).from_bytes):
        with warnings.catch_warnings(), pytest.raises(SkippedSample) as caught:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            read(data)
        assert str(caught.value) == reason


def png(bits: int, kind: int, rows: list[bytes], width: int, clear: tuple[int, ...]) -> bytes:
    """A PNG of any depth with a transparent colour: Pillow writes few of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(clear)}H", *clear)),
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("bits", "kind", "left", "right", "clear", "colour"),
    [
        (1, 0, b"\xff", b"\0", (1,), (0, 0, 0)),
        (2, 0, b"\xaa" * 2, b"\x55" * 2, (2,), (85, 85, 85)),
        (4, 0, b"\x33" * 4, b"\xcc" * 4, (3,), (204, 204, 204)),
        (8, 0, b"\x07" * 8, b"\x80" * 8, (7,), (128, 128, 128)),
        (16, 0, b"\0\0" * 8, b"\x80\x80" * 8, (0,), (128, 128, 128)),
        (16, 0, b"\x12\x34" * 8, b"\x12\x35" * 8, (0x1234,), (18, 18, 18)),
        (8, 2, b"\1\2\3" * 8, b"\4\5\6" * 8, (1, 2, 3), (4, 5, 6)),
        (16, 2, b"\x80\0\x40\0\0\7" * 8, b"\x20\x20\x40\x40\x80\x80" * 8, (0x8000, 0x4000, 7), (32, 64, 128)),
    ],
)
def test_the_transparent_colour_of_a_png(
    bits: int, kind: int, left: bytes, right: bytes, clear: tuple[int, ...], colour: tuple[int, ...]
) -> None:
    """The left half has the transparent colour, which becomes white whatever the depth."""
    found = read_image(png(bits, kind, [left + right] * 8, 16, clear))
    assert found.mode == "RGB" and found.size == (16, 8)
    assert {found.getpixel((x, 4)) for x in range(8)} == {(255, 255, 255)}
    assert {found.getpixel((x, 4)) for x in range(8, 16)} == {colour}


def test_an_array_of_int32_has_no_defined_range() -> None:
    """`Image.fromarray` gives it the mode of a decoded 16-bit file, as which 8-bit values would be black."""
    values = np.full((20, 20), 200, np.int32)
    with pytest.raises(SkippedSample, match="signed or 32-bit pixels"):
        images.as_rgb(Image.fromarray(values))
    sixteen = Image.fromarray(np.full((20, 20), 200 * 257, np.uint16))
    assert images.as_rgb(sixteen).getpixel((3, 3)) == (200, 200, 200)
    decoded = Image.open(io.BytesIO(encoded(Image.fromarray(values * 257), "PPM")))
    assert decoded.mode == "I" and images.as_rgb(decoded).getpixel((3, 3)) == (200, 200, 200)


def test_bytes_behind_a_jpeg_do_no_harm() -> None:
    assert ImageReader({"size": 8}).from_bytes(WHOLE + b"\0\0trailer").shape == (3, 8, 8)


def test_the_reader_of_a_loaded_model(tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    assert ImageReader(model.config["preprocess_cfg"]).size == model.image_size


def striped(width: int, height: int) -> bytes:
    """A PNG that is written in pieces, however many pixels it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (width + 1)
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row * min(100_000, height - n)) for n in range(0, height, 100_000))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", body + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8, 11_000_000), (8, 2049), (2049, 8), (1, 257)])
def test_lines_are_refused_before_they_are_resized(size: tuple[int, int], tmp_path: Path) -> None:
    """Resized by its shorter side to 224 pixels, the first would have 308 million rows."""
    data = striped(*size)
    with pytest.raises(SkippedSample, match="image is too long and thin"):
        read_image(data, min_side=1)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png (is more than 256 times as long|is smaller than 8)"):
        load_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 256 times as long"):
        load_image(Image.new("RGB", (3, 769)))
    assert read_image(striped(8, 2048)).size == (8, 2048)
    assert ImageReader(CLIP_224).from_bytes(striped(2048, 8)).shape == (3, 224, 224)


def test_jpegs_of_very_many_scans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes a scan, each of which is a pass over all pixels."""
    data = encoded(photos()[0], "JPEG", progressive=True)
    width, height = photos()[0].size
    scans = data.count(images.START_OF_SCAN)
    assert 1 < scans <= 12
    read_image(data)
    several = encoded(photos()[0], "MPO", progressive=True, save_all=True, append_images=[photos()[0]])
    monkeypatch.setattr(images, "MAX_SCANNED", scans * width * height - 1)
    for one in (data, several):
        with pytest.raises(SkippedSample, match="takes too long"):
            read_image(one)


def test_files_are_regular_and_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    files = Files(tmp_path, ["pipe.png", "zero.png", "a.png"], [0, 0, 0])
    for number in range(2):
        with pytest.raises(SkippedSample, match="not a regular file"):
            files.image(number)
    assert files.image(2).size == (9, 9)
    monkeypatch.setattr(limits, "MAX_IMAGE_BYTES", 20)
    with pytest.raises(SkippedSample, match="image file is too large"):
        files.image(2)
    with pytest.raises(ValueError, match=r"a\.png is larger than"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("rest", [bytes(46), b"\xff" * 46], ids=["zeros", "ones"])
def test_a_damaged_avif(rest: bytes) -> None:
    """Its decoder raises RuntimeError, which no other does."""
    data = encoded(RED, "AVIF")
    data = data[: data.index(b"mdat") + 4]
    for read in (read_image, ImageReader({"size": 8}).from_bytes):
        for damaged in (data + rest, data[:40]):
            with pytest.raises(SkippedSample, match="unreadable image"):
                read(damaged)


@pytest.mark.parametrize(
    ("data", "reason", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", images.NEEDS_HEIF, "pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", images.NEEDS_HEIF, "pillow-heif"),
        (b"\xff\x0a" + bytes(30), images.NEEDS_JXL, "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), images.NEEDS_JXL, "pillow-jxl-plugin"),
    ],
)
def test_formats_that_need_a_plugin_are_named(
    data: bytes, reason: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(SkippedSample) as refused:
        read_image(data)
    assert str(refused.value) == reason
    (tmp_path / "a.heic").write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"a\.heic is a .* image: install a reader with `pip install {package}`"
    ):
        load_image(tmp_path / "a.heic")


def plugin(kind: str) -> dict[str, Any]:
    """How to encode without loss in a format that a plugin of Pillow adds; the test is skipped without it."""
    pytest.importorskip({"HEIF": "pillow_heif", "JXL": "pillow_jxl"}[kind])
    assert kind in images._formats()
    return {"HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0}, "JXL": {"lossless": True}}[kind]


@pytest.mark.parametrize("kind", ["HEIF", "JXL"])
def test_images_of_the_real_plugins(kind: str) -> None:
    lossless = plugin(kind)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    data = encoded(image, kind, **lossless)
    np.testing.assert_array_equal(read_image(data), pixels)
    read = ImageReader({"size": 24, "mean": [0, 0, 0], "std": [1, 1, 1]}).from_bytes(data)
    np.testing.assert_array_equal(read.permute(1, 2, 0), pixels[:, 8:32])
    clear = Image.new("RGBA", (16, 16), (200, 30, 90, 0))
    assert read_image(encoded(clear, kind, **lossless)).getpixel((3, 3)) == (255, 255, 255)
    grey = Image.new("I;16", (16, 16), 40_000)
    assert read_image(encoded(grey, kind, **lossless)).getpixel((3, 3)) == (155, 155, 155)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    turned = read_image(encoded(image, kind, exif=exif.tobytes(), **lossless))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    for end in (40, len(data) // 2, len(data) - 3):
        with pytest.raises(SkippedSample, match="unreadable image|truncated image"):
            read_image(data[:end])


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (17, 9), (640, 480), (1920, 1080), (13, 700), (9000, 41)])
@pytest.mark.parametrize("container", [True, False])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int], container: bool) -> None:
    plugin("JXL")
    data = encoded(Image.new("RGB", size, (10, 200, 30)), "JXL", use_container=container)
    assert jpeg_xl_size(data) == size


def test_a_jpeg_xl_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plugin decodes when it opens: the check comes before."""
    monkeypatch.setattr(images, "_formats", lambda: ("JXL",))
    bits = 0 | 3 << 1 | (1 << 29) << 3 | 7 << 33  # not small; 30 bits of height; twice as wide
    code = b"\xff\x0a" + bits.to_bytes(8, "little")
    parts = (8 + 4 + 4).to_bytes(4) + b"jxlp" + bytes(4) + code[:4], bytes(4) + b"jxlp" + bytes(4) + code[4:]
    container = JPEG_XL_CONTAINER + (12).to_bytes(4) + b"ftypjxl " + b"".join(parts)
    for data in (code, container):
        assert jpeg_xl_size(data) == (2 * ((1 << 29) + 1), (1 << 29) + 1)
        with pytest.raises(SkippedSample, match="image has too many pixels"):
            read_image(data)
    with pytest.raises(SkippedSample, match="unreadable image"):
        read_image(JPEG_XL_CONTAINER + bytes(40))


@pytest.mark.parametrize("name", ["pillow_heif", "pillow_jxl"])
def test_plugins_are_used_where_they_are_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that registers a format of the same name, as the real ones do."""
    kind = {"pillow_heif": "HEIF", "pillow_jxl": "JXL"}[name]
    register = "def register_heif_opener(): register()\n" if name == "pillow_heif" else "register()\n"
    (tmp_path / f"{name}.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Plain(ImageFile.ImageFile):\n"
        f"    format = {kind!r}\n"
        "    def _open(self):\n"
        "        self._size, self._mode = (8, 8), 'RGB'\n"
        "        self.tile = [ImageFile._Tile('raw', (0, 0, 8, 8), 4, 'RGB')]\n"
        f"def register(): Image.register_open({kind!r}, Plain, lambda begin: begin[:4] == b'test')\n{register}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    images._formats.cache_clear()
    try:
        assert read_image(b"test" + bytes([10, 20, 30]) * 64).getpixel((3, 3)) == (10, 20, 30)
    finally:
        images._formats.cache_clear()
        sys.modules.pop(name, None)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_strips_of_a_transparent_image_make_the_same_pixels(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (37, 50, 4), np.uint8)
    image = Image.fromarray(values)
    image = image.convert("RGB").quantize(200) if mode == "P" else image.convert(mode)
    if mode in ("P", "RGB"):
        image.info["transparency"] = bytes(range(200)) if mode == "P" else image.getpixel((3, 3))
    whole = image.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), whole).convert("RGB")
    for pixels in (1, 500, 10_000):
        monkeypatch.setattr(images, "STRIP_PIXELS", pixels)
        assert np.array_equal(np.asarray(images.on_white(image)), np.asarray(expected))
