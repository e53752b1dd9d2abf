"""What is wrong with a file of JSON, TOML or text is one sentence, whatever it is."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advflyp import documents
from advflyp.config import read_toml
from advflyp.documents import parse_json, parse_toml, read_json, read_json_object, read_text
from advflyp.limits import MAX_DEPTH, MAX_RECIPE_BYTES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON)
@settings(max_examples=50, deadline=None)
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    def as_floats(value: Any) -> Any:
        if isinstance(value, list | dict):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {key: as_floats(inner) for key, inner in items}
        is_long = isinstance(value, int) and len(str(value)) > 20
        return float(value) if is_long else value

    assert as_floats(parse_json(json.dumps(value))) == as_floats(value)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0dn1e.-', max_size=200).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_value_or_a_reason(data: bytes) -> None:
    for parse in (parse_json, parse_toml):
        try:
            parse(data)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[" * 200_000, "nested more than 64 levels deep"),
        (b'{"a":' * 200_000, "nested more than 64 levels deep"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested more than 64 levels deep"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"a": "\xe9"}', "not UTF-8"),
        (b"\xff\xfe[", "not UTF-8"),
        (b"\x00\x01", "Expecting value"),
    ],
)
def test_damaged_json(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(data)
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.json is damaged: .*{reason}.*; remove it"):
        read_json(path, "; remove it")


def test_numbers_without_end() -> None:
    """They become floats: no computation with them raises an OverflowError."""
    assert parse_json("1" * 5000) == math.inf and parse_json("-" + "1" * 400) == -math.inf
    assert parse_json("1e400") == math.inf and math.isnan(parse_json("NaN"))
    assert parse_json(str(2**63)) == 2**63 and isinstance(parse_json("1" * 30), float)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark(encoding: str) -> None:
    assert parse_json('{"é": [1]}'.encode(encoding)) == {"é": [1]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a=" + b"[" * 100_000, "nested more than 64 levels deep"),
        (b".".join([b"a"] * 100_000) + b"=1", "nested more than 64 levels deep"),
        (b"[" + b" . ".join([b'"a.b"'] * 100) + b"]", "nested more than 64 levels deep"),
        (b"a = " + b"1" * 5000, "more than 64 bits"),
        (b"a = 1" + b"0" * 400, "more than 64 bits"),
        (b"a = [[0x" + b"f" * 10_000 + b"]]", "more than 64 bits"),
        (b"a = 1\na = 2", "Cannot overwrite a value"),
        (b'a = "\xe9"', "not UTF-8"),
        (b"#" * (MAX_RECIPE_BYTES + 1), "larger than 256 kB"),
    ],
)
def test_damaged_toml(data: bytes, reason: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match=reason):
        parse_toml(data)
    assert time.process_time() - began < 2, "a key of 100,000 parts alone takes tomllib a minute"
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.toml .*{reason}"):
        read_toml(tmp_path / "x.toml")


@pytest.mark.parametrize("text", ['\\"', "\\\" '", "'\"."])
def test_long_strings_of_odd_quotes_are_read(text: str) -> None:
    """Where each sign may begin a key, the search for long ones once took half a minute; `tests/fuzz` bounds it."""
    value = json.dumps(text * ((MAX_RECIPE_BYTES - 100) // (2 * len(text))))
    assert parse_toml(f"a = {value}") == {"a": json.loads(value)}


def test_long_values_of_recipes_are_no_long_keys() -> None:
    values = ", ".join(f"0.{number}" for number in range(200))
    text = f'[optim]\nlr = [{values}]\n[data]\ntrain = "{"/".join(["v1.0"] * 200)}"\n'
    assert len(parse_toml(text)["optim"]["lr"]) == 200


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(ValueError, match=r"cannot read .*fifo\.json: not a regular file"):
        read_json(tmp_path / "fifo.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="it does not hold an object; make it anew"):
        read_json_object(tmp_path / "list.json", "; make it anew")
    with pytest.raises(ValueError, match="/dev/zero is larger than 256 kB; name another file"):
        read_toml("/dev/zero")
    monkeypatch.setattr(documents, "MAX_LIST_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="/dev/zero is larger than 1 MB"):
        read_text(Path("/dev/zero"))
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1 << 20)
    (tmp_path / "large.json").write_text(" " * (1 << 20) + "1")
    with pytest.raises(ValueError, match=r"large\.json: is larger than 1 MB"):
        read_json(tmp_path / "large.json")
