"""Webdataset tars: pairs and labelled sets, in every format, packed, cut off, with headers that lie."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.shards import TarShard
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.data.sets.labelled import load_set
from advflyp.data.training import open_training
from fuzz.mutate import EDGES, PATHS, as_json, mutated, text, value
from fuzz.watch import command
from helpers import encoded_png
from hostile import NAMES

READER = ImageReader({"size": 8})
PICTURE = encoded_png(Image.new("RGB", (16, 12), "red"))
TYPES = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
    tarfile.CONTTYPE, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE,
    tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"\0", b"Z",
)  # fmt: skip
FIELDS = (
    "path",
    "size",
    "linkpath",
    "uid",
    "mtime",
    "hdrcharset",
    "GNU.sparse.major",
    "GNU.sparse.size",
    "comment",
)
SUFFIXES = ("png", "txt", "jpg", "json", "cls", "caption", "mask.png", "PNG", "tar", "", "x.png", "jp2")


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A tar, and something that the program does with one."""
    odd = rng.choice((0.0, 0.02, 0.1, 0.5))
    halves = ("png", rng.choice(("txt", "txt", "json", "cls")))
    data = b"".join(
        member(rng, f"{number // 2:04d}.{halves[number % 2]}", odd)
        for number in range(rng.choice((0, 2, 4, 8, 8, 20)))
    )
    data += bytes(rng.choice((0, 512, 1024, 10240)))
    if rng.random() < 0.3:
        data = mutated(rng, data)
    name = f"{rng.choice(('0', '000', 'a b', '[b]x'))}.tar"
    match rng.randrange(8):
        case 0:
            data, name = gzip.compress(data, 1, mtime=0), f"{name}.gz"
        case 1:
            data, name = bz2.compress(data), f"{name}.bz2"
        case 2:
            data, name = lzma.compress(data, preset=0), f"{name}.xz"
        case 3:
            half = len(data) // 2
            data = gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)
        case _:
            pass
    if rng.random() < 0.2:
        data = mutated(rng, data, 3)
    path = folder / "in" / name
    path.write_bytes(data)
    return use(rng, path, folder / "out")


def use(rng: random.Random, path: Path, out: Path) -> Callable[[], object]:
    """Something that the program does with a tar."""
    match rng.randrange(8):
        case 0:
            return lambda: command("data", "pack", path, "--out", out / "packed", "--resize", "8")
        case 1:
            return lambda: command("data", "check", path, "--out", out / "page")
        case 2:
            offset = rng.choice((512, 1024, 2560, rng.randrange(20_000)))
            return lambda: list(TarShard(str(path)).read(offset))
        case 3:
            (path.parent / "classnames.txt").write_text("cat\ndog\n")
            return lambda: pictures_of(str(path))
        case 4:
            return lambda: train_on(str(path))
        case 5:
            return lambda: len(CaptionedImages(path))
        case _:
            return lambda: command("data", "check", path)


def train_on(name: str) -> None:
    """Make the batches of an epoch, and those behind its first one again, as a resumed run does."""
    config = DataConfig(train=name, batch_size=2, workers=2, max_bad_fraction=1.0)
    found = open_training(config, "pairs", READER, seed=0, device=torch.device("cpu"))
    batches = [(batch.captions, batch.position) for batch in found.epoch(0)]
    if batches:
        rest = [batch.captions for batch in found.epoch(0, batches[0][1])]
        assert rest == [captions for captions, _ in batches[1:]]


def pictures_of(name: str) -> None:
    """Decode every image of a labelled set."""
    labelled = load_set(name)
    for _ in labelled.batches(lambda image: torch.zeros(3, 1, 1), 4):
        pass


def member(rng: random.Random, name: str, odd: float) -> bytes:
    """A header, or several, and its data; `odd` is how likely each thing is that should not be."""

    def oddly() -> bool:
        return rng.random() < odd

    if oddly():
        name = (
            f"{name[:5]}{rng.choice(SUFFIXES)}"
            if rng.random() < 0.7
            else f"{rng.choice((*NAMES, *PATHS))}.png"
        )
    info = tarfile.TarInfo(name)
    data = content(rng, name, odd)
    info.size = len(data)
    if oddly():
        info.type = rng.choice(TYPES)
        info.linkname = rng.choice(PATHS)
    if oddly():
        info.size = rng.choice((*EDGES[:9], 2**40, 2**62, len(data) + 513, max(0, len(data) - 1)))
    if oddly():
        info.pax_headers = {rng.choice(FIELDS): field(rng) for _ in range(rng.randint(1, 3))}
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    try:
        header = info.tobuf(form, "utf-8", "surrogateescape")
    except ValueError:  # too long a name for the format, or one that it cannot encode
        header = tarfile.TarInfo("odd.png").tobuf()
    return (pax(rng) if oddly() else b"") + header + data + bytes(-len(data) % 512)


def content(rng: random.Random, name: str, odd: float) -> bytes:
    """What a member of this name holds, more or less."""
    if rng.random() < odd / 4:
        return rng.randbytes(rng.choice((0, 1, 511, 512, 2000)))
    if name.endswith(("txt", "caption")):
        return text(rng).encode("utf-8", "surrogatepass") if rng.random() < odd else b"a red circle"
    if name.endswith("json"):
        return as_json(rng, {"caption": value(rng)}) if rng.random() < odd else b'{"caption": "a red circle"}'
    if name.endswith("cls"):
        if rng.random() >= odd:
            return b"1"
        return rng.choice((b"0", b"1", b" 1\n", b"-1", b"1_0", b"9" * 60, "١".encode(), b"1.0", b"", b"\xff"))
    return mutated(rng, PICTURE) if rng.random() < odd else PICTURE


def field(rng: random.Random) -> str:
    """The value of a field of an extended header."""
    return rng.choice(
        ("0", "-1", "1", "512", "1e9", str(2**70), "٣", "0x1", "\0", "a.png", "../b.png", "x" * 5000)
    )


def pax(rng: random.Random) -> bytes:
    """An extended header whose lines need not be as long as they say."""
    stream = io.BytesIO()
    for _ in range(rng.choice((1, 2, 300))):
        line = f" {rng.choice(FIELDS)}={field(rng)}\n".encode()
        length = len(line) + rng.choice((2, 2, 2, 3, 0, -2, 10**6))
        stream.write(str(length).encode() + line)
    data = stream.getvalue()
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = rng.choice((tarfile.XHDTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE)), len(data)
    return info.tobuf() + data + bytes(-len(data) % 512)
