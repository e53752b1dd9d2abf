"""Any pairs to shards."""

import hashlib
import io
import json
import statistics
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from advflyp.cli.main import main
from advflyp.data.pairs.manifest import FILE, Manifest, describe_shards, read_manifest
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.tools import pack as pack_module
from advflyp.data.tools.pack import pack
from helpers import members, pairs, write_folder, write_tar


def test_a_folder_becomes_shards_with_a_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 25)
    (folder / "0003.txt").write_text("one\n two  words\n")
    (folder / "0004.png").write_bytes(b"")
    (folder / "0005.txt").unlink()
    manifest = pack(str(folder), tmp_path / "out", per_shard=10)
    assert [shard.name for shard in manifest.shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert [shard.pairs for shard in manifest.shards] == [10, 10, 3] and manifest.pairs == 23
    assert manifest.failures == {"empty image file": 1, "no caption": 1}
    for shard in manifest.shards:
        data = (tmp_path / "out" / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest.source["packed_from"] == str(folder)
    source = open_source(str(tmp_path / "out"))
    assert len(source) == 23
    samples = list(in_order(source))
    expected = [pair for i, pair in enumerate(pairs(25)) if i not in (4, 5)]
    assert [s.image_bytes() for s in samples] == [image for image, _ in expected]
    assert samples[3].captions() == ("one", "two words") and samples[0].captions() == (expected[0][1],)


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", 5)
    one, other = (pack(str(folder), tmp_path / name) for name in ("a", "b"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]
    third = pack(str(tmp_path / "a"), tmp_path / "c")
    images = [[s.image for s in in_order(open_source(str(tmp_path / name)))] for name in ("a", "c")]
    assert third.pairs == 5 and images[0] == images[1]


def test_resizing_keeps_small_pictures_as_they_are(tmp_path: Path) -> None:
    def png(size: tuple[int, int]) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", size, (9, 99, 199)).save(stream, "png")
        return stream.getvalue()

    tar = write_tar(
        tmp_path / "a.tar",
        [("1.png", png((90, 30))), ("1.txt", b"x"), ("2.png", png((16, 40))), ("2.txt", b"y")],
    )
    manifest = pack(str(tar), tmp_path / "out", resize=20)
    first, second = in_order(open_source(str(tmp_path / "out")))
    image = Image.open(io.BytesIO(first.image_bytes()))
    assert image.format == "JPEG" and image.size == (60, 20)
    assert second.image_bytes() == png((16, 40)) and manifest.images["median_width"] == 38
    with pytest.raises(ValueError, match="already exists and is not an empty folder"):
        pack(str(tar), tmp_path / "out")


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_packing_that_was_interrupted_can_be_repeated(
    tmp_path: Path, fault: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_folder(tmp_path / "in", 25), tmp_path / "out"
    whole = pack(str(folder), tmp_path / "whole", per_shard=10)
    real, added = pack_module.add_member, []

    def add(*arguments: object) -> None:
        added.append(arguments)
        if len(added) == 3 * 15:
            raise fault
        real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(type(fault)):
        patch.setattr(pack_module, "add_member", add)
        pack(str(folder), out, per_shard=10)
    assert not out.exists() and not list(tmp_path.glob(".*")), "the folder appears when it is complete"
    out.mkdir()
    assert pack(str(folder), out, per_shard=10).shards == whole.shards
    assert sorted(path.name for path in out.iterdir()) == ["00000.tar", "00001.tar", "00002.tar", FILE]
    with pytest.raises(ValueError, match="already exists"):
        pack(str(folder), out, per_shard=10)


def test_two_that_pack_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one wins, and the other's folder vanishes."""
    folder, out, real = write_folder(tmp_path / "in", 5), tmp_path / "out", pack_module.write_manifest
    faster: list[Manifest] = []

    def write_manifest(to: Path, manifest: Manifest) -> Path:
        monkeypatch.setattr(pack_module, "write_manifest", real)
        faster.append(pack(str(folder), out))
        return real(to, manifest)

    monkeypatch.setattr(pack_module, "write_manifest", write_manifest)
    with pytest.raises(ValueError, match="already exists; name a new folder"):
        pack(str(folder), out)
    assert read_manifest(out) == faster[0] and {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_nothing_usable_leaves_nothing(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.txt", b"x")])
    with pytest.raises(ValueError, match=r"no usable pair to write to .*1 not an image"):
        pack(str(tar), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("side", "fine"), [(8, True), (7, False), (1, False)])
def test_images_are_not_made_too_small_to_be_used(
    side: int, fine: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "pack", str(write_folder(tmp_path / "in", 3)), "--out", str(tmp_path / "out")]
    if fine:
        main([*command, "--resize", str(side)])
        assert len(open_source(str(tmp_path / "out"))) == 3
        return
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--resize", str(side)])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    assert f"resize must be at least 8 pixels, not {side}" in capsys.readouterr().err


def test_shards_that_hold_no_usable_pair_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "_image", lambda data, resize: ("jpg", b"no image"))
    with pytest.raises(ValueError, match="no usable pair to write to out"):
        pack(str(write_folder(tmp_path / "in", 3)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("count", [4, 5])
def test_what_a_manifest_says_of_captions_and_images(count: int, tmp_path: Path) -> None:
    """An even and an odd number have other medians."""
    words, files = [5, 1, 1, 3, 2][:count], []
    for number, many in enumerate(words):
        stream = io.BytesIO()
        Image.new("RGB", (20 + 3 * number, 40)).save(stream, "png")
        files += [(f"{number}.png", stream.getvalue()), (f"{number}.txt", b"ab " * many)]
    found = describe_shards([write_tar(tmp_path / "a.tar", files)])
    assert (found.pairs, found.shards[0].pairs) == (count, count)
    assert found.captions == {
        "mean_words": sum(words) / count,
        "median_words": statistics.median(words),
        "max_words": 5,
        "mean_characters": 3 * sum(words) / count - 1,
    }
    assert found.images == {"median_width": 20 + 3 * (count - 1) / 2, "median_height": 40}


def test_describing_many_pairs_takes_no_more_memory(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("0.png", pairs(1)[0][0]), ("0.txt", b"x\n" * 9_000)])
    peaks = []
    tracemalloc.start()
    try:
        for count in (1, 1, 20):  # what the first call imports is not of interest
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            assert describe_shards([tar] * count).pairs == count
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]


def test_a_manifest_of_less_than_nothing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members(pairs(1)))
    tree = {"format": 1, "pairs": -5, "shards": [{"name": "a.tar", "pairs": -5, "bytes": 1, "sha256": ""}]}
    (tmp_path / FILE).write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"a\.tar holds no pairs"):
        open_source(str(tmp_path))


def test_manifests_that_are_not_ours(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({"pairs": 3}))
    assert read_manifest(tmp_path) is None
    for text in (
        "{",
        '{"format": 1, "pairs": 3, "shards": [{"file": "a"}]}',
        '{"format": 1, "pairs": 3, "shards": [3]}',
    ):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)
