"""What the documents promise about recipes is what the code has."""

import dataclasses
import re
from pathlib import Path

from advflyp.method import METHODS
from advflyp.training.recipe import TABLES

ROOT = Path(__file__).parent.parent


def test_recipe_keys_are_documented() -> None:
    documented = set(re.findall(r"`(\w+\.\w+)`", (ROOT / "docs/recipes.md").read_text()))
    tables = [*TABLES.items(), *(("method", config) for _, config in METHODS.values())]
    real = {f"{table}.{field.name}" for table, cls in tables for field in dataclasses.fields(cls)}
    documented -= {"advflyp.load_model"}
    assert {key for key in documented if key.split(".")[0] in {*TABLES, "method"}} == real | {"method.name"}


def test_the_map_of_files_is_complete() -> None:
    named = (ROOT / "docs/design.md").read_text()
    for path in (ROOT / "src/advflyp").rglob("*.py"):
        name = str(path.relative_to(ROOT / "src/advflyp"))
        if path.name.startswith("__") or name.startswith("data/mini/"):
            continue
        assert name in named or path.name in named, f"docs/design.md does not say what {name} holds"
