"""A look at pairs: the counts are those of training."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from advflyp.cli import main
from advflyp.data import check as module
from advflyp.data.check import check
from advflyp.data.images import PictureReader
from advflyp.data.pairs import DataConfig, open_pairs
from advflyp.report.pairs_page import check_page, histogram
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
    training = open_pairs(config, PictureReader({"size": 16}), seed=0, device=torch.device("cpu"))
    assert len(list(training.epoch(0))) == 3
    assert found.dirt.counts == training.dirt.counts and sum(found.dirt.counts.values()) == 6
    assert (found.seen, found.usable) == (27, 21)
    assert found.sides == {48: 21} and found.words[3] == 21
    captions = Counter(caption for _, caption in pairs(20))
    assert found.repeated == sum(count - 1 for count in captions.values())


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


def test_a_limit_and_nothing_usable(tmp_path: Path) -> None:
    assert check(str(write_folder(tmp_path / "f", 30)), limit=7).seen == 7
    found = check(str(write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.txt", b"x")])))
    assert found.usable == 0 and "Length of the captions" not in check_page(found)


def test_a_long_tail_ends_in_the_last_bar() -> None:
    counts = Counter(dict.fromkeys(range(1, 21), 100)) + Counter({900: 1})
    (axes,) = histogram(counts, "words of a caption", "captions", 40, 700).axes
    assert sum(bar.get_height() for bar in axes.patches) == sum(counts.values())  # type: ignore[attr-defined]
    assert len(axes.patches) == 20 and "to 900" in axes.get_xlabel()


def test_the_command(dirty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "check", str(dirty), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "21 of 27 pairs can be used (77.8 %)" in out and "caption is not UTF-8" in out
    assert (tmp_path / "out" / "index.html").is_file()
    for arguments, message in (
        ([str(tmp_path / "gone")], "there are no training pairs at"),
        ([str(dirty), "--out", str(dirty)], "is a file; name a folder with --out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "check", *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
