"""Command lines from dataclasses: a field is an option, the text below it its help, a mistake a one-line `ValueError`.

    @dataclass
    class Eval:
        \"\"\"Measure …\"\"\"

        model: Annotated[str, Arg("MODEL", positional=True)]
        sets: tuple[str, ...] = ("mini",)
        \"\"\"Datasets, …\"\"\"

`advflyp eval mini --sets a b` and `--sets a,b` are the same. What a value may be is decided by `config.convert`, as in
a recipe.
"""

import argparse
import ast
import dataclasses
import inspect
import os
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from advflyp.config import Typed, check_there, convert, nearest, suggest
from advflyp.terminal import say

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Arg:
    """How a field stands on the command line, as an annotation of its type.

    Attributes:
        metavar: What the help calls a value.
        positional: Given by its place instead of its name.
        least: The smallest number that makes sense. By default 1 for an integer; a float has no bound.
        commas: Whether "a,b" is two items of a list. Texts that may hold commas are split at spaces only.
        input: For a path, or a pattern of paths, that has to be there already: how the message begins where it is not.
        output: Whether the value is a path to write to, and of what kind: it is checked before anything is computed.
        hidden: Neither an option nor in the help.
    """

    metavar: str | None = None
    positional: bool = False
    least: float | None = None
    commas: bool = True
    input: str | None = None
    output: Literal["file", "folder"] | None = None
    hidden: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """Commands by name; a command is a dataclass with a method `run`."""

    about: str
    commands: Mapping[str, "type | Group"]

    def help(self, prog: str) -> str:
        """What --help prints."""
        lines = [f"usage: {prog} COMMAND …", "", self.about, ""]
        for name, command in self.commands.items():
            about = command.about if isinstance(command, Group) else inspect.cleandoc(command.__doc__ or "")
            first = about.split("\n\n")[0].replace("\n", " ")
            lines += textwrap.wrap(first, 96, initial_indent=f"  {name:12} ", subsequent_indent=" " * 15)
        return "\n".join([*lines, "", f"`{prog} COMMAND --help` explains one."])


def find_command(group: Group, words: Sequence[str], prog: str) -> tuple[type, list[str], str]:
    """The command that the words begin with, the rest of them, and what the user called it.

    --help prints and exits. ValueError where there is no such command.
    """
    name, rest = (words[0], list(words[1:])) if words else ("", [])
    if name in ("-h", "--help"):
        say(*group.help(prog).splitlines())
        sys.exit(0)
    if not name:
        raise ValueError(f"name a command: {', '.join(group.commands)}; see {prog} --help")
    if name.startswith("-"):
        raise ValueError(f"{prog} has no option {name}; options follow a command, see {prog} --help")
    found = group.commands.get(name)
    if found is None:
        raise ValueError(f"{prog} has no command '{name}'{suggest(name, group.commands)}")
    prog = f"{prog} {name}"
    return find_command(found, rest, prog) if isinstance(found, Group) else (found, rest, prog)


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a command: its name as typed, its type without annotations, and how it stands there."""

    field: str
    hint: Any
    optional: bool
    arg: Arg
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.metavar if self.arg.positional else self.flag

    @property
    def metavar(self) -> str:
        if self.arg.metavar is not None:
            return self.arg.metavar
        one = self.hint if self.item is None else self.item
        if typing.get_origin(one) is Literal:
            return "{" + ",".join(map(str, typing.get_args(one))) + "}"
        return {int: "N", float: "NUMBER", Path: "PATH"}.get(one, self.field.upper())

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def item(self) -> Any:
        """The type of a list's items; None for what is no list."""
        arguments = typing.get_args(self.hint)
        return arguments[0] if typing.get_origin(self.hint) is tuple and arguments[-1] is Ellipsis else None

    @property
    def count(self) -> str | int | None:
        """How many words it takes, as argparse writes it."""
        if self.item is not None:
            return "*" if self.arg.positional and not self.required else "+"
        if typing.get_origin(self.hint) is tuple:
            return len(typing.get_args(self.hint))
        return "+" if typing.get_origin(self.hint) is dict else None

    def value(self, words: Any) -> Any:
        """What was typed as a value of the field; ValueError where it cannot be one."""
        for word in [words] if isinstance(words, str) else words:
            if not word.strip():
                raise ValueError(f"{self.name} is empty; give it a value, or leave it out")
        if self.optional and self.hint is not str and words == "none":
            return None
        if self.item is not None:
            parts = self.split(words) if self.arg.commas else words
            return tuple(_one(part, self.item, self.name) for part in parts)
        if typing.get_origin(self.hint) is tuple:
            kinds = typing.get_args(self.hint)
            return tuple(_one(word, kind, self.name) for word, kind in zip(words, kinds, strict=True))
        if typing.get_origin(self.hint) is dict:
            return _mapping(words, self.name)
        found = _one(words, self.hint, self.name)
        least = 1 if self.arg.least is None and self.hint is int else self.arg.least
        if least is not None and found < least:
            raise ValueError(f"{self.name} must be at least {least:g}, not {found:g}")
        return found

    def split(self, words: Sequence[str]) -> list[str]:
        """The items of a list that is separated by spaces, by commas, or by both."""
        parts = [part.strip() for word in words for part in split_commas(word)]
        if not any(parts):
            raise ValueError(f"{self.name} is empty; give it a value, or leave it out")
        return [part for part in parts if part]


