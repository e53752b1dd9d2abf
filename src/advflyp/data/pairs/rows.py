"""Text tables: CSV, TSV, JSON lines or a JSON list; with any common delimiter, quoted or not.

A row with more fields than the header has an unquoted delimiter in an unknown value: the table is refused.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from advflyp.config import suggest
from advflyp.data.pairs.cells import names_a_file
from advflyp.documents import decode, parse_json
from advflyp.limits import MAX_DOCUMENT_BYTES, MAX_TABLE_BYTES
from advflyp.wording import counted

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES)
# Quotation marks as in RFC 4180, and as ordinary characters.
QUOTED: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL, "strict": True, "skipinitialspace": True}
PLAIN: dict[str, Any] = {"quoting": csv.QUOTE_NONE}
# This many bytes show whether JSON is a list, by its beginning in UTF-8 or UTF-16, with or without a byte order mark.
_HEAD = 4096
_LIST = re.compile(rb"(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?[\s\0]*\[")


@dataclass(frozen=True)
class TextTable:
    """Names of the columns, and the rows: each with its line number and {name: cell} for the cells it has."""

    address: str
    names: list[str]
    rows: Callable[[], Iterator[tuple[int, dict[str, Any]]]]


def read_text_table(address: str, file: BinaryIO) -> TextTable:
    """The table in a seekable file.

    Raises:
        ValueError: The file is not UTF-8, too large or damaged JSON. `rows` raises it for a row with too many fields.
    """
    is_json = address.lower().endswith(JSON_SUFFIXES)
    is_list = is_json and _LIST.match(file.read(_HEAD)) is not None
    file.seek(0)
    limit = MAX_DOCUMENT_BYTES if is_list else MAX_TABLE_BYTES
    data = file.read(limit + 1)
    if len(data) > limit and is_list:
        raise ValueError(
            f"{address} is a list of more than {limit >> 20} MB; save it as JSON lines (.jsonl), one object per line, "
            "or as Parquet"
        )
    if len(data) > limit:
        raise ValueError(f"{address} is larger than {limit >> 30} GB; save it as Parquet")
    try:
        text = decode(data)
    except UnicodeDecodeError:
        raise ValueError(f"{address} is not UTF-8; save it as UTF-8") from None
    if is_json:
        return _json_table(address, text, is_list=is_list)
    return _delimited(address, text)


def find_column(
    given: str | None, known: Sequence[str], names: Sequence[str], table: str, *, what: str, option: str
) -> str:
    """The column `given`, else the first of the `known` names, ignoring case; ValueError unless exactly one matches.

    Args:
        given: The name that the user gave, if any.
        known: Known names, the likeliest first.
        names: The columns of `table`.
        table: For messages.
        what, option: What is looked for, and the option that names its column.
    """
    if not names:
        raise ValueError(f"{table} is empty")
    lower = {name.lower(): name for name in reversed(names)}
    likeliest = next((lower[name] for name in known if name in lower), None)
    found = likeliest if given is None else given if given in names else None
    if found is None and any(map(names_a_file, names)):
        raise ValueError(
            f"{table} has no header: its first row is {', '.join(names)[:100]}; put a row with the names of the "
            f"columns above it, such as {known[0]}"
        )
    if found is None and given is not None:
        raise ValueError(f"{table} has no column '{given}'{suggest(given, names)}")
    if found is None:
        raise ValueError(
            f"{table} has no {what} column by a known name; name one of {', '.join(names)} with {option}"
        )
    if list(names).count(found) > 1:
        raise ValueError(f"{table} has two columns '{found}'; rename one")
    return found


def _json_table(address: str, text: str, *, is_list: bool) -> TextTable:
    if is_list:
        try:
            listed = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{address} is damaged: {error}") from None

        def rows() -> Iterator[tuple[int, Any]]:
            return enumerate(listed, 1)

    else:

        def rows() -> Iterator[tuple[int, Any]]:
            for number, line in enumerate(io.StringIO(text), 1):
                if line.strip():
                    yield number, _parsed(line, address, number)

    # Any row may lack a key that others have.
    names: dict[str, None] = {}
    for number, row in rows():
        if not isinstance(row, dict):
            raise ValueError(
                f"{address} must hold objects with an image and a caption, in a list or one per line; row {number} is "
                f"{str(row)[:60]!r}"
            )
        names |= dict.fromkeys(row)
    return TextTable(address, list(names), rows)


def _parsed(line: str, address: str, number: int) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        first = "is not a JSON object, and the file is not a list of objects"
        what = "is cut off or no JSON object" if number > 1 else first
        raise ValueError(f"{address} is damaged: line {number} {what} ({error})") from None


def _delimited(address: str, text: str) -> TextTable:
    delimiter = _delimiter(text, "\t" if address.lower().endswith(".tsv") else ",")
    header, text, dialect = _best_reading(address, text, delimiter)

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        fields = _fields(text, delimiter, dialect)
        next(fields, None)
        for line, row in fields:
            row = _trimmed(row, len(header))
            if len(row) > len(header):
                raise ValueError(
                    f"{address}, line {line}: {counted(len(row), 'field')} where the header has {len(header)}; put a "
                    f"value that holds a {DELIMITERS[delimiter]} in double quotes, and double the quotes inside it"
                )
            yield line, dict(zip(header, map(_unwrapped, row) if dialect is PLAIN else row, strict=False))

    return TextTable(address, header, rows)


def _delimiter(text: str, usual: str) -> str:
    """The delimiter of the header: a tab or the usual delimiter if it has any, else the most frequent one."""
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    return next((sign for sign in ("\t", usual) if sign in header), max(DELIMITERS, key=header.count))


def _readings(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Possible readings of the quotation marks, the likeliest first: each a text and its dialect."""
    if '"' in text:
        yield text, QUOTED
    if '\\"' in text:
        # Not with `escapechar`: then Python's reader accepts anything after a closing mark.
        yield text.replace('\\"', '""'), QUOTED
    yield text, PLAIN


