"""TOML recipes: those that come along, changed, and texts that are none."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from advflyp.config import read_toml
from advflyp.recipes import find_recipe
from advflyp.training.recipe import difference, read_recipe
from fuzz.mutate import altered, mutated, text

NAMES = ("advflyp_full", "tecoa", "pmg_aft", "fare", "tga_zsr", "mini/advflyp_full", "mini/pretrain", "flyp")


@cache
def recipe(name: str) -> dict[str, Any]:
    """A recipe that comes along."""
    return read_toml(find_recipe(name))


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A recipe, read as `advflyp train` reads it before anything else."""
    tree = recipe(rng.choice(NAMES))
    for _ in range(rng.choice((0, 1, 1, 3))):
        tree = altered(rng, tree)
    path = folder / "in" / "r.toml"
    try:
        data = tomli_w.dumps(tree).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError, RecursionError):  # what TOML cannot hold
        data = find_recipe(rng.choice(NAMES)).read_bytes() + text(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = mutated(rng, data)
    if rng.random() < 0.05:
        data += rng.choice(
            (b"a = " + b"[" * 5000, b"[" + b"a." * 3000 + b"b]\nc=1", b"a" + b".b" * 3000 + b" = 1")
        )
    path.write_bytes(data)
    keys = {"optim.lr": text(rng)} if rng.random() < 0.1 else {}
    return lambda: read_whole(path, keys)


def read_whole(path: Path, keys: dict[str, str]) -> None:
    """A recipe that is read can be written, and is the same when it is read again."""
    found = read_recipe(path, keys)
    assert not difference(found.toml(), found.toml())
