"""Hashes that tell two attacks, or two models, of the user's own apart in results."""

import hashlib
import inspect
import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property, partial
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Packages whose version tells their code; the first ones' objects hold data, such as numbers of a distribution.
OF_DATA = {"advflyp", "open_clip", "timm", "torch", "torchvision", "transformers"}
LIBRARIES = {*OF_DATA, *sys.stdlib_module_names}
# What torch gives to every module, beside its parameters, buffers and parts.
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_TORCH = {*vars(nn.Module())}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# Values inside more objects than this are not told apart.
DEPTH = 50


def json_sha256(parts: Any) -> str:
    """A SHA-256 of tables, lists, numbers and text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """One SHA-256 over all tensors of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        tensor = state[key].detach().cpu().contiguous()
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def source_sha256(code: Any) -> str:
    """A hash of the source of a function, class or object, and of the values that it holds.

    The source is that of the module, or the code's own in a notebook, or its bytecode where Python keeps no source, as
    in its interactive shell. The values are the arguments of a partial, the defaults and the closure of a function,
    the object of a method and the attributes of an object.

    Raises:
        ValueError: It is not Python code.
    """
    made = defined(code)
    if not isinstance(made, type | FunctionType):
        raise ValueError(
            f"the source of {made!r}, which results record, is not available; call it from a function"
        )
    source = _source_of(inspect.getmodule(made)) or class_source(made)
    held = _Values().held(code)
    return hashlib.sha256((source + (json.dumps(held) if held else "")).encode()).hexdigest()


def class_source(made: Any) -> str:
    """The source of a class or function alone, or its bytecode where Python keeps no source."""
    return _source_of(made) or json.dumps(_Values().bytecode(made))


def _source_of(part: Any) -> str:
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):  # there is no other way to ask
        return ""


def defined(code: Any) -> Any:
    """The function or class that code is from: of a `functools.partial` its function, of an object its class."""
    while isinstance(code, partial):
        code = code.func
    code = code.__func__ if inspect.ismethod(code) else code
    return code if hasattr(code, "__qualname__") else type(code)


def foreign(kinds: Iterable[type]) -> list[type]:
    """The classes that come neither from this package nor from a library that it is built on, each once."""
    return [kind for kind in dict.fromkeys(kinds) if _package(kind) not in LIBRARIES]


def _package(code: Any) -> str:
    return str(code.__module__).partition(".")[0]


def own_code(module: nn.Module) -> dict[str, str]:
    """Hashes of what the user has added to a module beside weights and plain settings, by name.

    These are hooks, replaced methods, functions in lists and transforms, and the attributes of the user's own modules.
    """
    values, found = _Values(), {}
    for name, part in module.named_modules():
        is_own = bool(foreign([type(part)]))
        for key, value in _own_attributes(part).items():
            if is_own or key in HOOKS or _has_own_code(value):
                found[f"{name}:{key}"] = values.hash(value)
    return found


def _has_own_code(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_own_code, value))
    if not callable(value):
        return False
    if _package(defined(value)) not in LIBRARIES:
        return True
    of_torchvision = not isinstance(value, type) and _package(type(value)) == "torchvision"
    return of_torchvision and any(map(_has_own_code, vars(value).values()))


