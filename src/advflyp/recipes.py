"""Find the package's recipes by name, merge a recipe with its base, and document every recipe key.

`advflyp_full` is configs/advflyp_full.toml of the package, `mini/advflyp_full` its mini-scale twin. Nothing here
imports torch, which takes seconds: keys are read from the source of the dataclasses that define them.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from advflyp.config import (
    Mistakes,
    check_method_keys,
    merge,
    nearest,
    nearest_path,
    override,
    read_toml,
    unknown,
)
from advflyp.data.sets.catalogue import check_training_name, set_names
from advflyp.documents import read_text

PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "configs"
# Where the dataclass of each recipe table is; a test compares this with `training.recipe.TABLES` and `method.METHODS`.
TABLES = {
    "model": "model/load.py ModelConfig",
    "data": "data/config.py DataConfig",
    "attack": "attack/pgd.py AttackConfig",
    "optim": "training/optim.py OptimConfig",
    "train": "training/recipe.py TrainConfig",
    "validate": "training/recipe.py ValidateConfig",
    "checkpoint": "training/checkpoint.py CheckpointConfig",
    "log": "training/runlog.py LogConfig",
}
METHODS = {
    "advflyp": ("method/regularisers.py RegularisedConfig", "method/advflyp.py AdvFLYPConfig"),
    "tecoa": ("method/regularisers.py RegularisedConfig", "method/tecoa.py TeCoAConfig"),
    "pmg_aft": ("method/pmg_aft.py PMGAFTConfig",),
    "tga_zsr": ("method/tga_zsr.py TGAZSRConfig",),
    "fare": ("method/fare.py FAREConfig",),
    "flyp": (
        "method/regularisers.py RegularisedConfig",
        "method/advflyp.py AdvFLYPConfig",
        "method/flyp.py FLYPConfig",
    ),
    "agft": ("method/agft.py AGFTConfig",),
}


@dataclass(frozen=True)
class Key:
    """A recipe key.

    Attributes:
        default: As written in the source; None for a required key.
        help: Its description in the dataclass's docstring.
    """

    default: str | None
    help: str


@cache
def recipe_names() -> list[str]:
    """The recipes of the package, the paper's first."""
    names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.toml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe.

    Args:
        name: A TOML file; or else a recipe of the package by name, in upper or lower case ("advflyp_full",
            "mini/advflyp_full"), or by its path in a checkout ("configs/advflyp_full.toml").

    Raises:
        ValueError: There is no such file or recipe; suggests the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    wanted = path.as_posix().removeprefix("configs/").removesuffix(".toml").lower()
    if wanted in recipe_names():
        return CONFIGS / f"{wanted}.toml"
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a recipe file, or one of `advflyp recipes`")
    hint = nearest(wanted, recipe_names()) or nearest_path(str(name))
    raise ValueError(f"there is no recipe {name}{hint or '; `advflyp recipes` lists those of the package'}")


def read_recipe_tree(name: str | Path) -> dict[str, Any]:
    """The tables of a recipe, merged into those of its base.

    `base = "advflyp"` names a recipe of the package, `base = "common.toml"` a file in or below the recipe's folder;
    nothing else is read. A [method] with another name than the base's replaces it as a whole, any other table is merged
    key by key.

    Args:
        name: As `find_recipe` takes it.

    Raises:
        ValueError: A file is missing or damaged, or the bases form a cycle.
    """
    path, seen, trees = find_recipe(name), [], []
    while path is not None:
        if path.resolve() in seen:
            raise ValueError(f"{name}: {path.name} is among its own bases; remove one `base = …`")
        seen.append(path.resolve())
        trees.append(read_toml(path))
        base = trees[-1].pop("base", None)
        path = None if base is None else _find_base(base, path)
    merged: dict[str, Any] = {}
    for tree in reversed(trees):
        merged = merge(merged, tree)
    return merged


def _find_base(base: Any, recipe: Path) -> Path:
    if isinstance(base, str) and base.isprintable():
        folder = recipe.parent.resolve()
        beside = (folder / base).resolve()
        if beside.is_relative_to(folder) and beside.is_file():
            return beside
        if base.removesuffix(".toml") in recipe_names():
            return CONFIGS / f"{base.removesuffix('.toml')}.toml"
    hint = nearest(str(base), recipe_names()) or "; `advflyp recipes` lists those of the package"
    raise ValueError(
        f"{recipe}: base must be a file in this recipe's folder or a recipe of the package, not {base!r}{hint}"
    )


