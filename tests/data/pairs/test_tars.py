"""Tars as they come from the web: every damage is seen, nothing usable is lost."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from advflyp.data.pairs import shards, tars
from advflyp.data.pairs.samples import Sample, in_order
from advflyp.data.pairs.shards import APART, TarShard
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tars import count_keys
from helpers import members, pairs, write_tar

PICTURE = pairs(1)[0][0]


def read(path: Path, offset: int = 0) -> list[Sample]:
    return [sample for sample, _ in TarShard(str(path)).read(offset)]


def problems(path: Path) -> list[str]:
    return [sample.problem for sample in read(path) if sample.problem]


def good(path: Path) -> list[str]:
    return [sample.key for sample in read(path) if not sample.problem]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_pairs_and_offsets(tmp_path: Path, name: str) -> None:
    some = pairs(7)
    path = write_tar(tmp_path / name, members(some))
    found = list(TarShard(str(path)).read())
    assert [(s.image, s.captions()) for s, _ in found] == [(image, (caption,)) for image, caption in some]
    assert [s.key for s, _ in found] == [f"{name}:{i:04d}" for i in range(7)]
    for number, (_, offset) in enumerate(found, 1):
        assert read(path, offset) == [s for s, _ in found[number:]]
    assert count_keys(path) == 7


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format_and_long_names(tmp_path: Path, form: int) -> None:
    long = "a/" * 40 + "b" * 60 if form == tarfile.USTAR_FORMAT else "langer-ordner-ü/" * 12 + "b" * 150
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, data in (
            (f"{long}1.png", PICTURE),
            (f"{long}1.txt", b"one"),
            ("2.png", PICTURE),
            ("2.txt", b"two"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a fraction makes an extended header
            tar.addfile(info, io.BytesIO(data))
    assert [(s.key, s.captions()) for s in read(tmp_path / "a.tar")] == [
        (f"a.tar:{long}1", ("one",)), ("a.tar:2", ("two",)),
    ]  # fmt: skip


def test_halves_duplicates_and_strange_names(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("1.png", PICTURE), ("1.txt", b"one"), ("1.json", b"{}"),
            ("2.png", PICTURE),
            ("3.txt", b"three"),
            ("1.png", PICTURE), ("1.txt", b"one again"),
            ("dir/4.JPG", PICTURE), ("dir/4.TXT", b"four"),
            ("/etc/5.png", PICTURE), ("../6.txt", b"six"), ("a/../../7.png", PICTURE),
            ("._8.png", b"Finder"), ("README", b"text"),
            ("9.png", PICTURE), ("9.txt", b"x" * 1_000_000),
        ],
    )  # fmt: skip
    found = {s.key: s for s in read(path)}
    assert found["a.tar:1"].problem == "duplicate key"
    assert found["a.tar:2"].caption is None and found["a.tar:3"].image is None
    assert found["a.tar:dir/4"].captions() == ("four",)
    assert found["a.tar:9"].problem == "caption is too long"
    assert problems(path).count("unsafe member name") == 3 and problems(path).count("duplicate key") == 1
    assert set(good(path)) == {"a.tar:1", "a.tar:2", "a.tar:3", "a.tar:dir/4"}


def test_links_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert problems(tmp_path / "a.tar") == ["link in place of a file"] and not good(tmp_path / "a.tar")


def test_an_empty_file_is_a_damaged_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    assert problems(tmp_path / "a.tar") == ["empty shard"]
    (tmp_path / "b.tar").write_bytes(b"<html>" * 500)
    assert problems(tmp_path / "b.tar") == ["damaged shard"]


@pytest.mark.parametrize("packed", [False, True])
def test_wherever_a_shard_is_cut_off_the_pairs_before_it_stay(tmp_path: Path, packed: bool) -> None:
    whole = write_tar(tmp_path / "w.tar", members(pairs(5)))
    data = whole.read_bytes().rstrip(b"\0")
    ends = [offset for _, offset in TarShard(str(whole)).read()]
    for cut in range(700, len(data), 997):
        part = tmp_path / "p.tar"
        part.write_bytes(gzip.compress(data[:cut]) if packed else data[:cut])
        assert problems(part) == ["truncated shard"]
        assert len(good(part)) >= sum(end <= cut for end in ends)


def test_a_gzip_that_breaks_off(tmp_path: Path) -> None:
    data = gzip.compress(write_tar(tmp_path / "w.tar", members(pairs(20))).read_bytes())
    (tmp_path / "p.tar.gz").write_bytes(data[: len(data) // 2])
    assert problems(tmp_path / "p.tar.gz") == ["truncated shard"]


def test_damage_in_the_middle_is_not_the_end(tmp_path: Path) -> None:
    """Python's tarfile takes a broken header for the end and says nothing."""
    path = write_tar(tmp_path / "w.tar", members(pairs(5)))
    data = bytearray(path.read_bytes())
    offset = [offset for _, offset in TarShard(str(path)).read()][2]
    data[offset : offset + 512] = b"\xff" * 512
    path.write_bytes(data)
    assert problems(path) == ["damaged shard"] and len(good(path)) == 3
    with tarfile.open(path) as tar:
        assert len(tar.getnames()) == 6  # three pairs, and no word of the other two


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_raises_anything(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("t")
    whole = bytearray(write_tar(folder / "w.tar", members(pairs(3))).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
        whole[place] = data.draw(st.integers(0, 255))
    (folder / "w.tar").write_bytes(whole)
    for sample in read(folder / "w.tar"):
        assert sample.problem or sample.image is not None or sample.caption is not None


APPLEDOUBLE = b"\0\5\x16\7" + b"\0" * 100


def whole(path: Path) -> dict[str, str]:
    """Key without the shard → caption, of what can be used."""
    found = read(path)
    assert count_keys(path) == len(found)
    return {
        s.key.partition(":")[2]: s.captions()[0] for s in found if s.image and not s.problem and s.caption
    }


@pytest.mark.parametrize("prefix", ["", "./", "pairs/"])
def test_what_macos_and_others_leave_between_pairs(tmp_path: Path, prefix: str) -> None:
    content: list[tuple[str, bytes]] = [(".DS_Store", b"x"), (f"{prefix}Thumbs.db", b"x")]
    for number, (image, caption) in enumerate(pairs(4)):
        for name, data in ((f"{number}.png", image), (f"{number}.txt", caption.encode())):
            content += [(f"{prefix}._{name}", APPLEDOUBLE), (f"__MACOSX/{prefix}._{name}", APPLEDOUBLE)]
            content += [
                (f"{prefix}README", b"text"),
                (f"{prefix}README.txt", b"text"),
                (f"{prefix}{name}", data),
            ]
    path = write_tar(tmp_path / "a.tar", [*content, ("LICENSE.txt", b"CC0"), ("info.json", b"{}")])
    assert whole(path) == {f"{prefix}{n}": caption for n, (_, caption) in enumerate(pairs(4))}
    assert not problems(path)


def test_keys_with_dots_and_webdatasets_further_files(tmp_path: Path) -> None:
    dotted = [x for n in range(3) for x in ((f"photo_v1.{n}.png", PICTURE), (f"photo_v1.{n}.txt", b"%d" % n))]
    assert whole(write_tar(tmp_path / "a.tar", dotted)) == {f"photo_v1.{n}": str(n) for n in range(3)}
    further = [
        ("1.canny.png", PICTURE), ("1.depth.png", PICTURE), ("1.jpg", PICTURE), ("1.txt", b"one"),
        ("2.jpg", PICTURE), ("2.mask.png", PICTURE), ("2.txt", b"two"),
        ("3.jpg", PICTURE), ("3.txt", b"three"), ("3.seg.png", PICTURE), ("3.left.png", PICTURE),
    ]  # fmt: skip
    path = write_tar(tmp_path / "b.tar", further)
    assert whole(path) == {"1": "one", "2": "two", "3": "three"} and len(read(path)) == 3
    dotted = [("v.1.png", PICTURE), ("v.1.mask.png", PICTURE), ("v.1.txt", b"1"), ("v.2.png", PICTURE)]
    assert whole(write_tar(tmp_path / "d.tar", dotted)) == {"v.1": "1"}
    lonely = write_tar(tmp_path / "c.tar", [(f"v.{n}.png", PICTURE) for n in range(3)])
    assert [sample.caption for sample in read(lonely)] == [None] * 3 and count_keys(lonely) == 3


@pytest.mark.parametrize("name", ["a.tar.bz2", "a.tar.xz", "a.tgz"])
def test_other_packers(tmp_path: Path, name: str) -> None:
    packer = {"bz2": bz2.compress, "xz": lzma.compress, "tgz": gzip.compress}[name.rpartition(".")[2]]
    data = write_tar(tmp_path / "w.tar", members(pairs(5))).read_bytes()
    path = tmp_path / name
    path.write_bytes(packer(data))
    assert len(whole(path)) == 5
    offset = [offset for _, offset in TarShard(str(path)).read()][2]
    assert [s.key for s in read(path, offset)] == [f"{name}:0003", f"{name}:0004"]
    path.write_bytes(packer(data)[:-200])
    assert problems(path) == ["truncated shard"]


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"PK\3\4" + b"\0" * 600)
    (tmp_path / "b.tar").write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 600)
    assert problems(tmp_path / "a.tar") == ["zip file instead of a tar"]
    assert problems(tmp_path / "b.tar") == ["zstd file instead of a tar"]
    for sign, kind in (
        (b"Rar!\x1a\7", "rar"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"LZIP\x01", "lzip"),
        (b"\x1f\x9d", "compress"),
    ):
        (tmp_path / "c.tar").write_bytes(sign + b"\0" * 600)
        assert problems(tmp_path / "c.tar") == [f"{kind} file instead of a tar"]
    write_tar(tmp_path / "d.tar", [("LZIP.jpg", pairs(1)[0][0]), ("LZIP.txt", b"a file that is called so")])
    assert [sample.key for sample in read(tmp_path / "d.tar")] == ["d.tar:LZIP"]
    with pytest.raises(ValueError, match="holds no pairs: zip file instead of a tar"):
        open_source(str(tmp_path / "a.tar"))


