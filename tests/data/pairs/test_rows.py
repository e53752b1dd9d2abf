"""Rows of text tables: every way to separate and quote fields, and rows that do not fit."""

import csv
import io
import json
from typing import Any

import pytest

from advflyp.data.pairs import rows as rows_module
from advflyp.data.pairs.rows import find_column, read_text_table

CAPTIONS = ["a red circle", "a dog, running", 'a "quoted" word', "two; or | three", "", "  the end  "]


def table(name: str, text: str) -> tuple[list[str], list[dict[str, Any]]]:
    found = read_text_table(name, io.BytesIO(text.encode()))
    return found.names, [cells for _, cells in found.rows()]


def captions(name: str, text: str, column: str = "title") -> list[str]:
    return [cells[column] for cells in table(name, text)[1]]


def written(texts: list[str], **dialect: Any) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, **dialect)
    writer.writerow(["filepath", "title"])
    writer.writerows([f"img/{number}.jpg", text] for number, text in enumerate(texts))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"},
        {"doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL},
        {"quoting": csv.QUOTE_ALL, "lineterminator": "\r"},
    ],
)
def test_whatever_separates_and_quotes(name: str, delimiter: str, how: dict[str, Any]) -> None:
    texts = [*CAPTIONS, "two\nlines, of one\n\ncaption"]
    names, rows = table(name, written(texts, delimiter=delimiter, **how))
    assert names == ["filepath", "title"]
    assert [(row["filepath"], row["title"].strip()) for row in rows] == [
        (f"img/{number}.jpg", text.strip()) for number, text in enumerate(texts)
    ]


def rows_of(texts: list[str], separator: str = "\t", image: str = "img/{}.jpg") -> str:
    lines = [image.format(number) + separator + text for number, text in enumerate(texts)]
    return f"filepath{separator}title\n" + "\n".join(lines) + "\n"


UNQUOTED = [
    ["a red circle", '"we are back', "two cats", "blue circle", 'a tree" he said', "the end"],
    ["a red circle", '"we are back', "two cats", 'he said "so"', "the end"],
    ['"never closed', "two cats", "the end"],
    ["two cats", 'opened and closed "', '"', "the end"],
    ["two cats", '"a" and "b"', "6\" wide", "the end"],
]  # fmt: skip


@pytest.mark.parametrize("texts", UNQUOTED)
@pytest.mark.parametrize("separator", ["\t", ","])
def test_quotation_marks_that_mean_nothing_swallow_no_row(texts: list[str], separator: str) -> None:
    assert captions("t.csv", rows_of(texts, separator)) == texts
    # Tabs tell rows apart by themselves, whatever images are called.
    assert captions("t.tsv", rows_of(texts, image="no{}")) == texts


def test_marks_around_a_whole_value_go_although_others_are_wrong() -> None:
    texts = ['"two cats"', '"he said "so""', '"one ""more"""', "the end"]
    quoted = rows_of(texts, ",").replace("filepath,title", '"filepath","title"')
    assert captions("t.csv", quoted) == ["two cats", '"he said "so""', 'one "more"', "the end"]
    assert captions("t.csv", rows_of(texts, ",")) == ["two cats", '"he said "so""', 'one "more"', "the end"]


