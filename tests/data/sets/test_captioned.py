from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from advflyp.data.sets.captioned import CaptionedImages
from advflyp.model.clip import CLIP
from helpers import pairs, write_folder, write_tar

COCO = "a man rides a horse\nA rider on a brown horse. \n\n  two   words\nfour\nfive\n"


def coco_members(n: int, first: int = 0) -> list[tuple[str, bytes]]:
    """KEY.jpg with KEY.txt of five lines, as in wds_mscoco_captions."""
    return [
        member
        for index, (image, _) in enumerate(pairs(n), first)
        for member in ((f"s{index:07d}.png", image), (f"s{index:07d}.txt", COCO.encode()))
    ]


def test_the_layout_of_coco_and_flickr30k(tmp_path: Path, tiny: CLIP) -> None:
    folder = tmp_path / "wds_mscoco_captions" / "test"
    folder.mkdir(parents=True)
    (folder.parent / "dataset_type.txt").write_text("retrieval")
    (folder / "nshards.txt").write_text("2")
    write_tar(folder / "0.tar", coco_members(3))
    write_tar(folder / "1.tar", coco_members(4, first=3))
    for name in (folder.parent, folder, folder / "{0..1}.tar", folder / "*.tar"):
        pictures = CaptionedImages(name)
        assert len(pictures) == 7 and len(pictures.captions) == 35
        assert pictures.captions[:5] == [
            "a man rides a horse", "A rider on a brown horse.", "two words", "four", "five",
        ]  # fmt: skip
        assert pictures.owner.tolist() == [row for row in range(7) for _ in range(5)]
    assert pictures.entries[3].key == "1.tar:s0000003"
    batches = list(pictures.batches(tiny.preprocess, 4))
    assert [rows.tolist() for rows, _ in batches] == [[0, 1, 2, 3], [4, 5, 6]]
    assert batches[1][1].shape == (3, 3, 32, 32) and not pictures.unreadable


def test_img2dataset_and_folder_hold_the_same_pictures(tmp_path: Path, tiny: CLIP) -> None:
    members = []
    for index, (image, caption) in enumerate(pairs(5)):
        key = f"{index:04d}"
        # Picture last: the order within a sample is anybody's.
        members += [(f"{key}.json", b"{}"), (f"{key}.txt", caption.encode()), (f"{key}.png", image)]
    shard = CaptionedImages(write_tar(tmp_path / "00000.tar", members))
    folder = CaptionedImages(write_folder(tmp_path / "folder", 5))
    assert shard.captions == folder.captions == [caption for _, caption in pairs(5)]
    (a,), (b,) = (list(source.batches(tiny.preprocess, 8)) for source in (shard, folder))
    assert torch.equal(a[1], b[1])
    assert folder.entries[2].key == "0002.png"
    assert folder.sha256() == CaptionedImages(write_folder(tmp_path / "copy", 5)).sha256() != shard.sha256()
    first = folder.sha256()
    Image.new("RGB", (40, 40)).save(tmp_path / "folder" / "0002.png")
    assert CaptionedImages(tmp_path / "folder").sha256() != first


def test_every_source_of_pairs_will_do(tmp_path: Path, tiny: CLIP) -> None:
    folder, texts = write_folder(tmp_path / "folder", 7), [caption for _, caption in pairs(7)]
    names = [f"folder/{index:04d}.png" for index in range(7)]
    lines = [f'{name},"{text}"' for name, text in zip(names, texts, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["filepath,title", *lines]))
    images = [data for data, _ in pairs(7)]
    table = pa.table({"caption": [[text, f"also {text}"] for text in texts], "image": images})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    write_tar(tmp_path / "t.tar.gz", coco_members(7))
    ((_, expected),) = CaptionedImages(folder).batches(tiny.preprocess, 9)
    for name in ("t.csv", "t.parquet", "t.tar.gz"):
        ((_, images),) = CaptionedImages(tmp_path / name).batches(tiny.preprocess, 9)
        assert torch.equal(images, expected)
        part = CaptionedImages(tmp_path / name, limit=3, seed=1)
        ((_, some),) = part.batches(tiny.preprocess, 9)
        assert torch.equal(some, expected[part.places])
    assert CaptionedImages(tmp_path / "t.csv").captions == texts
    both = CaptionedImages(tmp_path / "t.parquet")
    assert both.captions == [caption for text in texts for caption in (text, f"also {text}")]
    assert both.owner.tolist() == [row for row in range(7) for _ in range(2)]


