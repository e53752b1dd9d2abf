"""A look at pairs: the counts are those of training."""

import io
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from advflyp.cli.main import main
from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.sources import open_source
from advflyp.data.tools import check as module
from advflyp.data.tools.check import check
from advflyp.data.training import open_training
from advflyp.report.pages.pairs_page import check_page, histogram, write_page
from helpers import members, pairs, write_folder, write_tar


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    image = pairs(1)[0][0]
    bad = [
        ("a.png", b"<html>"), ("a.txt", b"x"), ("b.png", image[: len(image) // 2]), ("b.txt", b"x"), ("c.png", image),
        ("d.txt", b"<script>alert(1)</script>"), ("e.png", image), ("e.txt", b"\xff\xfe"), ("../f.png", image),
        ("g.png", image), ("g.txt", b"<script>alert(2)</script> & more"),
    ]  # fmt: skip
    return write_tar(tmp_path / "x.tar", members(pairs(20)) + bad)


def test_the_counts_are_those_of_training(dirty: Path) -> None:
    found = check(str(dirty))
    config = DataConfig(train=str(dirty), batch_size=7, max_bad_fraction=1)
    training = open_training(config, "pairs", ImageReader({"size": 16}), seed=0, device=torch.device("cpu"))
    assert len(list(training.epoch(0))) == 3
    assert found.skipped.counts == training.skipped.counts and sum(found.skipped.counts.values()) == 6
    assert (found.seen, found.usable) == (27, 21)
    assert found.sides == {48: 21} and found.words[3] == 21
    captions = Counter(caption for _, caption in pairs(20))
    assert found.repeated == sum(count - 1 for count in captions.values())


def test_damaged_jpegs_count_as_in_training(tmp_path: Path) -> None:
    """Training decodes JPEGs with libjpeg-turbo, the check with Pillow: both must refuse the same ones."""
    rng = random.Random(0)
    parts: list[tuple[str, bytes]] = []
    for number in range(200):
        stream = io.BytesIO()
        image = Image.open(io.BytesIO(pairs(16)[number % 16][0])).convert("RGB").resize((96, 80))
        image.save(stream, "JPEG", progressive=number % 2 == 0, quality=90)
        data = bytearray(stream.getvalue())
        place = rng.randrange(len(data))
        if number % 3 == 0:
            del data[place:]
        elif number % 3 == 1:
            data[place : place + 30] = rng.randbytes(30)
        parts += [(f"{number:03d}.jpg", bytes(data)), (f"{number:03d}.txt", b"x")]
    shard = str(write_tar(tmp_path / "j.tar", parts))
    found = check(shard)
    training = open_training(
        DataConfig(train=shard, batch_size=2, max_bad_fraction=1),
        "pairs",
        ImageReader({"size": 16}),
        seed=0,
        device=torch.device("cpu"),
    )
    assert len(list(training.epoch(0))) == found.usable // 2
    assert found.skipped.counts == training.skipped.counts
    assert {"truncated image", "not an image", "unreadable image"} <= found.skipped.counts.keys()


def test_half_a_character_is_no_reason_to_stop(tmp_path: Path) -> None:
    """JSON may hold a lone surrogate; UTF-8 may not."""
    folder = write_folder(tmp_path, 1)
    image = next(path.name for path in folder.iterdir() if path.suffix == ".png")
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": image, "caption": "a cat \ud83d"}))
    found = check(str(tmp_path / "t.jsonl"))
    assert found.sheet[0].captions == ("a cat ?",)
    assert "a cat ?" in write_page(tmp_path / "out", check_page(found)).read_text()


def test_repeated_captions_are_counted_among_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pairs(1)[0][0]
    captions = ["a", "b", "a", "c", "c", "b"]
    parts = [(f"{number}.png", image) for number in range(6)]
    parts += [(f"{number}.txt", caption.encode()) for number, caption in enumerate(captions)]
    folder = write_tar(tmp_path / "x.tar", sorted(parts))
    assert check(str(folder)).repeated == 3
    monkeypatch.setattr(module, "REMEMBERED", 2)
    assert check(str(folder)).repeated == 2, "c is not remembered"


def test_the_page_stands_alone_and_escapes_everything(dirty: Path) -> None:
    page = check_page(check(str(dirty)))
    assert "<script" not in page and "&lt;script&gt;alert(2)&lt;/script&gt; &amp; more" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert page.count("data:image/jpeg") == 21
    assert "not an image" in page and "x.tar:a" in page


def test_the_sheet_is_a_uniform_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHEET", 5)
    monkeypatch.setattr(module, "read_image", lambda data: module.Image.new("RGB", (9, 9)))
    folder = write_tar(tmp_path / "s.tar", members([(b"x", "caption")] * 20))
    drawn = Counter(one.key for seed in range(300) for one in check(str(folder), seed=seed, workers=1).sheet)
    assert len(drawn) == 20 and all(45 < count < 110 for count in drawn.values())


def test_damaged_parquet_files_are_counted_and_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        rows = [{"image": data, "caption": caption} for data, caption in pairs(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 is not all that it takes")
    found = check(str(tmp_path))
    assert (found.seen, found.usable) == (6, 4)
    assert found.skipped.counts == {"damaged Parquet file": 2}
    assert found.skipped.examples == {"damaged Parquet file": str(tmp_path / "a.parquet")}
    with pytest.raises(ValueError, match=r"a\.parquet is not a readable Parquet file"):
        open_source(str(tmp_path))
    (tmp_path / "c.parquet").unlink()
    found = check(str(tmp_path))
    assert (found.seen, found.usable) == (2, 0)


def test_damaged_tables_of_paths_are_counted_and_passed_over(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 6)
    names = sorted(str(path) for path in folder.iterdir() if path.suffix == ".png")
    for name, some in (("a", names[:3]), ("b", names[3:])):
        table = pa.table({"image": some, "caption": [f"caption {one}" for one in some]})
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="none")
    path = tmp_path / "a.parquet"
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 100 + path.read_bytes()[104:])
    found = check(str(tmp_path / "*.parquet"))
    assert found.usable == 3 and found.skipped.counts == {"damaged Parquet file": 1}


def test_a_limit_and_nothing_usable(tmp_path: Path) -> None:
    assert check(str(write_folder(tmp_path / "f", 30)), limit=7).seen == 7
    found = check(str(write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.txt", b"x")])))
    assert found.usable == 0 and "Length of the captions" not in check_page(found)


def test_a_long_tail_ends_in_the_last_bar() -> None:
    counts = Counter(dict.fromkeys(range(1, 21), 100)) + Counter({900: 1})
    (axes,) = histogram(counts, "words of a caption", "captions", width=700).axes
    assert sum(bar.get_height() for bar in axes.patches) == sum(counts.values())  # type: ignore[attr-defined]
    assert len(axes.patches) == 20 and "(the last bar: 20 and more, to 900)" in axes.get_xlabel()
    # Of bars that are several words wide, the label names where the last one begins.
    counts = Counter(dict.fromkeys(range(101), 10)) + Counter({300: 2})
    (axes,) = histogram(counts, "words of a caption", "captions", width=700).axes
    last = max(axes.patches, key=lambda bar: bar.get_x())  # type: ignore[attr-defined]
    begin = round(last.get_x() + last.get_width() / 2 - 1)  # type: ignore[attr-defined]
    above = sum(count for value, count in counts.items() if value >= begin)
    assert last.get_height() == above  # type: ignore[attr-defined]
    assert f"(the last bar: {begin} and more, to 300)" in axes.get_xlabel()


def test_the_command(dirty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "check", str(dirty), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "21 of 27 pairs can be used (77.8 %)" in out and "caption is not UTF-8" in out
    assert (tmp_path / "out" / "index.html").is_file()
    main(["data", "check", str(dirty), "--out", str(tmp_path / "out")])
    useless, site = tmp_path / "t.csv", tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("mine")
    useless.write_text("image,caption\ngone/0.png,one\ngone/1.png,two\n")
    for arguments, message in (
        ([str(tmp_path / "gone")], "there are no pairs at"),
        ([str(useless), "--out", str(tmp_path / "page")], f"no pair of {useless} can be used: 2 image file"),
        ([str(dirty), "--out", str(dirty)], "is a file; name a folder with --out"),
        ([str(dirty), "--out", str(site)], "index.html was not written by advflyp, or was changed since"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "check", *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert (site / "index.html").read_text() == "mine"
    assert (tmp_path / "page" / "index.html").is_file(), "what is wrong can be looked at all the same"
