"""Captions as they come."""

import time
from pathlib import Path

import pytest

from advflyp.data.pairs.samples import MAX_CAPTION_BYTES, Sample, Skipped, json_captions
from advflyp.errors import SkippedSample


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (b"a  red\tsquare \n", ("a red square",)),
        (b"one\r\n\r\n two \n", ("one", "two")),
        ("one\u2028line\x85of\x0btext\rtwo".encode(), ("one line of text", "two")),
        ("\ufeffmit BOM und ü".encode(), ("mit BOM und ü",)),
        (("one", " ", "two  words"), ("one", "two words")),
    ],
)
def test_captions_are_lines(caption: bytes | tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert Sample("k", b"", caption).captions() == expected


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "no caption"),
        (b" \n\t", "empty caption"),
        (("", " "), "empty caption"),
        ("ü".encode("latin-1"), "caption is not UTF-8"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "caption is too long"),
        (("x" * MAX_CAPTION_BYTES, "x"), "caption is too long"),
        # In bytes, and with the line breaks between them: as they are stored in a shard.
        (("狗" * (MAX_CAPTION_BYTES // 3 + 1),), "caption is too long"),
        (("x" * (MAX_CAPTION_BYTES // 2),) * 2, "caption is too long"),
    ],
)
def test_captions_that_cannot_be_used(caption: bytes | tuple[str, ...] | None, reason: str) -> None:
    with pytest.raises(SkippedSample, match=reason):
        Sample("k", b"", caption).captions()


def test_captions_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    assert Sample("k", None, tmp_path / "a.txt").captions() == ("from a file",)
    (tmp_path / "huge.txt").write_bytes(b"x" * 5_000_000)
    with pytest.raises(SkippedSample, match="too long"):
        Sample("k", None, tmp_path / "huge.txt").captions()
    with pytest.raises(SkippedSample, match="cannot be read"):
        Sample("k", None, tmp_path / "gone.txt").captions()


def test_pictures_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    assert Sample("k", str(tmp_path / "a.png")).image_bytes() == b"data"
    with pytest.raises(SkippedSample, match="image file cannot be read"):
        Sample("k", str(tmp_path / "gone.png")).image_bytes()
    with pytest.raises(SkippedSample, match="no image"):
        Sample("k").image_bytes()
    with pytest.raises(SkippedSample, match="duplicate key"):
        Sample("k", b"x", problem="duplicate key").image_bytes()


def test_skipped_names_the_first_of_each_kind() -> None:
    skipped = Skipped()
    for key in ("a", "b", "c"):
        skipped.add("truncated image", key)
    skipped.add("no caption", "d")
    assert skipped.describe() == "3 truncated image (such as a), 1 no caption (such as d)"


def test_endless_words() -> None:
    """A tokenizer takes quadratic time for them."""
    assert Sample("k", None, ("a" * 500,)).captions() == ("a" * 500,)
    for caption in ("a" * 501, "see " + "é" * 501 + " there", "字" * 501):
        with pytest.raises(SkippedSample, match="caption with an overlong word"):
            Sample("k", None, caption.encode()).captions()
    assert Sample("k", None, ("ab " * 2000,)).captions()
    began = time.process_time()
    for _ in range(20):
        assert Sample("k", None, (("a" * 500 + " ") * 39,)).captions()
    assert time.process_time() - began < 1, "looking for them takes no such time"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10_000,
        b'{"caption": ' + b"1" * 5_000 + b"}",
        b'{"caption": "a", "caption": "b"}',
        b"[1e400",
        b"\xff",
    ],
    ids=range(5),
)
def test_captions_that_are_no_json(data: bytes) -> None:
    with pytest.raises(SkippedSample):
        json_captions(data)
