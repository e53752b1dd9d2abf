"""Strict configuration: from plain mappings (TOML, command-line overrides) to keyword-only dataclasses.

Every configuration dataclass is defined beside the code it configures; this module only fills them.
Unknown keys, wrong types and unreadable files raise a `ValueError` with one sentence that names the key or file.
"""

import dataclasses
import difflib
import functools
import glob
import math
import os
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from advflyp.documents import parse_toml, read_bytes
from advflyp.limits import MAX_RECIPE_BYTES

T = TypeVar("T")

# The largest integer that torch accepts, and the largest number that float32 can still compute with.
LARGEST_INTEGER, LARGEST_NUMBER = 2**63 - 1, 1e30
# How many characters of a wrong value a message quotes.
LONGEST_SHOWN = 200


class Typed(str):
    """Text from a command line, still to be converted to the type its key needs.

    In a file, a number in quotes ("128") is reported as a mistake; on a command line every value is text.
    """


def read_toml(path: str | Path) -> dict[str, Any]:
    """The recipe at `path` as a nested dict; ValueError if it is missing, unreadable or not TOML."""
    data = read_bytes(path, MAX_RECIPE_BYTES)
    try:
        return parse_toml(data)
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def override(tree: dict[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """As `merge`, with dotted keys such as "optim.lr" and values that may still be strings."""
    above: dict[str, dict[str, Any]] = {}
    for key, value in dotted.items():
        table, _, name = key.partition(".")
        if not name:
            raise ValueError(f"'{key}' is not a recipe key; write it as table.key, for example optim.lr")
        if not isinstance(tree.get(table, {}), dict):
            raise ValueError(f"'{table}' must be a table in the recipe, not a single value")
        above.setdefault(table, {})[name] = Typed(value) if isinstance(value, str) else value
    return merge(tree, above)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the tables of the recipe `above` into those of `below`, key by key.

    A [method] with another name replaces the one below as a whole, since the keys below belong to another method.
    """
    merged = dict(below)
    for name, table in above.items():
        lower = merged.get(name)
        if not (isinstance(lower, dict) and isinstance(table, dict)):
            merged[name] = table
            continue
        is_another = name == "method" and table.get("name", lower.get("name")) != lower.get("name")
        if name == "optim" and "lr" in table:  # `lr_steps` says what the rate below is meant for
            lower = {key: value for key, value in lower.items() if key != "lr_steps"}
        merged[name] = table if is_another else lower | table
    return merged


class SeveralMistakes(ValueError):
    """Several error messages in one, numbered."""

    def __init__(self, found: Sequence[str]) -> None:
        self.found = list(found)
        listed = "  ".join(f"({number}) {text}" for number, text in enumerate(found, 1))
        super().__init__(f"{len(found)} mistakes: {listed}")


class Mistakes:
    """Collects the errors of the checks in several `with mistakes.noted():`; a user sees all of them at `end`."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within the block, a ValueError is kept for `end`."""
        try:
            yield
        except SeveralMistakes as error:
            self.found += error.found
        except ValueError as error:
            self.found.append(str(error))

    def end(self) -> None:
        """Raise a ValueError if any was kept."""
        if len(self.found) == 1:
            raise ValueError(self.found[0])
        if self.found:
            raise SeveralMistakes(self.found)


def build(cls: type[T], tree: Mapping[str, Any], *, at: str = "") -> T:
    """Fill the dataclass `cls` from a mapping; every key must be a field and every value must have its type."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    hints = _hints(cls)
    values: dict[str, Any] = {}
    mistakes = Mistakes()
    for name, value in tree.items():
        with mistakes.noted():
            unknown([name], fields, at)
            values[name] = convert(value, hints[name], f"{at}{name}")
    is_misspelled = not tree.keys() <= fields.keys()  # perhaps a required one
    for name, field in fields.items():
        if _is_required(field) and name not in tree and not is_misspelled:
            mistakes.found.append(f"the recipe lacks {at}{name}")
    mistakes.end()
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def fill(cls: type[T], record: Any) -> T:
    """Fill the dataclass `cls` from an untrusted JSON object; ValueError says what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError("it is not an object")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if _is_required(field) and field.name not in record:
            raise ValueError(f"it lacks '{field.name}'")
    return build(cls, record)


def unknown(given: Iterable[str], known: Iterable[str], at: str = "") -> None:
    """ValueError if keys of `given` are not in `known`; suggests the nearest name for each."""
    known = list(known)
    mistakes = Mistakes()
    for key in given:
        with mistakes.noted():
            if key not in known:
                raise ValueError(f"unknown key '{at}{_cut(key)}'{suggest(key, known, at)}")
    mistakes.end()


def check_method_keys(given: Iterable[str], method: str, known: Mapping[str, Iterable[str]]) -> None:
    """ValueError for keys of the table "method" that this method does not have; names the methods that do.

    Args:
        given: The keys.
        method: The name of the method.
        known: Method name → keys, for all methods including this one.
    """
    keys = {name: list(keys) for name, keys in known.items()}
    mistakes = Mistakes()
    for key in given:
        others = sorted(name for name in keys if key in keys[name])
        with mistakes.noted():
            if others and method not in others:
                listed = " and ".join(filter(None, [", ".join(others[:-1]), others[-1]]))
                raise ValueError(
                    f"method.{key} is a key of {listed}, not of {method}: leave it out, or choose a recipe for the "
                    "method you mean (`advflyp recipes`)"
                )
            unknown([key], keys[method], "method.")
    mistakes.end()


def suggest(word: str, known: Iterable[str], at: str = "") -> str:
    """The end of an error message: the nearest known word ("; did you mean 'x'?"), else all known words."""
    known = sorted(known)
    return nearest(word, known, at) or f"; known: {', '.join(known)}"


def nearest(word: str, known: Iterable[str], at: str = "") -> str:
    """The nearest known word as "; did you mean 'x'?", or nothing if none resembles it."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{at}{found[0]}'?" if found else ""


def nearest_path(name: str, known: Collection[str] = ()) -> str:
    """The nearest existing path, in the words of `nearest`; empty if `name` exists or no path resembles it.

    Args:
        name: A path; its first missing part is compared with the other names in that folder.
        known: Other words that may have been meant, if the path has a single part.
    """
    path = Path(name).expanduser()
    try:
        missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), None)
        beside = [] if missing is None else os.listdir(missing.parent)
    except (OSError, ValueError):  # a name that no file can have
        return ""
    if missing is None:
        return ""
    beside = [found for found in beside if not found.startswith(".")]
    words = [*known, *beside] if path.parent == Path() else beside
    for close in difflib.get_close_matches(missing.name, words, n=1, cutoff=0.65):
        found = missing.with_name(close) / path.relative_to(missing)
        if close in known or found.exists():
            return f"; did you mean '{close if close in known else found}'?"
    return ""


def check_there(address: str, missing: str, known: Collection[str] = ()) -> None:
    """ValueError if a local address does not exist; begins with `missing` and suggests the nearest path.

    Args:
        known: Other words that may have been meant.

    The contents are not checked.
    """
    # Remote addresses and hf:NAME are not checked; below, FILE::MODEL and patterns are.
    if "://" in address or address.startswith("hf:"):
        return
    path = os.path.expanduser(address.partition("::")[0])
    if any(sign in path for sign in "*?[{"):
        found = "{" in path or os.path.exists(path) or glob.glob(path)
    else:
        found = os.path.exists(path)
    if not found:
        raise ValueError(f"{missing} {address}{nearest_path(path, known)}")


def at_least(least: int, config: Any, prefix: str, *names: str) -> None:
    """ValueError for a number below `least` among these fields.

    Args:
        prefix: Put before a field's name in messages, such as "train."; with "--" the name is written as an option.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int | float) and value < least:
            shown = name.replace("_", "-") if prefix == "--" else name
            raise ValueError(f"{prefix}{shown} must be at least {least}, not {value}")


def above_zero(config: Any, prefix: str, *names: str) -> None:
    """ValueError for a number among these fields that is not above 0; `prefix` as in `at_least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{prefix}{name} must be above 0, not {value:g}")


def convert(value: Any, hint: Any, key: str) -> Any:
    """Convert `value` to the type `hint`. A float may be a fraction such as "4/255"; a `Typed` text any value."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be a table, not {_shown(value)}")
        return build(typing.cast(type, hint), value, at=f"{key}.")
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":  # TOML has no null
            return None
        kinds = [a for a in arguments if a is not types.NoneType]
        words = [word for a in kinds if typing.get_origin(a) is Literal for word in typing.get_args(a)]
        if value in words:
            return words[words.index(value)]
        kind = min(kinds, key=lambda a: typing.get_origin(a) is Literal)
        try:
            return convert(value, kind, key)
        except ValueError as error:
            if not words or kind not in (int, float):
                raise
            raise ValueError(f"{error}; or write {' or '.join(map(str, words))}") from None
    if origin is Literal:
        if value not in arguments:
            raise ValueError(
                f"{key} cannot be {_shown(value)}; it is one of {', '.join(map(str, arguments))}"
            )
        return value
    if origin is tuple:
        parts = _parts(value, key) if isinstance(value, Typed) else value
        if not isinstance(parts, list | tuple):
            raise ValueError(f"{key} must be a list, not {_shown(value)}")
        hints = [arguments[0]] * len(parts) if arguments[-1] is ... else arguments
        if len(parts) != len(hints):
            raise ValueError(f"{key} must be a list of {len(hints)}, not {_shown(value)}")
        return tuple(convert(part, hint, key) for part, hint in zip(parts, hints, strict=True))
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{key} must be a list, not {_shown(value)}")
        return [convert(part, arguments[0], key) for part in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be a table, not {_shown(value)}")
        return {name: convert(part, arguments[1], f"{key}.{name}") for name, part in value.items()}
    if hint is not str and isinstance(value, str) and not isinstance(value, Typed):
        _check_unquoted(value, hint, key)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise ValueError(f"{key} must be true or false, not {_shown(value)}")
    if hint is int:
        return integer(value, key)
    if hint is float:
        return number(value, key)
    if hint is str and isinstance(value, str):
        return str(value)
    raise ValueError(f"{key} must be a string, not {_shown(value)}")


def _parts(text: str, key: str) -> Any:
    """A list from the command line: comma-separated words, or a TOML list in brackets."""
    if not text.lstrip().startswith("["):
        return [Typed(part.strip()) for part in text.split(",")]
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        raise ValueError(f"{key} must be a list such as [[160, 0.8], [224, 0.2]], not '{text}'") from None


def _check_unquoted(value: str, hint: Any, key: str) -> None:
    """ValueError for a quoted value in a file where a number, true or false is expected."""
    if hint is float and "/" in value:
        return
    convert(Typed(value), hint, key)
    raise ValueError(f'{key} is the text "{_cut(value)}"; write it without quotes: {_cut(value)}')


def integer(value: Any, key: str) -> int:
    """An int from a whole number or its text."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ValueError(f"{key} must be a whole number, not '{_cut(value)}'") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} must be a whole number, not {_shown(value)}")
    if abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{key} must be at most {LARGEST_INTEGER:,} in size")
    return value


def number(value: Any, key: str) -> float:
    """A float from a number, "0.01", "1e-4" or a fraction such as "4/255" or "0.5/255"."""
    if isinstance(value, str):
        try:
            above, slash, below = value.partition("/")
            value = float(above) / float(below) if slash else float(value)
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"{key} must be a number or a fraction such as 4/255, not '{_cut(value)}'"
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, not {_shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be a number, not {_shown(value)}")
    # Before `float`, which fails on very large ints.
    if abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{key} must be at most {LARGEST_NUMBER:g} in size")
    return float(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} …"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def as_tree(config: Any) -> dict[str, Any]:
    """A dataclass as a nested mapping that TOML can hold (None is left out, since it is the default)."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda pairs: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in pairs
            if value is not None
        },
    )