def test_a_shard_that_breaks_off_is_no_smaller_set(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", coco_members(200))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2 + 700])
    with pytest.raises(ValueError, match=r"a\.tar is a truncated shard; fetch it again"):
        CaptionedImages(shard)


def test_a_limit_draws_a_nested_subset(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", 30)

    def places(limit: int, seed: int = 0) -> list[int]:
        return CaptionedImages(folder, limit=limit, seed=seed).places.tolist()

    assert places(10) == sorted(places(10)) != list(range(10))
    assert set(places(4)) < set(places(10)) and places(10) != places(10, seed=1)
    assert places(99) == list(range(30))
    assert CaptionedImages(folder, limit=4).usable == 30


def test_what_cannot_be_used_is_named(tmp_path: Path, tiny: CLIP) -> None:
    members = coco_members(400)
    broken = [("x1.png", b"no picture"), ("x1.txt", b"a"), ("x2.png", members[0][1]), ("x3.txt", b"b")]
    broken += [("x4.png", members[0][1]), ("x4.txt", b" \n\n")]
    pictures = CaptionedImages(write_tar(tmp_path / "a.tar", members + broken))
    assert pictures.unreadable == {
        "a.tar:x2": "no caption", "a.tar:x3": "no image", "a.tar:x4": "empty caption",
    }  # fmt: skip
    rows = torch.cat([rows for rows, _ in pictures.batches(tiny.preprocess, 64)])
    assert rows.tolist() == list(range(400)), "x1 is the last one"
    assert pictures.unreadable["a.tar:x1"] == "not an image"
    assert len(pictures) == 400 and pictures.owner.max() == 399


def test_a_key_that_is_there_twice(tmp_path: Path, tiny: CLIP) -> None:
    """The first counts; the second, which cannot be used, takes no other image's captions away."""
    members = [(name, data if name.endswith("png") else name.encode()) for name, data in coco_members(150)]
    images = CaptionedImages(write_tar(tmp_path / "a.tar", [*members, *members[6:8]]))
    assert images.unreadable == {"a.tar:s0000003": "duplicate key"}
    rows = torch.cat([rows for rows, _ in images.batches(tiny.preprocess, 64)])
    assert len(rows) == len(images) == 150
    assert images.captions == [name for name, _ in members[1::2]]


def test_more_than_one_percent_stops(tmp_path: Path, tiny: CLIP) -> None:
    members = coco_members(60)
    pictures = CaptionedImages(write_tar(tmp_path / "a.tar", [*members, ("x.png", b""), ("x.txt", b"a")]))
    with pytest.raises(
        ValueError, match=r"more than 1% of 61 pairs cannot be used; .* a\.tar:x \(empty image file\)"
    ):
        list(pictures.batches(tiny.preprocess, 16))
    with pytest.raises(
        ValueError, match=r"more than 1% of 61 pairs cannot be used; .* a\.tar:x \(no caption\)"
    ):
        CaptionedImages(write_tar(tmp_path / "a.tar", [*members, ("x.png", b"")]))


def test_every_skipped_sample_counts(tmp_path: Path) -> None:
    """Also those of one name: half of this shard are copies."""
    path = write_tar(tmp_path / "a.tar", [*coco_members(100), *coco_members(1) * 2])
    with pytest.raises(ValueError, match="more than 1% of 102 pairs cannot be used.*(s0000000|sample 101)"):
        CaptionedImages(path)
    path = write_tar(tmp_path / "a.tar", [*coco_members(300), *coco_members(1) * 2])
    assert len(CaptionedImages(path).unreadable) == 2


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no pairs at nowhere .*: name a folder of name\.jpg"):
        CaptionedImages("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image: put a name.txt beside every name.jpg"):
        CaptionedImages(tmp_path / "empty")
    (tmp_path / "empty" / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 1 image but no caption"):
        CaptionedImages(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"of 1 pair cannot be used; .*: none\.tar:a \(no caption\)"):
        CaptionedImages(write_tar(tmp_path / "none.tar", [("a.png", b"x"), ("b.json", b"{}")]))
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"bad\.tar is a damaged shard; fetch it again"):
        CaptionedImages(tmp_path / "bad.tar")
    with pytest.raises(ValueError, match="holds 1 image with captions; retrieval needs two"):
        CaptionedImages(write_folder(tmp_path / "one", 1))
    with pytest.raises(ValueError, match="limit must be at least 2"):
        CaptionedImages(write_folder(tmp_path / "p", 3), limit=1)
