import ast
import io
import os
import sys
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.terminal import nobody_reads, prepare_streams, say
from hostile import NAMES

PACKAGE = Path(__file__).parent.parent / "src/advflyp"
# What runs in img2dataset's own environment has nothing of this package.
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if "isolated" not in path.parts]


# Called inside a test: pytest puts its own stream back after a fixture.
def ascii_stdout(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Standard output as in a locale without UTF-8."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    return written


def nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is a pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))


def test_every_letter_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_stdout(monkeypatch)
    prepare_streams()
    say("ε \ud83d\x1b[2J", "two\nlines")
    assert written.getvalue() == b"\\u03b5 \\ud83d\\x1b[2J\ntwo\\nlines\n"


def test_help_in_a_locale_without_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_stdout(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(["eval", "--help"])
    assert stop.value.code == 0
    assert b"zero-shot accuracy" in written.getvalue()


def test_a_closed_stream_drops_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    main(["--version"])


@pytest.mark.parametrize("words", [["--help"], ["eval", "--help"], ["--version"], ["recipes", "--keys"]])
def test_a_reader_that_has_gone_ends_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `| head` does it: the exit code of SIGPIPE, and nothing is left to be flushed."""
    nobody_listens(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 141
    sys.stdout.flush()


def test_a_pipe_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream, os.fdopen(reading, encoding="utf-8") as reader:
        monkeypatch.setattr(sys, "stdout", stream)
        assert not nobody_reads()
        say("heard")
        assert reader.readline() == "heard\n"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_an_error_that_quotes_a_name_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", name])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.isprintable() or error[:-1].isprintable()
    assert len(error.splitlines()) == 1


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]


def test_everything_is_printed_by_two_modules() -> None:
    """Elsewhere nothing prints past what makes text safe."""
    found = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in SOURCES
        if path.name not in ("terminal.py", "console.py")
        for call in calls(path)
        if isinstance(call.func, ast.Name) and call.func.id in ("print", "Console")
    ]
    assert found == []


def test_every_text_file_has_its_encoding() -> None:
    """In a locale without UTF-8, Python would read and write another one."""

    def is_text(call: ast.Call) -> bool:
        match call.func:
            case ast.Attribute(attr="read_text"):
                return not call.args
            case ast.Attribute(attr="write_text"):
                return len(call.args) < 2
            case ast.Name(id="open") | ast.Attribute(value=ast.Name(id="os"), attr="fdopen"):
                mode = call.args[1] if len(call.args) > 1 else ast.Constant("r")
                return isinstance(mode, ast.Constant) and "b" not in str(mode.value)
            case ast.Attribute(value=ast.Name(id="subprocess")):
                return any(word.arg == "text" for word in call.keywords)
        return False

    found = [
        f"{path.relative_to(PACKAGE)}:{call.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in calls(path)
        if is_text(call) and not any(word.arg == "encoding" for word in call.keywords)
    ]
    assert found == []
