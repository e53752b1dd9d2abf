"""Folders of pairs as people have them: whatever lies about, however files are called."""

import json
from pathlib import Path

import pytest
from PIL import Image

from advflyp.data import filenames
from advflyp.data.pairs import images
from advflyp.data.pairs.folder_pairs import FolderPairs, has_pairs
from advflyp.data.pairs.images import NEEDS_HEIF, NEEDS_JXL
from advflyp.data.pairs.sources import open_source
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.data.tools.check import check
from advflyp.data.training import readings
from helpers import members, pairs, write_folder, write_tar

PNG = pairs(1)[0][0]


def put(path: Path, data: bytes | str = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def put_pairs(folder: Path, n: int = 3, image: str = "png", text: str = "txt") -> Path:
    for number in range(n):
        put(folder / f"{number}.{image}")
        put(folder / f"{number}.{text}", f"caption {number}")
    return folder


def captions(folder: Path) -> dict[str, tuple[str, ...]]:
    found = FolderPairs(folder)
    samples = [found[number] for number in range(len(found))]
    assert all(sample.image and sample.caption for sample in samples), "no halves"
    assert all(len(sample.image_bytes()) for sample in samples)
    return {sample.key: sample.captions() for sample in samples}


def expected(prefix: str = "", n: int = 3, image: str = "png") -> dict[str, tuple[str, ...]]:
    return {f"{prefix}{number}.{image}": (f"caption {number}",) for number in range(n)}


def test_what_systems_leave_behind(tmp_path: Path) -> None:
    put_pairs(tmp_path)
    for name in ("0.png", "0.txt", "1.txt"):
        put(tmp_path / f"._{name}")
        put(tmp_path / "__MACOSX" / f"._{name}")
        put(tmp_path / ".ipynb_checkpoints" / name)
        put(tmp_path / "@eaDir" / name)
    for name in (".DS_Store", "Thumbs.db", "README", "README.txt", "LICENSE.txt", "info.json"):
        put(tmp_path / name, "text")
    assert captions(tmp_path) == expected()
    assert len(CaptionedImages(tmp_path)) == 3


def test_a_folder_called_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pairs(tmp_path / "set/images")
    assert captions(tmp_path / "set") == expected("images/")
    assert captions(tmp_path / "set/images") == expected()
    release = tmp_path / "part0"
    for number in range(3):
        put(release / f"images/{number}.png")
        put(release / f"captions/{number}.txt", f"caption {number}")
    assert captions(release) == expected("images/") and captions(release / "images") == expected()
    assert "pairs" in readings(str(release))
    monkeypatch.chdir(release / "images")
    assert captions(Path(".")) == expected()


def test_links_are_followed_once(tmp_path: Path) -> None:
    put_pairs(tmp_path / "set/a")
    put_pairs(tmp_path / "elsewhere")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere")
    assert captions(tmp_path / "set") == {**expected("a/"), **expected("b/")}
    assert len(CaptionedImages(tmp_path / "set")) == 6 and "pairs" in readings(str(tmp_path / "set"))


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "avif", "gif", "ppm", "TIFF"])
def test_suffixes_of_images(tmp_path: Path, suffix: str) -> None:
    put_pairs(tmp_path, image=suffix)
    kind = {"JFIF": "JPEG", "JPE": "JPEG"}.get(suffix.upper(), suffix.upper())
    for path in tmp_path.glob(f"*.{suffix}"):
        Image.new("RGB", (9, 9)).save(path, kind)
    assert captions(tmp_path) == expected(image=suffix)
    assert has_pairs(tmp_path) and len(CaptionedImages(tmp_path)) == 3


@pytest.mark.parametrize("suffix", ["TXT", "Txt", "caption", "CAPTION"])
def test_suffixes_of_captions(tmp_path: Path, suffix: str) -> None:
    put_pairs(tmp_path, text=suffix)
    assert captions(tmp_path) == expected()
    assert CaptionedImages(tmp_path).captions == [f"caption {n}" for n in range(3)]


