"""The recipes that come with the package: found by name, listed, their keys explained.

`advflyp_full` is configs/advflyp_full.toml of the package, `mini/advflyp_full` its twin at mini scale. Nothing here
imports torch, which takes seconds: the keys are read from the source of the dataclasses that define them.
"""

import ast
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from advflyp.config import (
    Mistakes,
    check_method_keys,
    nearest,
    nearest_path,
    override,
    read_toml,
    unknown,
)
from advflyp.data.sets.catalogue import check_training_name, set_names

PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "configs"
# Where the dataclass of each recipe table is; a test compares this with `training.recipe.TABLES` and `method.METHODS`.
TABLES = {
    "model": "model/load.py ModelConfig",
    "data": "data/pairs/pairs.py DataConfig",
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
}


@dataclass(frozen=True)
class Keys:
    """What the source of a configuration dataclass says.

    Attributes:
        about: Its docstring, which explains the keys.
        defaults: The default of each key as it is written, None where there is none.
    """

    about: str
    defaults: dict[str, str | None]


@cache
def recipe_names() -> list[str]:
    """Those that come with the package, the paper's first."""
    names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.toml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_recipe(name: str | Path) -> Path:
    """A recipe by the name of a file, or by its name in this package.

    Args:
        name: A TOML file. Where there is none: "advflyp_full", "mini/advflyp_full", whatever its case, or the same as
            the path that it has in a checkout, "configs/advflyp_full.toml".

    Raises:
        ValueError: Where there is neither; with the nearest name.
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
    raise ValueError(f"there is no recipe {name}{hint or '; `advflyp recipes` lists those that come along'}")


def recipe_table() -> Table:
    """Every recipe's name, and the sentence that its file begins with."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains")
    for name in recipe_names():
        with open(CONFIGS / f"{name}.toml", encoding="utf-8") as file:
            table.add_row(Text(name), Text(file.readline().lstrip("# ").strip()))
    return table


def table_keys(table: str) -> Keys:
    """The keys of a recipe table but "method"."""
    return _keys(TABLES[table])


def method_keys(name: str) -> Keys:
    """The keys of the table "method" for a method of the package; of those it is made from, too."""
    found = [_keys(where) for where in METHODS[name]]
    defaults = {key: default for keys in found for key, default in keys.defaults.items()}
    return Keys("\n\n".join(keys.about for keys in reversed(found)), defaults)


def known_keys(method: str | None = None) -> list[str]:
    """Every dotted recipe key; of the table "method" those of one method of the package, or of all."""
    keys = [f"{table}.{key}" for table in TABLES for key in table_keys(table).defaults]
    methods = METHODS if method is None else [method]
    return [
        *keys,
        "method.name",
        *dict.fromkeys(f"method.{k}" for m in methods for k in method_keys(m).defaults),
    ]


def check_names(recipe: Path, overrides: dict[str, str]) -> None:
    """ValueError for all keys that no recipe has and all datasets that are not there, before torch is imported.

    Args:
        recipe: The file.
        overrides: Keys of the command line with their values.
    """
    tree, mistakes = override(read_toml(recipe), overrides), Mistakes()
    with mistakes.noted():
        unknown(tree, [*TABLES, "method"])
    for name, table in tree.items():
        if name in TABLES and isinstance(table, dict):
            with mistakes.noted():
                unknown(table, table_keys(name).defaults, f"{name}.")
    method = tree.get("method")
    if isinstance(method, dict) and method.get("name") in METHODS:
        with mistakes.noted():
            own = [key for key in method if key != "name"]
            check_method_keys(own, method["name"], {name: method_keys(name).defaults for name in METHODS})
    data, validate = (tree[name] if isinstance(tree.get(name), dict) else {} for name in ("data", "validate"))
    for pairs in (data.get("train"), data.get("also")):
        with mistakes.noted():
            if isinstance(pairs, str) and pairs != "none":
                check_training_name(pairs)
    with mistakes.noted():
        if isinstance(validate.get("set"), str) and validate["set"] != "none":
            set_names([validate["set"]])
    mistakes.end()


def describe_keys() -> str:
    """Every recipe key with its default, table by table, and what its dataclass says of it."""
    lines = [
        "Each is set as table.key: --optim.lr 1e-4 on the command line, lr = 1e-4 below [optim] in a recipe."
    ]
    for table in TABLES:
        lines += ["", f"[{table}]", *_described(table_keys(table))]
    for method in METHODS:
        lines += ["", f'[method], name = "{method}"', *_described(method_keys(method))]
    return "\n".join(lines)


def summarise_keys() -> str:
    """The names of all recipe keys, for --help."""
    lines = ["recipe keys, each as --table.key value (explained by `advflyp recipes --keys`):"]
    for table in TABLES:
        lines += _wrapped(f"  {table}.", table_keys(table).defaults)
    return "\n".join([*lines, *_wrapped("  method.", ["name, and its method's own keys"])])


def _wrapped(head: str, names: Iterable[str]) -> list[str]:
    from textwrap import wrap

    return wrap(", ".join(names), 96, initial_indent=f"{head:14}", subsequent_indent=" " * 14)


def _described(keys: Keys) -> list[str]:
    shown = [f"{key} = {default}" if default is not None else f"{key} (required)" for key, default in
             keys.defaults.items()]  # fmt: skip
    return [
        *(f"  {line}".rstrip() for line in keys.about.splitlines()),
        "",
        *(f"    {line}" for line in shown),
    ]


@cache
def _keys(where: str) -> Keys:
    file, name = where.split()
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    defaults = {
        field.target.id: None if field.value is None else ast.unparse(field.value)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    return Keys(inspect.cleandoc(ast.get_docstring(node) or ""), defaults)