def _best_reading(address: str, text: str, delimiter: str) -> tuple[list[str], str, dict[str, Any]]:
    """The names of the columns, and the text and dialect that leave most rows whole."""
    best: tuple[bool, int, int] | None = None
    found: tuple[list[str], str, dict[str, Any]] = [], text, PLAIN
    for reading, dialect in _readings(text):
        try:
            header, whole, misfits = _tried(reading, delimiter, dialect)
        except csv.Error:
            continue
        # If the names are quoted, so is the rest.
        score = '"' not in "".join(header), whole, -misfits
        if best is None or score > best:
            best, found = score, ([_unwrapped(name).strip() for name in header], reading, dialect)
    if best is None:
        raise ValueError(f"{address} has a field of more than {csv.field_size_limit():,} characters")
    return found


def _tried(text: str, delimiter: str, dialect: dict[str, Any]) -> tuple[list[str], int, int]:
    """The header; the number of rows that are certainly whole; that of rows whose fields do not match the header.

    Between a quotation mark and the next one, rows may be swallowed as one long caption, and lines of a long caption
    may look like rows. A line with the right number of tabs is a row; one with commas must also name a file.
    """
    fields = _fields(text, delimiter, dialect)
    _, header = next(fields, (0, []))
    whole = misfits = 0
    for _, row in fields:
        row = _trimmed(row, len(header))
        if len(row) != len(header):
            misfits += 1
        elif delimiter == "\t" or any(map(names_a_file, row)):
            whole += 1
    return header, whole, misfits


def _fields(text: str, delimiter: str, dialect: dict[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """The last line number and the fields of every row that is not blank, the header first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect)
    for row in reader:
        if any(not field.isspace() for field in row if field):
            yield reader.line_num, row


def _trimmed(row: list[str], columns: int) -> list[str]:
    """The row without trailing empty fields beyond the header's."""
    while len(row) > columns and not row[-1].strip():
        row.pop()
    return row


def _unwrapped(field: str) -> str:
    """The field without quotation marks around the whole of it, if all others in it are doubled."""
    inner = field.strip()[1:-1]
    whole = field.strip() == f'"{inner}"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else field
