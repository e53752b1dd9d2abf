"""What a cell of a table is as a caption or an address; never Python's notation of it."""

from typing import Any

import pytest

from advflyp.data.pairs.cells import address_in, captions_in, image_in, names_a_file
from advflyp.errors import SkippedSample

NAN = float("nan")


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("a dog", ["a dog"]),
        ("[brackets] are words", ["[brackets] are words"]),
        ("[1, 2]", ["[1, 2]"]),
        ("{x}", ["{x}"]),
        ("b is a letter", ["b is a letter"]),
        ("None of them", ["None of them"]),
        ("1984", ["1984"]),
        # what is not there, as Python, pandas and SQL have it
        (None, []), (NAN, []), ("nan", []), (" None ", []), ("null", []), ("<NA>", []), ("", []), (b"", []), ([], []),
        # text by another name
        (b"a dog", ["a dog"]),
        ("gr\u00fcn".encode("utf-8-sig"), ["gr\u00fcn"]),
        (["a", None, "b", NAN], ["a", "b"]),
        (("a", b"b"), ["a", "b"]),
        ({"raw": "a dog", "tokens": ["a", "dog"], "sentid": 1}, ["a dog"]),
        ({"Raw": ["a", "b"]}, ["a", "b"]),
        ([{"raw": "a"}, {"raw": "b"}], ["a", "b"]),
        # what a CSV has of these
        ("['a dog', \"it's\"]", ["a dog", "it's"]),
        ('["a \\"dog\\"", "b\\u00fc", null]', ['a "dog"', "b\u00fc"]),
        ("['a dog' 'two\\ncats'\n 'three']", ["a dog", "two\ncats", "three"]),  # NumPy's, as pandas writes it
        ("b'a dog'", ["a dog"]),
        ("{'raw': 'a dog', 'sentid': 1}", ["a dog"]),
        ("[{'raw': 'a'}, {'raw': 'b'}]", ["a", "b"]),
        ("[]", []),
        # Templates of web pages, some of which Python reads as a set in a set, which it does not have.
        ("{{ 'Product' }}", ["{{ 'Product' }}"]), ("{{}}", ["{{}}"]), ("{['x']: 1}", ["{['x']: 1}"]),
    ],
)  # fmt: skip
def test_captions(cell: Any, captions: list[str]) -> None:
    assert captions_in(cell) == captions


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (7, "caption is not text"),
        (True, "caption is not text"),
        (1.5, "caption is not text"),
        ({"lang": "en"}, "caption is not text"),
        ([("en", "a dog")], "caption is not text"),  # Arrow's map
        ([["a", "dog"]], "caption is not text"),
        ([3], "caption is not text"),
        (b"\xff\xd8\xff", "caption is not UTF-8"),
    ],
)
def test_no_captions(cell: Any, reason: str) -> None:
    with pytest.raises(SkippedSample, match=reason):
        captions_in(cell)


@pytest.mark.parametrize(
    ("cell", "image"),
    [
        ("img/0.jpg", "img/0.jpg"),
        (" img/a b.jpg ", "img/a b.jpg"),
        (b"\xff\xd8 jpeg", b"\xff\xd8 jpeg"),
        (b"img/0.jpg", "img/0.jpg"),  # text, from writers that know bytes only
        (b"ends like a name.jpg \x00\n", b"ends like a name.jpg \x00\n"),
        ({"bytes": b"\x89PNG", "path": "0.png"}, b"\x89PNG"),
        ({"bytes": None, "path": "0.png"}, "0.png"),
        ({"bytes": b"", "path": "0.png"}, "0.png"),
        ({"bytes": None, "path": None}, None),
        ({"path": "0.png"}, "0.png"),
        (["0.png"], "0.png"),
        ([{"bytes": b"\x89PNG", "path": None}], b"\x89PNG"),
        ("['0.png']", "0.png"),
        ("{'bytes': None, 'path': '0.png'}", "0.png"),
        (None, None), (NAN, None), ("nan", None), ("None", None), ("", None), ([], None), (b"", None),
    ],
)  # fmt: skip
def test_images(cell: Any, image: bytes | str | None) -> None:
    assert image_in(cell) == image


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (["0.png", "1.png"], "several images in one row"),
        ("['0.png', '1.png']", "several images in one row"),
        (3, "neither an image nor the name of one"),
        ({"id": 3}, "neither an image nor the name of one"),
    ],
)
def test_no_images(cell: Any, reason: str) -> None:
    with pytest.raises(SkippedSample, match=reason):
        image_in(cell)


@pytest.mark.parametrize(
    ("cell", "address"),
    [
        ("https://a.b/c", "https://a.b/c"),
        (b" https://a.b/c\n", "https://a.b/c"),
        (["https://a.b/c"], "https://a.b/c"),
        ("['https://a.b/c']", "https://a.b/c"),
        (None, None), (NAN, None), ("nan", None), ("None", None), ([], None),
    ],
)  # fmt: skip
def test_addresses(cell: Any, address: str | None) -> None:
    assert address_in(cell) == address


@pytest.mark.parametrize("cell", [3, {"url": "x"}, b"\xff", ["https://a", "https://b"]])
def test_no_addresses(cell: Any) -> None:
    with pytest.raises(SkippedSample):
        address_in(cell)


def test_names_of_files() -> None:
    for text in ("a.jpg", "img/A B.PNG", "https://a.b/c?d", "s3://bucket/x"):
        assert names_a_file(text)
    for text in ("jpg", "image", "a dog", "see https://a.b for more", "", "1.5", "x.y"):
        assert not names_a_file(text)


def test_no_notation_takes_long() -> None:
    """Text that nearly is a list: no pattern tries every way to read it."""
    assert captions_in("[" + "'a' " * 20_000 + "x]") == ["[" + "'a' " * 20_000 + "x]"]
    assert captions_in("[" * 5_000 + "]" * 5_000) != []
