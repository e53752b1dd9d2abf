"""Command lines from functions: the signature defines the arguments, the docstring is the help.

Positional-only parameters are positional arguments, keyword-only ones are options, and `Arg` says more about a type.
`advflyp eval mini --sets a b` and `--sets a,b` are the same. tyro parses the words and prints the help;
`config.convert` checks the values, as in a recipe; a mistake is a `ValueError` of one sentence.
"""

import functools
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from advflyp.cli.paths import check_kind, check_model_path, check_output, path_of
from advflyp.config import Typed, check_there, convert, nearest, suggest


@dataclass(frozen=True)
class Arg:
    """How a parameter appears on the command line, as an annotation of its type.

    Attributes:
        metavar: The name of a value in the help.
        least: The smallest number allowed; by default 1 for an integer.
        commas: Whether "a,b" is two items of a list.
        input: For a path, or a pattern of paths, that must exist: the beginning of the message if it does not.
        output: For a path to write to: whether a file or a folder. It is checked before anything is computed.
        is_model: Whether it names a model, which may be a path.
        hidden: Whether it is neither an option nor in the help.
        help: What it means, if a command's docstring does not say so.
    """

    metavar: str | None = None
    least: float | None = None
    commas: bool = True
    input: str | None = None
    output: Literal["file", "folder"] | None = None
    is_model: bool = False
    hidden: bool = False
    help: str = ""


AS_IN_EVAL = "As in `advflyp eval`."
Model = Annotated[str, Arg("MODEL", is_model=True, help=AS_IN_EVAL)]
Datasets = Annotated[tuple[str, ...], Arg("DATASET", help=AS_IN_EVAL)]
Attacks = Annotated[tuple[str, ...], Arg("ATTACK", help=AS_IN_EVAL)]
Radii = Annotated[tuple[str, ...], Arg("EPS", help=AS_IN_EVAL)]
Norm = Annotated[Literal["linf", "l2"], Arg(help="Norm of the threat model.")]
Prompts = Annotated[tuple[str, ...], Arg("PROMPT", commas=False, help="As in `advflyp predict`.")]
BatchSize = Annotated[int, Arg(help="Images per batch.")]
Device = Annotated[str, Arg(help="auto, cpu, cuda, cuda:1 or mps.")]
AtLeast0 = Annotated[int, Arg(least=0)]
Seed = Annotated[int, Arg(least=0, help="Random seed.")]
Pairs = Annotated[
    str,
    Arg(
        "PAIRS",
        input="there are no pairs at",
        help="A folder, shards, a CSV, TSV, JSONL or Parquet table, or hf:NAME, as for data.train.",
    ),
]
FirstPairs = Annotated[int, Arg(help="The first N pairs (default: all).")]
PairCount = Annotated[int, Arg(help="Number of pairs, for remote shards without a manifest.")]
Column = Annotated[str, Arg("COLUMN")]
ImageColumn = Annotated[str, Arg("COLUMN", help="Column of a table that holds images, if not detected.")]
CaptionColumn = Annotated[str, Arg("COLUMN", help="Column of a table that holds captions, if not detected.")]
OutFile = Annotated[Path, Arg("FILE", output="file")]
OutFolder = Annotated[Path, Arg("FOLDER", output="folder")]


