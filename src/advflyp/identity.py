"""Hashes that tell two attacks, or two models, of the user's own apart in results."""

import hashlib
import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Packages whose version tells their code.
LIBRARIES = {"advflyp", "open_clip", "timm", "torch", "torchvision", "transformers", *sys.stdlib_module_names}


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """One SHA-256 over all tensors of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        tensor = state[key].detach().cpu().contiguous()
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def json_sha256(parts: Any) -> str:
    """A SHA-256 of tables, lists, numbers and text."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def source_sha256(code: Any) -> str:
    """A hash of the source of a function, class or object, and of the values that it holds.

    The source is the module's, or its own if it was defined in a notebook, or its bytecode where Python keeps no
    source, as in its interactive shell. The values are a partial's arguments, the
    variables of a closure, a method's object and an object's attributes, as far as they are data: tensors, weights,
    numbers, text, and whatever is made of these.

    Raises:
        ValueError: The source is not available.
    """
    source, held = _source(defined(code)), _held(code, [])
    return hashlib.sha256((source + (repr(held) if held else "")).encode()).hexdigest()


def _source(made: Any) -> str:
    for part in (inspect.getmodule(made), made):
        try:
            return inspect.getsource(part)  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue
    functions = [
        one for one in (made, *getattr(made, "__dict__", {}).values()) if isinstance(one, FunctionType)
    ]
    if not functions:
        raise ValueError(
            f"the source of {made!r}, which results record, is not available; define it in a file"
        )
    return repr([_bytecode(function.__code__) for function in functions])


def _bytecode(code: CodeType) -> Any:
    constants = [_bytecode(one) if isinstance(one, CodeType) else _value(one, []) for one in code.co_consts]
    return [code.co_code, code.co_names, code.co_varnames, constants]


def defined(code: Any) -> Any:
    """The function or class that code is from: of a `functools.partial` its function, of an object its class."""
    while isinstance(code, partial):
        code = code.func
    return code if hasattr(code, "__qualname__") else type(code)


def foreign(kinds: Iterable[type]) -> list[type]:
    """The classes that come neither from this package nor from a library that it is built on, each once."""
    return [kind for kind in dict.fromkeys(kinds) if kind.__module__.partition(".")[0] not in LIBRARIES]


def _held(code: Any, inside: list[Any]) -> Any:
    """The values that code holds; `inside`: the objects that are being described, each within the one before."""
    if isinstance(code, partial):
        own = _held(code.func, inside)
        return [own, _value([code.args, code.keywords], inside)] if code.args or code.keywords else own
    if inspect.ismethod(code):
        return _held(code.__self__, inside)
    if isinstance(code, FunctionType):
        return {
            name: _value(value, inside)
            for name, value in sorted(inspect.getclosurevars(code).nonlocals.items())
        }
    if isinstance(code, nn.Module):
        plain = {
            name: {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
            for name, part in code.named_modules()
        }
        return [state_sha256(code.state_dict()), plain]
    is_data = is_dataclass(code) or isinstance(code, Namespace | SimpleNamespace) or foreign([type(code)])
    if isinstance(code, type) or not is_data or not hasattr(code, "__dict__"):
        return {}
    return {name: _value(value, inside) for name, value in sorted(vars(code).items())}


def _value(value: Any, inside: list[Any]) -> Any:
    """A value as text and numbers, equal for equal values in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if any(value is one for one in inside):
        return "…"
    inside = [*inside, value]
    match value:
        case Tensor():
            return [str(value.dtype), list(value.shape), state_sha256({"": value})]
        case np.ndarray() | np.generic():
            return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        case Mapping():
            return sorted(repr([_value(key, inside), _value(one, inside)]) for key, one in value.items())
        case set() | frozenset():
            return sorted(repr(_value(one, inside)) for one in value)
        case list() | tuple():
            return [_value(one, inside) for one in value]
    made = defined(value)
    return [f"{made.__module__}.{made.__qualname__}", _held(value, inside)]
