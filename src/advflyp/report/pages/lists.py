"""Listings for a terminal: a table of attacks, one of methods, and all about a single set, attack or method."""

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from advflyp.attack.base import Custom
from advflyp.attack.threat import Threat
from advflyp.data.mini import mini_sets
from advflyp.data.sets.catalogue import canonical, how_to_get, locate, parts
from advflyp.data.sets.labelled import load_set, set_names
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.expected import is_known
from advflyp.method import METHODS, find_method
from advflyp.recipes import describe_method, read_recipe_tree, recipe_names
from advflyp.report.measure.estimates import radius
from advflyp.report.measure.tables import Table, Value

WIDTH = 80
TRAINS_ON = {"pairs": "image–text pairs", "labelled": "labelled images", "images": "images alone"}
EPS = 1 / 255
CLASSES_SHOWN = 12


def attacks_table() -> Table:
    """A row for each kind of name that `find_attack` knows, from its own documentation."""
    rows: list[list[Value]] = [
        list(cells) for cells in re.findall(r"^ *\| (.+?) \| (.+?) \|$", find_attack.__doc__ or "", re.M)[1:]
    ]
    return Table(title="", columns=["name", "attack"], rows=rows, words=True)


def attack_card(name: str) -> list[str]:
    """What an attack does, and its parameters at ε = 1/255 with 1,000 classes, as results record them."""
    attack = find_attack(name)
    threat = Threat(norm="linf", eps=EPS)
    found = attack.arguments(threat if attack.perturbs else None, 1000)
    about = _own_doc(attack.function if isinstance(attack, Custom) else type(attack))
    lines = [attack.name, "", *_paragraphs(about.partition("\n\n")[0])]
    lines += [f"parameters at ε = {radius(EPS, 'linf')}", *_settings(found)] if found else ["no parameters"]
    return lines


def methods_table() -> Table:
    """A row for each method."""
    rows: list[list[Value]] = [
        [name, TRAINS_ON[method.trains_on], _about(method).partition("\n")[0]]
        for name, (method, _) in METHODS.items()
    ]
    return Table(title="", columns=["method", "trains on", "what it is"], rows=rows, words=True)


def method_card(name: str) -> list[str]:
    """A method's equation, the recipes that use it, and its keys."""
    method = find_method(name)[0]
    trees = {recipe: read_recipe_tree(recipe) for recipe in recipe_names()}
    recipes = [recipe for recipe, tree in trees.items() if tree.get("method", {}).get("name") == name]
    return [
        name,
        "",
        *_paragraphs(_about(method)),
        *_paragraphs(_own_doc(method)),
        *_wrapped(f"trains on   {TRAINS_ON[method.trains_on]}"),
        *_wrapped(f"recipes     {', '.join(recipes) or 'none'}"),
        "",
        *(describe_method(name) if name in METHODS else ["its keys are those of its own configuration"]),
    ]


def set_card(name: str) -> list[str]:
    """What a dataset is: size, prompts, licence, where it comes from; class names if it is on this machine."""
    names = set_names([name])
    if len(names) > 1:
        raise ValueError(f"'{name}' is a group; name one of its sets: {', '.join(names)}")
    found = names[0]
    is_table = canonical(found) is not None
    is_here = locate(found) is not None if is_table else True
    facts: dict[str, str] = {}
    if is_table:
        _, entry, split = parts(found)
        facts |= {
            "images": f"{entry.n:,} ({entry.every_split[0]})",
            "classes": f"{entry.k:,}",
            "split": f"{split}; all: {', '.join(entry.every_split)}",
            "licence": entry.licence,
            "from": entry.home,
            "here": "yes" if is_here else f"no: {how_to_get(found)}",
            "prompt": entry.prompt,
        }
    if is_here:
        labelled = load_set(found)
        more = ", …" if len(labelled.classes) > CLASSES_SHOWN else ""
        facts |= {
            "images": f"{len(labelled):,} ({labelled.split})",
            "classes": f"{len(labelled.classes):,}: {', '.join(labelled.classes[:CLASSES_SHOWN])}{more}",
            "prompt": labelled.prompt,
        }
        if is_known(found) and not is_table:
            info = mini_sets()[found.removeprefix("mini/")]
            facts |= {"licence": info["licence"], "from": info["source"], "here": "comes with the package"}
    return [found, "", *(line for key, text in facts.items() for line in _wrapped(f"{key:12}{text}"))]


def _about(method: type) -> str:
    return inspect.cleandoc(sys.modules[method.__module__].__doc__ or "")


def _own_doc(found: Any) -> str:
    """The object's own docstring, not an inherited one."""
    return inspect.cleandoc(found.__doc__ or "")


def _settings(arguments: dict[str, Any], indent: str = "  ") -> Iterable[str]:
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _settings(value, indent + "  ")
        else:
            yield f"{indent}{name:14} {radius(value, 'linf') if name == 'step_size' else value}"


def _paragraphs(text: str) -> list[str]:
    return [line for part in text.split("\n\n") if part for line in (*_wrapped(part), "")]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * 12 if re.match(r"\w+ {2,}", text) else "")