@dataclass(frozen=True)
class Option:
    """A parameter of a command: its type without annotations and `None`, its `Arg`, and its help."""

    parameter: inspect.Parameter
    hint: Any
    arg: Arg
    help: str

    @property
    def is_positional(self) -> bool:
        return self.parameter.kind is inspect.Parameter.POSITIONAL_ONLY

    @property
    def flag(self) -> str:
        return "--" + self.parameter.name.strip("_").replace("_", "-")

    @property
    def name(self) -> str:
        """Its name in messages."""
        return self.metavar if self.is_positional else self.flag

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.hint) is tuple and typing.get_args(self.hint)[-1] is Ellipsis

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of the values: for a list the type of its items, for a fixed tuple one type per item."""
        if typing.get_origin(self.hint) is tuple:
            return tuple(kind for kind in typing.get_args(self.hint) if kind is not Ellipsis)
        return (self.hint,)

    @property
    def nargs(self) -> Any:
        """How many words it takes."""
        return "*" if self.is_list or typing.get_origin(self.hint) is dict else len(self.kinds)

    @property
    def metavar(self) -> str:
        if self.arg.metavar is not None:
            return self.arg.metavar
        kind = self.kinds[0]
        if typing.get_origin(kind) is Literal:
            return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        return {int: "N", float: "NUMBER", Path: "PATH"}.get(kind, self.parameter.name.upper())

    def value(self, words: Sequence[str]) -> Any:
        """Convert what was typed to a value of the parameter; ValueError if it cannot be one."""
        if not words:
            raise ValueError(f"{self.name} {'is missing' if self.is_positional else 'needs a value'}")
        if self.is_list and self.arg.commas:
            words = [part for word in words for part in split_commas(word) if part] or [""]
        if not all(word.strip() for word in words):
            raise ValueError(f"{self.name} is empty; give it a value, or leave it out")
        if typing.get_origin(self.hint) is dict:
            return _mapping(words, self.name)
        kinds = self.kinds * len(words) if self.is_list else self.kinds
        values = tuple(self._one(word, kind) for word, kind in zip(words, kinds, strict=True))
        return values if typing.get_origin(self.hint) is tuple else values[0]

    def _one(self, word: str, kind: Any) -> Any:
        if kind is Path:
            return path_of(word, self.name)
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            if word.lower() not in choices:
                raise ValueError(f"{self.name} cannot be '{word}'{suggest(word, choices)}")
            return word.lower()
        found = convert(Typed(word), kind, self.name)
        least = 1 if self.arg.least is None and kind is int else self.arg.least
        if least is not None and found < least:
            raise ValueError(f"{self.name} must be at least {least:g}, not {found:g}")
        return found


def options_of(command: Callable[..., Any]) -> list[Option]:
    """The parameters of a command, except for hidden ones."""
    import docstring_parser

    hints = typing.get_type_hints(command, include_extras=True)
    explained = {
        one.arg_name: one.description for one in docstring_parser.parse(command.__doc__ or "").params
    }
    found = []
    for parameter in inspect.signature(command).parameters.values():
        hint, arg = hints[parameter.name], Arg()
        while (origin := typing.get_origin(hint)) in (types.UnionType, typing.Union, Annotated):
            if origin is Annotated:
                hint, arg = typing.get_args(hint)
            else:
                hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
        if not arg.hidden:
            text = explained.get(parameter.name) or arg.help
            found.append(Option(parameter, hint, arg, " ".join(text.split())))
    return found


def parse(
    command: Callable[..., Any], words: Sequence[str], prog: str, also_known: Sequence[str] = ()
) -> Callable[..., Any]:
    """Bind a command to the arguments of a command line, ready to be called; --help prints and exits.

    Args:
        command: Positional-only parameters are positional arguments, keyword-only ones options. A type may be annotated
            with `Arg`.
        words: The words after the command's name.
        prog: The command as the user called it.
        also_known: Further options to suggest for a misspelled one.

    Raises:
        ValueError: For an unknown option, a missing or invalid value, or a path that cannot be read or written.
    """
    import tyro
    from tyro._errors import ParseErrorEvent, on_parse_error

    options = {option.parameter.name: option for option in options_of(command)}

    def refuse(event: ParseErrorEvent) -> None:
        raise ValueError(_mistake(event, prog, options, also_known))

    with on_parse_error(refuse):
        call = tyro.cli(
            _for_tyro(command, options.values()),
            prog=prog,
            args=_gathered(words, options.values()),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    bound = inspect.signature(command).bind(*call.args, **call.keywords).arguments
    given = [(options[name], value) for name, value in bound.items() if value is not None]
    for option, value in given:
        if option.arg.is_model:
            check_model_path(value)
        if option.arg.input is not None:
            for one in value if isinstance(value, tuple) else (value,):
                check_there(str(one), option.arg.input)
                check_kind(one, option.metavar.lower(), option.name, option.help)
    for option, value in given:
        if option.arg.output is not None:
            check_output(value[-1] if isinstance(value, tuple) else value, option.arg.output, option.name)
    return functools.partial(_naming_flags(call.func, options.values()), *call.args, **call.keywords)


def _naming_flags(command: Callable[..., Any], options: Collection[Option]) -> Callable[..., Any]:
    """The command; its `ValueError`s, which may come from functions of Python, name options as they are typed."""

    @functools.wraps(command)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return command(*arguments, **named)
        except ValueError as error:
            if (said := with_flags(str(error), options)) == str(error):
                raise
            raise ValueError(said) from error

    return call


def with_flags(message: str, options: Collection[Option]) -> str:
    """The message with `--batch-size` for `batch_size`, and `--limit` for a `limit` that must be something."""
    for option in options:
        name = option.parameter.name
        if option.is_positional:
            continue
        if "_" in name:
            message = re.sub(rf"(?<![\w./'\"`-]){name}(?![\w./'\"`=-])", option.flag, message)
        elif option.kinds[0] in (int, float):  # others may be the beginning of a path or of a sentence
            message = re.sub(rf"^{name}(?= must )", option.flag, message)
    return message


def _for_tyro(command: Callable[..., Any], options: Any) -> Callable[..., functools.partial[Any]]:
    """A function with the same parameters, in types that tyro knows; it returns the command with its arguments."""
    import tyro

    def stub(*arguments: Any, **named: Any) -> functools.partial[Any]:
        return functools.partial(command, *arguments, **named)

    parameters = []
    for option in options:
        is_required = option.parameter.default is inspect.Parameter.empty
        about = tyro.conf.arg(
            name=option.flag[2:],
            help=option.help,
            help_behavior_hint="(required)" if is_required else _default,
        )
        annotation: Any = Annotated[bool, about]
        if option.hint is not bool:
            spec = tyro.constructors.PrimitiveConstructorSpec(
                nargs=option.nargs,
                metavar=f"{option.metavar} …" if option.nargs == "*" else option.metavar,
                instance_from_str=option.value,
                is_instance=lambda _: True,
                str_from_instance=_shown,
            )
            annotation = Annotated[object, spec, about]
        parameters.append(option.parameter.replace(annotation=annotation))
    stub.__doc__ = command.__doc__
    stub.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    stub.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return stub


def _shown(default: Any) -> list[str]:
    parts = default if isinstance(default, tuple) else (default,)
    return [str(part) for part in parts if part is not None]


def _default(shown: str) -> str:
    """The end of the help: the default; nothing for a flag, or if the default is `None` or empty."""
    return "" if shown in ("", "False") else f"(default: {shown})"


def _mistake(event: Any, prog: str, options: Mapping[str, Option], also_known: Sequence[str]) -> str:
    """An error of tyro's as one sentence, instead of the box that tyro prints."""
    match type(event).__name__:
        case "InstantiationFailure":
            return event.message
        case "BadValue":
            option = options[event.argument.field.intern_name]
            needs = "needs a value" if option.nargs == 1 else f"takes {option.nargs} values"
            return f"{option.name} {needs}; see {prog} --help"
        case "MissingArgs" if not event.unrecognized_tokens:
            names = [options[missing.arg.field.intern_name].name for missing in event.missing_arguments]
            return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing; see {prog} --help"
    words = getattr(event, "unrecognized_tokens", None) or getattr(event, "tokens", None) or [""]
    known = [option.flag for option in options.values() if not option.is_positional]
    return _unknown(words, [*known, *also_known], prog)