def test_a_tar_in_the_order_of_a_folder(tmp_path: Path) -> None:
    """What `tar cf` makes of a folder: any order. A file on this machine is read from everywhere."""
    content = members(pairs(12))
    random.Random(0).shuffle(content)
    path = write_tar(tmp_path / "a.tar", content)
    assert whole(path) == {f"{n:04d}": caption for n, (_, caption) in enumerate(pairs(12))}
    found = list(TarShard(str(path)).read())
    for number, (_, offset) in enumerate(found, 1):
        assert read(path, offset) == [s for s, _ in found[number:]]
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert set(problems(packed)) == {APART}


def test_captions_in_json_and_caption_files(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("1.json", b'{"caption": "one", "width": 3}'), ("1.png", PICTURE),
            ("2.json", b'{"caption": "not this"}'), ("2.png", PICTURE), ("2.txt", b"two"),
            ("3.json", b'["three", "drei"]'), ("3.png", PICTURE),
            ("4.json", b'{"width": 3}'), ("4.png", PICTURE),
            ("5.json", b"{"), ("5.png", PICTURE),
            ("6.caption", b"six"), ("6.PNG", PICTURE),
        ],
    )  # fmt: skip
    found = {s.key[6:]: s for s in read(path)}
    assert {key: found[key].captions() for key in "1236"} == {
        "1": ("one",), "2": ("two",), "3": ("three", "drei"), "6": ("six",),
    }  # fmt: skip
    assert found["4"].caption is None and found["5"].problem == "caption file is not JSON"


