"""Training methods: one file per paper, which reads like its equations. `METHODS` holds their names in recipes."""

from dataclasses import fields
from typing import Any, get_type_hints

from advflyp.config import build, check_method_keys, suggest
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig
from advflyp.method.agft import AGFT, AGFTConfig
from advflyp.method.base import Batch, Method
from advflyp.method.fare import FARE, FAREConfig
from advflyp.method.flyp import FLYP, FLYPConfig
from advflyp.method.pmg_aft import PMGAFT, PMGAFTConfig
from advflyp.method.tecoa import TeCoA, TeCoAConfig
from advflyp.method.tga_zsr import TGAZSR, TGAZSRConfig
from advflyp.plugins import is_import_path, load_object

METHODS: dict[str, tuple[type[Method], type]] = {
    "advflyp": (AdvFLYP, AdvFLYPConfig),
    "tecoa": (TeCoA, TeCoAConfig),
    "pmg_aft": (PMGAFT, PMGAFTConfig),
    "tga_zsr": (TGAZSR, TGAZSRConfig),
    "fare": (FARE, FAREConfig),
    "flyp": (FLYP, FLYPConfig),
    "agft": (AGFT, AGFTConfig),
}


def find_method(name: str) -> tuple[type[Method], type]:
    """A method and its configuration class, by a name in `METHODS` or "module:Class"; ValueError if there is none."""
    if name in METHODS:
        return METHODS[name]
    if not is_import_path(name):
        raise ValueError(f"unknown method '{name}'{suggest(name, METHODS)}")
    method = load_object(name)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ValueError(f"'{name}' is not a subclass of advflyp.method.Method")
    if lacking := sorted(method.__abstractmethods__):
        raise ValueError(f"'{name}' lacks {', '.join(lacking)}")
    if method.trains_on not in (kinds := ("pairs", "labelled", "images")):
        raise ValueError(f"'{name}': trains_on is one of {', '.join(kinds)}, not {method.trains_on!r}")
    hints = get_type_hints(method)
    if "config" not in hints:
        raise ValueError(f"'{name}' must annotate `config` with the dataclass of its recipe keys")
    return method, hints["config"]


def method_config(table: dict[str, Any]) -> tuple[str, Any]:
    """The recipe table `method` as (name, that method's config); ValueError for an unknown name or key."""
    table = dict(table)
    name = table.pop("name", None)
    if name is None:
        raise ValueError(f"the recipe lacks method.name; known: {', '.join(sorted(METHODS))}")
    config = find_method(str(name))[1]
    known = {other: cls for other, (_, cls) in METHODS.items()} | {str(name): config}
    check_method_keys(
        table, str(name), {other: [f.name for f in fields(cls)] for other, cls in known.items()}
    )
    return name, build(config, table, at="method.")


__all__ = ["METHODS", "Batch", "Method", "find_method", "method_config"]