def test_captions_in_json(tmp_path: Path) -> None:
    put_pairs(tmp_path, text="json")
    for number in range(3):
        put(tmp_path / f"{number}.json", json.dumps({"width": 3, "caption": f"caption {number}"}))
    assert captions(tmp_path) == expected()
    put(tmp_path / "0.txt", "a text comes first")
    assert captions(tmp_path)["0.png"] == ("a text comes first",)


def test_halves_are_counted(tmp_path: Path) -> None:
    put_pairs(tmp_path)
    put(tmp_path / "x.png")
    put(tmp_path / "y.txt", "alone")
    source = open_source(str(tmp_path))
    assert isinstance(source, FolderPairs) and len(source) == 5
    assert source[3].caption is None and source[4].image is None


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_pairs(tmp_path)
    locked = put(tmp_path / "locked/0.png").parent
    scandir = filenames.os.scandir

    def refused(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(filenames.os, "scandir", refused)
    with pytest.raises(ValueError, match=r"cannot read the folder .*locked: Permission denied"):
        FolderPairs(tmp_path)


def test_shards_beside_their_checksums_and_shadows(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members(pairs(4)))
    put(tmp_path / "0.tar.sha256", "abc")
    put(tmp_path / "._0.tar", "x" * 600)
    assert len(open_source(str(tmp_path))) == 4 and len(open_source(f"{tmp_path}/*.tar")) == 4
    assert len(CaptionedImages(tmp_path)) == 4


def test_photographs_that_need_a_plugin_are_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left out in silence, but what is there as a JPEG, too."""
    monkeypatch.setattr(images, "_formats", lambda: ("JPEG", "PNG"))
    put_pairs(tmp_path)
    heic, jxl = b"\0\0\0\x18ftypheic\0\0\0\0", b"\xff\x0a" + bytes(20)
    for name, data in (("a.HEIC", heic), ("b.jxl", jxl), ("c.heif", heic)):
        put(tmp_path / name, data)
        put(tmp_path / f"{name[0]}.txt", "a caption")
    put(tmp_path / "0.heic", heic)  # beside 0.png
    found = check(str(tmp_path))
    assert (found.seen, found.usable) == (6, 3)
    assert found.skipped.counts == {NEEDS_HEIF: 2, NEEDS_JXL: 1}
    write_tar(tmp_path / "t.tar", [("a.heic", heic), ("a.txt", b"one"), ("b.png", PNG), ("b.txt", b"two")])
    found = check(str(tmp_path / "t.tar"))
    assert (found.seen, found.usable) == (2, 1) and found.skipped.counts == {NEEDS_HEIF: 1}


@pytest.mark.parametrize("names", ["0.png", "*.png", "{0,1}.png", "a.HEIC"])
def test_images_are_no_source_of_pairs(names: str, tmp_path: Path) -> None:
    put_pairs(tmp_path)
    put(tmp_path / "a.HEIC")
    with pytest.raises(
        ValueError, match=r"(is an image|names \d images), and pairs need captions: name a folder of"
    ):
        open_source(str(tmp_path / names))


def test_a_file_called_txt_is_no_caption(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "txt").write_text("no caption")
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"image")
    (tmp_path / "b.txt").write_text("a caption")
    found = FolderPairs(tmp_path)
    assert [sample.caption for sample in map(found.__getitem__, range(len(found)))] == [
        None,
        tmp_path / "b.txt",
    ]


def test_shards_and_pairs_of_files_in_one_folder(tmp_path: Path) -> None:
    """A tar that was left in a folder of pairs would take the place of them all."""
    folder = write_folder(tmp_path / "pairs", 3)
    write_tar(folder / "backup.tar", [("0.png", pairs(1)[0][0]), ("0.txt", b"a cat")])
    with pytest.raises(
        ValueError, match=r"pairs holds shards and pairs of files, such as 0000\.png; name the shards"
    ):
        open_source(str(folder))
    assert len(open_source(f"{folder}/*.tar*")) == 1
    # What img2dataset or an operating system writes beside shards, and an image alone, are no pairs.
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "0000_stats.json").write_text("{}")
    (folder / "._0001.txt").write_text("")
    assert len(open_source(str(folder))) == 1
