"""One file per paper; each reads like its equations. `METHODS` names them for recipes."""

from typing import Any

from advflyp.config import build, suggest
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig
from advflyp.method.base import Batch, Method
from advflyp.method.fare import FARE, FAREConfig
from advflyp.method.flyp import FLYP, FLYPConfig
from advflyp.method.pmg_aft import PMGAFT, PMGAFTConfig
from advflyp.method.tecoa import TeCoA, TeCoAConfig
from advflyp.method.tga_zsr import TGAZSR, TGAZSRConfig

METHODS: dict[str, tuple[type[Method], type]] = {
    "advflyp": (AdvFLYP, AdvFLYPConfig),
    "tecoa": (TeCoA, TeCoAConfig),
    "pmg_aft": (PMGAFT, PMGAFTConfig),
    "tga_zsr": (TGAZSR, TGAZSRConfig),
    "fare": (FARE, FAREConfig),
    "flyp": (FLYP, FLYPConfig),
}


def method_config(table: dict[str, Any]) -> tuple[str, Any]:
    """The recipe table `method` as (name, that method's config); ValueError for an unknown name or key."""
    table = dict(table)
    name = table.pop("name", None)
    if name is None:
        raise ValueError(f"the recipe lacks method.name; known: {', '.join(sorted(METHODS))}")
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'{suggest(str(name), METHODS)}")
    return name, build(METHODS[name][1], table, at="method.")


__all__ = ["METHODS", "Batch", "Method", "method_config"]