def pax(name: str, data: bytes, kind: bytes = tarfile.XHDTYPE, size: int | None = None) -> bytes:
    """A member that Python's own writer would not make."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def pair(name: str) -> bytes:
    return pax(f"{name}.png", PICTURE, tarfile.REGTYPE) + pax(f"{name}.txt", b"x", tarfile.REGTYPE)


@contextmanager
def limited(mebibytes: int, seconds: float) -> Iterator[None]:
    """Fail where what is inside allocates more, by Python's own count, or takes longer."""
    begun = time.process_time()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < seconds


@pytest.mark.long
def test_extended_headers_are_read_in_time(tmp_path: Path) -> None:
    """Millions of records of six bytes, in a few kilobytes."""
    small, large = (b"6 a=b\n" * (size // 6) for size in (1 << 20, 4 << 20))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(pair("a") + pax("p", small) + pair("b") + bytes(1024)))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(pair("a") + pax("p", large) + pair("b") + bytes(1024)))
    with limited(64, 20):
        assert good(tmp_path / "a.tar.gz") == ["a.tar.gz:a", "a.tar.gz:b"]
        assert good(tmp_path / "b.tar.gz") == ["b.tar.gz:a"] and problems(tmp_path / "b.tar.gz") == [
            "damaged shard"
        ]
        assert count_keys(tmp_path / "a.tar.gz") == 2 and count_keys(tmp_path / "b.tar.gz") == 1


@pytest.mark.parametrize("size", ["²", "١", "-1", "1e3", "", " 1", "9" * 30, str(2**60), "9" * 5000])
def test_sizes_that_are_none_damage_one_shard(tmp_path: Path, size: str) -> None:
    record = f" size={size}\n".encode()
    length = next(n for n in range(len(record), 6000) if len(str(n)) + len(record) == n)
    write_tar(tmp_path / "0.tar", members(pairs(3)))
    bad = pair("a") + pax("p", f"{length}".encode() + record) + pair("b") + bytes(1024)
    (tmp_path / "1.tar").write_bytes(bad)
    (tmp_path / "2.tar").write_bytes(pair("a") + pax("b.png", PICTURE, tarfile.REGTYPE, 2**60) + bytes(1024))
    for shard in ("1.tar", "2.tar"):
        assert good(tmp_path / shard) == [f"{shard}:a"], shard
        assert problems(tmp_path / shard)[0] in ("damaged shard", "truncated shard")
    assert len(list(in_order(open_source(str(tmp_path))))) == 3 + 2 * 2


def test_what_is_no_part_of_a_pair_is_not_kept(tmp_path: Path) -> None:
    """Members of 16 MB between the halves of a pair, and captions of that size."""
    zeros = bytes(16 << 20)
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        for number in range(6):
            file.write(pax(f"zz.e{number}", zeros, tarfile.REGTYPE))
        file.write(pax("zz.png", PICTURE, tarfile.REGTYPE) + pax("zz.cls", zeros, tarfile.REGTYPE))
        file.write(pax("zz.txt", b"x", tarfile.REGTYPE) + pax("y.txt", zeros, tarfile.REGTYPE) + bytes(1024))
    with limited(40, 20):
        found = read(tmp_path / "a.tar.gz")
        assert [(s.key[9:], s.problem) for s in found] == [("zz", None), ("y", "caption is too long")]


def test_an_image_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_IMAGE_BYTES", len(PICTURE))
    path = write_tar(
        tmp_path / "a.tar", [("1.png", PICTURE + b"0"), ("1.txt", b"x"), ("2.png", PICTURE), ("2.txt", b"x")]
    )
    assert problems(path) == ["image file is too large"] and "a.tar:2" in good(path)


def test_files_with_holes_are_no_files(tmp_path: Path) -> None:
    """Eight gigabytes by their header, 512 bytes in the tar; with a map that goes on in another block."""
    for extended in (0, 1):
        header = bytearray(pax("z.png", b"", tarfile.GNUTYPE_SPARSE, 512))
        header[386:410] = b"00000000000\0" + b"00000001000\0"
        header[482] = extended
        header[483:495] = b"\x80" + (8 << 30).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        more = bytes(512) * extended
        (tmp_path / "a.tar").write_bytes(header + more + bytes(512) + pair("a") + bytes(1024))
        assert good(tmp_path / "a.tar") == ["a.tar:a"]
        assert problems(tmp_path / "a.tar") == ["link in place of a file"]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of 16 MB zeros, which nobody wants, in a few kilobytes; a terabyte would be as easy."""
    monkeypatch.setattr(tars, "FREE_BYTES", 1 << 20)
    path = tmp_path / f"a.tar.{suffix}"
    with tarfile.open(path, f"w:{suffix}") as tar:
        for name, data in (
            ("1.png", PICTURE),
            ("1.txt", b"one"),
            ("x.bin", bytes(16 << 20)),
            ("2.txt", b"two"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    began = time.process_time()
    assert good(path) == [f"a.tar.{suffix}:1"]
    assert problems(path) == ["shard compressed beyond the limit"]
    assert count_keys(path) == 1
    assert time.process_time() - began < 2


def test_images_that_shrink_well_are_no_bomb(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (500, 500), "red").save(stream, "bmp")
    path = write_tar(tmp_path / "a.tar.gz", members([(stream.getvalue(), "a red square")] * 3))
    assert stream.tell() > 700_000 and path.stat().st_size < 20_000
    assert problems(path) == [] and len(good(path)) == 3


def test_a_shard_is_resumed_at_each_of_its_offsets(tmp_path: Path) -> None:
    """Extra files may follow a sample; the offset that came with it lies after them."""
    content = [
        (f"{n}.{suffix}", data)
        for n in range(6)
        for suffix, data in (("jpg", PICTURE), ("txt", b"%d" % n), ("z.png", PICTURE), ("a.png", PICTURE))
    ]
    for name in ("a.tar", "a.tar.gz"):  # a compressed one, as a remote one, cannot be searched
        path = write_tar(tmp_path / name, content)
        found = list(TarShard(str(path)).read())
        keys = [sample.key for sample, _ in found]
        assert keys == [f"{name}:{n}" for n in range(6)] and not problems(path)
        for number, (_, offset) in enumerate(found, 1):
            assert [sample.key for sample in read(path, offset)] == keys[number:]


@pytest.mark.parametrize(
    ("names", "captions"),
    [
        ("1.jpg 1.json 1.mask.png 1.txt", {"1": "text"}),
        ("1.jpg 1.json 2.jpg 2.txt 1.txt", {"1": "text", "2": "text"}),
        ("1.txt 2.jpg 2.txt 1.jpg 1.json", {"1": "text", "2": "text"}),
        ("1.jpg 1.json 2.jpg 2.json", {"1": "json", "2": "json"}),
    ],
)
def test_text_anywhere_in_a_local_tar_takes_precedence_over_json(
    tmp_path: Path, names: str, captions: dict[str, str]
) -> None:
    data = {"txt": b"text", "json": b'{"caption": "json"}'}
    path = write_tar(
        tmp_path / "a.tar", [(n, data.get(n.rpartition(".")[2], PICTURE)) for n in names.split()]
    )
    assert whole(path) == captions and not problems(path)


def test_a_second_copy_of_a_sample_with_json_is_counted(tmp_path: Path) -> None:
    one = [("1.jpg", PICTURE), ("1.json", b'{"caption": "json"}')]
    path = write_tar(tmp_path / "a.tar", [*one, ("2.jpg", PICTURE), ("2.txt", b"two"), *one])
    assert problems(path) == ["duplicate key"]


@pytest.mark.parametrize("zeros", [512, 1024, 10240 + 1024, 1 << 16])
def test_padding_at_the_end_is_no_damage(tmp_path: Path, zeros: int) -> None:
    data = write_tar(tmp_path / "w.tar", members(pairs(3))).read_bytes().rstrip(b"\0")
    data += bytes(-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(data + bytes(zeros))
    assert not problems(tmp_path / "a.tar") and len(good(tmp_path / "a.tar")) == 3
    (tmp_path / "b.tar").write_bytes(data + bytes(-len(data) % (1 << 20)))  # as `tar -b 2048`
    assert not problems(tmp_path / "b.tar") and len(good(tmp_path / "b.tar")) == 3


def test_a_hole_is_not_the_end(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "w.tar", members(pairs(3))).read_bytes()
    first = next(TarShard(str(tmp_path / "w.tar")).read())[1]
    for data in (
        whole + whole,  # cat a.tar b.tar
        whole[:first] + bytes(1024) + whole[first + 1024 :],
        whole[:first] + bytes((100 << 10) + 512),  # the rest was reserved, but never written
        whole + bytes(2 << 20),
    ):
        (tmp_path / "a.tar").write_bytes(data)
        assert problems(tmp_path / "a.tar") == ["damaged shard"] and good(tmp_path / "a.tar")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_the_checksum_of_a_compressed_shard_is_verified(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    write_tar(tmp_path / "w.tar", members(pairs(3)))
    data = bytearray(pack((tmp_path / "w.tar").read_bytes()))
    (tmp_path / "a.tar").write_bytes(data)
    assert not problems(tmp_path / "a.tar")
    data[-6 if pack is gzip.compress else len(data) // 2] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert problems(tmp_path / "a.tar") in (["damaged shard"], ["truncated shard"])


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_resumed_shard_knows_the_keys_before_it(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / name, members(pairs(4)) + members(pairs(2)))
    found = list(TarShard(str(path)).read())
    assert [s.problem for s, _ in found[4:]] == ["duplicate key"] * 2
    for number, (_, offset) in enumerate(found, 1):
        assert list(TarShard(str(path)).read(offset)) == found[number:]


def test_a_name_of_many_dots_takes_no_time(tmp_path: Path) -> None:
    names = [f"{i}" + ".a" * 200_000 + ".png" for i in range(3)]
    path = write_tar(tmp_path / "a.tar", [*members(pairs(1)), *((name, PICTURE) for name in names)])
    with limited(64, 5):
        assert problems(path) == ["member name is too long"] * 3 and len(good(path)) == 1