def split_commas(word: str) -> list[str]:
    """ "a,b" → ["a", "b"]; commas inside {braces} and in the names of files that exist do not separate."""
    if "," not in word or os.path.exists(word):
        return [word]
    parts, depth = [""], 0
    for sign in word:
        depth += (sign == "{") - (sign == "}")
        if sign == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def options_of(cls: type) -> list[Option]:
    """The fields of a command's dataclass, but for hidden ones."""
    hints, texts = typing.get_type_hints(cls, include_extras=True), _texts(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint, arg = hints[field.name], Arg()
        if typing.get_origin(hint) is typing.Annotated:
            hint, *notes = typing.get_args(hint)
            arg = next((note for note in notes if isinstance(note, Arg)), arg)
        optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
        if optional:
            hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        if not arg.hidden:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            found.append(Option(field.name, hint, optional, arg, default, texts.get(field.name, "")))
    return found


def parse(cls: type[T], words: Sequence[str], prog: str) -> T:
    """The dataclass filled from the words of a command line; --help prints and exits.

    Args:
        cls: A dataclass whose fields may be annotated with `Arg`.
        words: The command line behind the command's name.
        prog: The command as the user called it.

    Raises:
        ValueError: For an unknown option, a missing or an impossible value, a path that cannot be written to.
    """
    options = options_of(cls)
    parser = _parser(cls, options, prog)
    try:
        given, unknown = parser.parse_known_intermixed_args(_joined(words, options))
    except argparse.ArgumentError as error:
        name = error.argument_name or prog
        if error.message.startswith("expected"):
            several = [one.count for one in options if one.flag == name and isinstance(one.count, int)]
            needs = f"takes {several[0]} values" if several else "needs a value"
            raise ValueError(f"{name} {needs}; see {prog} --help") from None
        raise ValueError(f"{name}: {error.message}") from None
    if unknown:
        raise ValueError(_unknown(unknown, cls, options, prog))
    values: dict[str, Any] = {}
    for option in options:
        typed = getattr(given, option.field)
        if typed is None or typed == []:
            continue  # left out
        values[option.field] = typed if option.hint is bool else option.value(typed)
    for option in options:
        if option.arg.input is not None and option.field in values:
            value = values[option.field]
            for one in value if isinstance(value, tuple) else [value]:
                check_there(str(one), option.arg.input)
    for option in options:
        path = values.get(option.field, option.default)
        if option.arg.output is not None and path is not None:
            path = path[-1] if isinstance(path, tuple) else path
            check_output(path, option.arg.output, option.name)
    return cls(**values)


def arguments(cls: type[T]) -> T:
    """`parse` for a script of its own: its mistakes are one line and exit code 2."""
    try:
        return parse(cls, sys.argv[1:], Path(sys.argv[0]).name)
    except ValueError as error:
        say(f"{Path(sys.argv[0]).name}: {error}", to_stderr=True)
        sys.exit(2)


def check_output(path: Path, kind: Literal["file", "folder"], name: str) -> None:
    """ValueError unless a file or folder can be written at `path`, as far as that shows beforehand.

    Nothing is left behind: what is written on trial has no name.
    """
    import tempfile

    if path.exists():
        if kind == "folder" and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder with {name}")
        if kind == "file" and path.is_dir():
            raise ValueError(
                f"{path} is a folder; name a file with {name}, for example {path / 'results.jsonl'}"
            )
        if kind == "file" and not path.is_file():
            raise ValueError(f"{path} is no ordinary file; name another with {name}")
        if not os.access(path, os.W_OK):
            raise ValueError(f"no permission to write to {path}; name another {kind} with {name}")
    near = next(place for place in (path, *path.absolute().parents) if place.exists())
    if near == path and kind == "file":
        near = near.absolute().parent
    if not near.is_dir():
        raise ValueError(f"{near} is no folder; name another {kind} with {name}")
    try:
        with tempfile.TemporaryFile(dir=near) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ValueError(
            f"cannot write to {near} ({error.strerror}); name another {kind} with {name}"
        ) from None


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        say(*self.format_help().splitlines())

    def error(self, message: str) -> NoReturn:
        missing = message.partition("required: ")[2]
        if missing:
            raise ValueError(f"{missing.replace(', ', ' and ')} is missing; see {self.prog} --help")
        raise ValueError(message)


def _parser(cls: type, options: Sequence[Option], prog: str) -> argparse.ArgumentParser:
    about = inspect.cleandoc(cls.__doc__ or "")
    notes = getattr(cls, "notes", None)
    parser = _Parser(
        prog=prog,
        description=about,
        epilog=None if notes is None else notes(),
        allow_abbrev=False,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for option in options:
        how: dict[str, Any] = {"help": _help(option), "default": None}
        if option.hint is bool:
            how |= {"action": "store_true"}
        else:
            how |= {"metavar": option.metavar}
            if option.count is not None:
                how |= {"nargs": option.count}
            if option.item is not None and not option.arg.positional:
                how |= {"action": "extend"}
        if option.arg.positional:
            if option.count is None and not option.required:
                how |= {"nargs": "?"}
            parser.add_argument(option.field, **how)
        else:
            parser.add_argument(option.flag, dest=option.field, required=option.required, **how)
    return parser


def _help(option: Option) -> str:
    default = option.default
    if option.required or default is None or default == () or default == {} or option.hint is bool:
        shown = ""
    else:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    text = f"{option.help} (default: {shown})" if shown else option.help
    return text.strip().replace("%", "%%")


def _joined(words: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The words, a list with commas in its first word being one argument: what comes behind it stands alone."""
    lists = {option.flag for option in options if option.item is not None and option.arg.commas}
    left, found = list(words), []
    while left:
        word = left.pop(0)
        if word == "--":
            return [*found, word, *left]
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        if word in lists and left and not left[0].startswith("--") and len(split_commas(left[0])) > 1:
            value = left.pop(0)
            # --sets a, b
            while left and (value.endswith(",") or left[0].startswith(",")):
                value += left.pop(0)
            word = f"{word}={value}"
        found.append(word)
    return found


def _unknown(words: Sequence[str], cls: type, options: Sequence[Option], prog: str) -> str:
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    if not word.startswith("-"):
        return f"'{word}' is one argument too many; see {prog} --help"
    known = [option.flag for option in options if not option.arg.positional]
    known += getattr(cls, "also_known", list)()
    wanted = word.lstrip("-").replace("-", "_").lower()
    # The beginning of one, or the end of one in a table: --lr for --optim.lr.
    part = [
        flag
        for flag in known
        if wanted in (flag.rpartition(".")[2], flag[2 : 2 + len(wanted)].replace("-", "_"))
    ]
    hint = f"; did you mean '{part[0]}'?" if len(part) == 1 else nearest(word, known)
    return f"{prog} has no option {word}{hint or f'; see {prog} --help'}"


def _one(word: str, hint: Any, name: str) -> Any:
    if hint is Path:
        return _path(word, name)
    if typing.get_origin(hint) is Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        if word.lower() not in choices:
            raise ValueError(f"{name} cannot be '{word}'{suggest(word, choices)}")
        return word.lower()
    return convert(Typed(word), hint, name)


def _path(word: str, name: str) -> Path:
    path = Path(word)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # to be made, or for the command to find missing
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}: {textwrap.shorten(word, 60)}") from None
    return path


def _mapping(words: Sequence[str], name: str) -> Mapping[str, str]:
    """ "a x b y", "a=x b=y" and "a=x,b=y"."""
    if any("=" in word for word in words):
        parts = [part.partition("=") for word in words for part in split_commas(word)]
        pairs = [(key, value) for key, _, value in parts]
    elif len(words) % 2:
        raise ValueError(f"{name} takes pairs, for example {name} url=URL caption=TEXT")
    else:
        pairs = list(zip(words[::2], words[1::2], strict=True))
    if any(not key or not value for key, value in pairs):
        raise ValueError(f"{name} takes pairs, for example {name} url=URL caption=TEXT")
    return dict(pairs)


def _texts(cls: type) -> dict[str, str]:
    """The string below each field, of the class and of those that it is made from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _texts_in(inspect.getsourcefile(base) or "").get(base.__name__, {})
    return found


@cache
def _texts_in(file: str) -> dict[str, dict[str, str]]:
    """The strings below the fields of every class of a source file."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for field, below in zip(node.body, node.body[1:], strict=False):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                        value=ast.Constant(value=str(text))
                    ):
                        texts[name] = " ".join(text.split())
    return found