def recipe_text(name: str | Path) -> str:
    """A recipe as TOML, with the keys of its base filled in, below the comments at the top of its file."""
    import tomli_w

    path = find_recipe(name)
    lines = read_text(path).splitlines()
    comments = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return "\n".join([f"# {path}", *comments, "", tomli_w.dumps(read_recipe_tree(path))])


def recipe_summaries() -> dict[str, str]:
    """Name → summary of each recipe: the first line of its file."""
    found = {}
    for name in recipe_names():
        with open(CONFIGS / f"{name}.toml", encoding="utf-8") as file:
            found[name] = file.readline().lstrip("# ").strip()
    return found


def table_keys(table: str) -> dict[str, Key]:
    """The keys of a recipe table other than "method"."""
    return _keys(TABLES[table])


def method_keys(name: str) -> dict[str, Key]:
    """The keys of the table "method" for a method of the package."""
    return {key: about for where in METHODS[name] for key, about in _keys(where).items()}


def known_keys() -> list[str]:
    """Every dotted recipe key."""
    keys = [f"{table}.{key}" for table in TABLES for key in table_keys(table)]
    return [*keys, "method.name", *dict.fromkeys(f"method.{key}" for m in METHODS for key in method_keys(m))]


def check_names(recipe: Path, overrides: Mapping[str, str]) -> None:
    """Look for unknown keys and missing datasets before torch is imported.

    Args:
        recipe: The recipe file.
        overrides: Recipe keys of the command line, with their values.

    Raises:
        ValueError: Lists all the mistakes found.
    """
    tree, mistakes = override(read_recipe_tree(recipe), overrides), Mistakes()
    with mistakes.noted():
        unknown(tree, [*TABLES, "method"])
    for name, table in tree.items():
        if name in TABLES and isinstance(table, dict):
            with mistakes.noted():
                unknown(table, table_keys(name), f"{name}.")
    method = tree.get("method")
    if isinstance(method, dict) and isinstance(method.get("name"), str) and method["name"] in METHODS:
        with mistakes.noted():
            own = [key for key in method if key != "name"]
            check_method_keys(own, method["name"], {name: method_keys(name) for name in METHODS})
    data, validate = (tree[name] if isinstance(tree.get(name), dict) else {} for name in ("data", "validate"))
    for pairs in (data.get("train"), data.get("also")):
        with mistakes.noted():
            if isinstance(pairs, str) and pairs != "none":
                check_training_name(pairs)
    with mistakes.noted():
        if isinstance(validate.get("set"), str) and validate["set"] != "none":
            set_names([validate["set"]])
    mistakes.end()


def describe_keys() -> list[str]:
    """Lines of text: every recipe key with its documentation and default."""
    lines = ["Recipe keys: --optim.lr 1e-4 on the command line, lr = 1e-4 below [optim] in a recipe."]
    for table in TABLES:
        lines += ["", f"[{table}]", *_described(table, table_keys(table))]
    for method in METHODS:
        lines += ["", *describe_method(method)]
    return lines


def describe_method(name: str) -> list[str]:
    """Lines of text: the recipe keys of a method of the package."""
    return [f'[method] of name = "{name}"', *_described("method", method_keys(name))]


def _described(table: str, keys: Mapping[str, Key]) -> list[str]:
    lines = []
    for name, key in keys.items():
        default = "none" if key.default == "None" else key.default
        shown = "(required)" if default is None else f"(default: {default})"
        text = wrap(f"{key.help} {shown}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines += [f"  --{table}.{name}", *text]
    return lines


@cache
def _keys(where: str) -> dict[str, Key]:
    import docstring_parser

    file, name = where.split()
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    # "name: text" or "name, name: text".
    explained = docstring_parser.parse(ast.get_docstring(node) or "", docstring_parser.DocstringStyle.GOOGLE)
    helps = {
        key: " ".join((one.description or "").split())
        for one in explained.params
        for key in one.arg_name.split(", ")
    }
    return {
        field.target.id: Key(
            None if field.value is None else ast.unparse(field.value), helps.get(field.target.id, "")
        )
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