def recordable(value: Any) -> Any:
    """A value as results record it: what JSON cannot store is its hash."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: recordable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): recordable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(map(recordable, value)) if type(value) in (list, tuple) else [*map(recordable, value)]
        )
    return _Values().hash(value)


class _Values:
    """Hashes of values, equal for equal values in every process."""

    def __init__(self) -> None:
        # By address, with the object, which keeps the address its own. An object inside itself has no hash yet.
        self.known: dict[int, tuple[Any, str]] = {}
        self.depth = 0

    def held(self, code: Any) -> dict[str, str]:
        """The hashes of the values that code holds, by name."""
        if isinstance(code, partial):
            bound = {str(place): value for place, value in enumerate(code.args)} | code.keywords
            return {f"func.{name}": value for name, value in self.held(code.func).items()} | self._each(bound)
        if inspect.ismethod(code):
            return self.held(code.__self__)
        if isinstance(code, FunctionType):
            names = code.__code__.co_freevars
            closure = {
                name: _contents(cell) for name, cell in zip(names, code.__closure__ or (), strict=True)
            }
            others = {"defaults": code.__defaults__, "kwdefaults": code.__kwdefaults__}
            if "<" in code.__qualname__:  # several functions of a module may be called "<lambda>"
                others["code"] = self.bytecode(code)
            return self._each(closure | {name: value for name, value in others.items() if value})
        if isinstance(code, type):
            return {}
        if isinstance(code, nn.Module):
            return self._each(_of_module(code))
        if is_dataclass(code) or isinstance(code, Namespace | SimpleNamespace) or foreign([type(code)]):
            return self._each(_attributes(code))
        return {}

    def bytecode(self, made: Any) -> Any:
        """What Python compiled a function, the functions of a class, or a constant to."""
        match made:
            case FunctionType():
                return self.bytecode(made.__code__)
            case CodeType():
                constants = [self.bytecode(one) for one in made.co_consts]
                return [made.co_code.hex(), made.co_names, made.co_varnames, constants]
            case staticmethod() | classmethod():
                return self.bytecode(made.__func__)
            case property():
                return [self.bytecode(one) for one in (made.fget, made.fset) if one is not None]
            case type():
                own = {
                    name: one
                    for name, one in vars(made).items()
                    if not name.startswith("__") or callable(one)
                }
                return {name: self.bytecode(one) for name, one in own.items()}
        return self.hash(made)

    def hash(self, value: Any) -> str:
        """The hash of a value."""
        if id(value) in self.known:
            return self.known[id(value)][1]
        if self.depth == DEPTH:
            return "…"
        self.known[id(value)] = value, "…"
        self.depth += 1
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        found = hashlib.sha256(json.dumps([kind, self._parts(value)]).encode()).hexdigest()
        self.depth -= 1
        self.known[id(value)] = value, found
        return found

    def _parts(self, value: Any) -> Any:
        match value:
            case Tensor():
                return _of_tensor(value)
            case np.ndarray() if not value.dtype.hasobject:
                return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
            case np.ndarray():
                return self.hash(value.tolist())
            case Mapping():
                return sorted([self.hash(key), self.hash(one)] for key, one in value.items())
            case set() | frozenset():
                return sorted(map(self.hash, value))
            case list() | tuple():
                return [self.hash(one) for one in value]
            case FunctionType() if _package(value) not in LIBRARIES:
                return [self.bytecode(value), self.held(value)]
            case partial():
                return [self.hash(value.func), self.held(value)]
        held = self.held(value)
        if isinstance(value, type | FunctionType) or inspect.isroutine(value):
            return [value.__qualname__, held]
        if own := [kind for kind in foreign(type(value).__mro__) if not issubclass(kind, np.generic)]:
            held["class"] = self.hash([self.bytecode(kind) for kind in own])
        elif not held and _package(type(value)) in OF_DATA:
            held = self._each(getattr(value, "__dict__", {}))
        # Without an address, the text of an object describes it.
        return held or ADDRESS.sub("", repr(value))

    def _each(self, values: Mapping[str, Any]) -> dict[str, str]:
        return {name: self.hash(value) for name, value in sorted(values.items())}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet; there is no other way to ask
        return None


def _of_tensor(value: Tensor) -> Any:
    about = [str(value.dtype), str(value.layout)]
    if is_lazy(value) or value.is_meta:
        return about
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        return [*about, repr(value)]
    plain = value.detach().resolve_conj().resolve_neg()
    return [*about, list(value.shape), state_sha256({"": plain})]


def _of_module(module: nn.Module) -> dict[str, Any]:
    """The classes, tensors and attributes of a module and of those inside it, by name."""
    found: dict[str, Any] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, part in module.named_modules():
        found[f"{name}:class"] = type(part)
        found |= {f"{name}:{key}": value for key, value in _own_attributes(part).items()}
    return found


def _own_attributes(part: nn.Module) -> dict[str, Any]:
    """The attributes of one module that torch has not given it, and its hooks; a library's private ones are no data."""
    is_own = bool(foreign([type(part)]))
    hooks = {key: list(getattr(part, key).values()) for key in HOOKS if getattr(part, key)}
    return hooks | {
        key: value for key, value in vars(part).items() if key not in OF_TORCH and (is_own or key[0] != "_")
    }


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, without what it has computed from them."""
    kinds = type(value).__mro__
    slots = [name for kind in kinds for name in getattr(kind, "__slots__", ())]
    found = {
        name: getattr(value, name)
        for name in slots
        if name not in ("__dict__", "__weakref__") and hasattr(value, name)
    }
    computed = {
        name for kind in kinds for name, one in vars(kind).items() if isinstance(one, cached_property)
    }
    return found | {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in computed}