def test_lines_of_a_long_caption_are_no_rows() -> None:
    """Each line of it has as many commas as a row has."""
    assert captions("t.tsv", '"filepath"\t"title"\n"a.jpg"\t"two\n\tcats"\n') == ["two\n\tcats"]
    texts = [
        "a dog, running\nthe grass, green\na tree, tall",
        "two cats",
        'say "x,\ny"',
        "see a.jpg\nor, b.png here",
    ]
    assert captions("t.csv", written(texts)) == texts
    assert captions("t.csv", written(texts[:1])) == texts[:1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", rows_of(["one", "a dog, running"], ","), r"line 3: 3 fields .* header has 2; .* holds a comma in d"),
        ("t.csv", rows_of(["one", "a dog; running"], ";"), r"line 3: 3 fields .* holds a semicolon in"),
        ("t.tsv", rows_of(["a\tdog", "two"]), r"line 2: 3 fields .* holds a tab in"),
        ("t.csv", rows_of(['"a "good" dog, running"', "two"], ","), r"line 2: 3 fields .* double the quotes inside"),
        # The row with the comma is not swallowed by the marks around it.
        ("t.csv", rows_of(['"open', "a, b", "two", 'closed"'], ","), r"line 3: 3 fields"),
    ],
)  # fmt: skip
def test_rows_with_more_fields_than_the_header(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(name, text)


def test_rows_with_fewer_fields_and_blank_ones() -> None:
    names, rows = table("t.csv", "filepath,title,licence,\n\na.jpg,one,,,,\n , \nb.jpg,two\n,,\nc.jpg\n")
    assert names == ["filepath", "title", "licence", ""]
    assert [(row["filepath"], row.get("title")) for row in rows] == [
        ("a.jpg", "one"),
        ("b.jpg", "two"),
        ("c.jpg", None),
    ]


def test_spaces_around_names_and_separators() -> None:
    names, rows = table("results.csv", 'image_name| comment_number| comment\na.jpg| 0| "two men" .\n')
    assert names == ["image_name", "comment_number", "comment"] and len(rows) == 1
    assert captions("t.csv", 'filepath, title\na.jpg, "a dog, running"\n') == ["a dog, running"]


def test_json_in_every_form() -> None:
    rows = [{"id": 1}, {"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "caption": None}]
    for name in ("t.jsonl", "t.ndjson", "t.json"):
        for text in ("\n".join(map(json.dumps, rows)) + "\n\n", json.dumps(rows), json.dumps(rows, indent=1)):
            assert table(name, text) == (["id", "image", "caption"], rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", '{"image": "a"}\n{"image": "b', "is damaged: line 2 is cut off or no JSON object"),
        (
            "t.json",
            '{"image":\n"a"}',
            "is damaged: line 1 is not a JSON object, and the file is not a list of objects",
        ),
        ("t.json", '[{"image": "a"}', "is damaged: Expecting"),
        ("t.jsonl", '{"image": "a"}\n3\n', "must hold objects .* row 2 is '3'"),
        ("t.jsonl", "[" * 100_000, "is damaged"),
    ],
)
def test_json_that_cannot_be_read(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(name, text)


def test_columns_are_found() -> None:
    def find(given: str | None, *names: str) -> str:
        return find_column(given, ("image", "img"), names, "t.csv", what="image", option="--image-column")

    assert find(None, "IMG", "x") == "IMG" and find(None, "img", "Image") == "Image" and find("x", "x") == "x"
    for given, names, message in (
        (None, ("a", "b"), "t.csv has no image column by a known name; name one of a, b with --image-column"),
        ("wo", ("who", "was"), r"has no column 'wo'; did you mean 'who'\?"),
        (None, ("image", "image"), "has two columns 'image'; rename one"),
        (
            None,
            ("img/0.jpg", "a dog"),
            "t.csv has no header: its first row is img/0.jpg, a dog; put a row with",
        ),
        ("image", ("a dog", "https://a.b/c"), "t.csv has no header"),
    ):
        with pytest.raises(ValueError, match=message):
            find(given, *names)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_long_list_is_not_read_whole(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"image": "a.png", "caption": "a cat"}
    data = f" \n{json.dumps([row] * 1000)}".encode(encoding)
    assert len(list(read_text_table("t.json", io.BytesIO(data)).rows())) == 1000
    monkeypatch.setattr(rows_module, "MAX_DOCUMENT_BYTES", 1 << 10)
    read = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            found = super().read(size)
            read = max(read, self.tell())
            return found

    with pytest.raises(
        ValueError, match=r"t\.json is a list of more than 0 MB; save it as JSON lines \(\.jsonl\)"
    ):
        read_text_table("t.json", Counted(data))
    assert read < len(data)
    lines = (json.dumps(row) + "\n").encode() * 1000
    assert len(list(read_text_table("t.json", io.BytesIO(lines)).rows())) == 1000


def test_a_row_of_a_million_empty_fields() -> None:
    text = "filepath,title\na.jpg,a dog" + "," * 1_000_000
    assert table("t.csv", text)[1] == [{"filepath": "a.jpg", "title": "a dog"}]