def _unknown(words: Sequence[str], known: Sequence[str], prog: str) -> str:
    word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
    if not word.startswith("-"):
        return f"'{word}' is one argument too many; see {prog} --help"
    wanted = word.lstrip("-").replace("-", "_").lower()
    # The beginning of an option, or the end of a recipe key: --lr for --optim.lr.
    part = [
        flag
        for flag in known
        if wanted in (flag.rpartition(".")[2], flag[2 : 2 + len(wanted)].replace("-", "_"))
    ]
    hint = f"; did you mean '{part[0]}'?" if len(part) == 1 else nearest(word, known)
    return f"{prog} has no option {word}{hint or f'; see {prog} --help'}"


def _gathered(words: Sequence[str], options: Any) -> list[str]:
    """The words with each list's values gathered in one place, since they may be given in parts: --sets a --sets b,c.

    If the first word of a list has commas, the words after it do not belong to the list.
    """
    lists = {
        option.flag: option.arg.commas for option in options if option.is_list and not option.is_positional
    }
    switches = {option.flag for option in options if option.hint is bool}
    left, others, found = list(words), [], dict[str, list[str]]()
    while left and left[0] != "--":
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if equals and flag in switches:
            raise ValueError(f"{flag} takes no value; give it alone, or leave it out")
        if flag not in lists:
            others.append(word)
            continue
        values = found.setdefault(flag, [])
        if equals:
            values.append(value)
            continue
        if lists[flag] and left and not left[0].startswith("--") and len(split_commas(left[0])) > 1:
            values.append(left.pop(0))
            while left and (values[-1].endswith(",") or left[0].startswith(",")):
                values[-1] += left.pop(0)
            continue
        while left and not left[0].startswith("--"):
            values.append(left.pop(0))
    return [*others, *(part for flag, values in found.items() for part in (flag, *values)), *left]


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
    return [part.strip() for part in parts]


def _mapping(words: Sequence[str], name: str) -> dict[str, str]:
    """ "a=x b=y" and "a=x,b=y"."""
    parts = (part.partition("=") for word in words for part in split_commas(word))
    pairs = {key: value for key, _, value in parts}
    if not all(pairs) or not all(pairs.values()):
        raise ValueError(f"{name} takes pairs, for example {name} url=URL caption=TEXT")
    return pairs
