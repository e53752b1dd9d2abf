"""The recipes that are shipped: each has its twin at mini scale, and differs from the others only where it must."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from advflyp import recipes
from advflyp.config import read_toml
from advflyp.method import METHODS
from advflyp.recipes import find_recipe, known_keys, recipe_names
from advflyp.training.recipe import TABLES, read_recipe

CONFIGS = Path(__file__).parent.parent / "configs"
PAPER = {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}
MINI = {path.stem: path for path in sorted((CONFIGS / "mini").glob("*.toml")) if "pretrain" not in path.stem}
LABELLED = {"tecoa", "tecoa_feature", "tecoa_logit", "tecoa_full", "pmg_aft", "tga_zsr", "fare", "flyp",
            "clean_classification"}  # fmt: skip
CLEAN = {"clean_contrastive", "clean_classification"}
UNFROZEN = {"advflyp_text": "vision+text", "advflyp_all": "all"}


def flat(path: Path) -> dict[str, Any]:
    """The resolved recipe by dotted key, without the method's own table."""
    tree = read_recipe(path).tree()
    return {f"{t}.{k}": v for t, table in tree.items() if t != "method" for k, v in table.items()}


def difference(path: Path, base: Path) -> dict[str, Any]:
    """What `path` says where `base` says something else."""
    ours, theirs = flat(path), flat(base)
    return {key: ours.get(key) for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def test_every_recipe_has_its_twin() -> None:
    assert PAPER.keys() == MINI.keys()
    assert PAPER.keys() >= LABELLED | CLEAN | UNFROZEN.keys()


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_differs_only_where_the_paper_says(name: str) -> None:
    expected: dict[str, Any] = {}
    if name in LABELLED:
        expected["data.train"] = "imagenet@train"
    if name == "aft_captioned":
        expected["data.train"] = "captioned-imagenet/*.tar"
    if name in CLEAN:  # Sec. 9.1
        expected |= {"attack.steps": 0, "optim.lr": 5e-5, "data.limit": 100_000, "validate.attack": "clean"}
    if name in UNFROZEN:
        expected["train.unfreeze"] = UNFROZEN[name]
    assert difference(PAPER[name], PAPER["advflyp_full"]) == expected


@pytest.mark.parametrize("name", MINI)
def test_the_mini_recipes_see_as_many_pictures(name: str) -> None:
    expected: dict[str, Any] = {}
    if name in LABELLED:
        expected |= {"data.train": "mini/proxy", "train.epochs": 3}
    if name == "tga_zsr":  # "mini" is a ResNet, without patches
        expected["model.name"] = "mini-vit"
    if name == "aft_captioned":
        expected |= {"data.train": "mini/proxy-captioned", "train.epochs": 3}
    if name in CLEAN:
        expected |= {
            "attack.steps": 0,
            "validate.attack": "clean",
            "attack.eps": 1 / 255,
            "attack.step_size": 1 / 255,
        }
    if name in UNFROZEN:
        expected["train.unfreeze"] = UNFROZEN[name]
    assert difference(MINI[name], MINI["advflyp_full"]) == expected


@pytest.mark.parametrize("name", MINI)
def test_a_twin_has_its_base_s_method(name: str) -> None:
    """Only the mask is the twin's own: a small corpus repeats its captions."""
    base, twin = read_toml(PAPER[name])["method"], read_toml(MINI[name])["method"]
    mask = twin.pop("mask_same_caption", None)
    assert twin == base
    assert mask == (True if base["name"] in ("advflyp", "flyp") else None)


def test_epochs_suffice_for_the_steps() -> None:
    """mini/proxy has 6,651 pictures."""
    recipe = read_recipe(MINI["tecoa"])
    assert recipe.train.max_steps is not None
    assert recipe.train.epochs * (6651 // recipe.data.batch_size) >= recipe.train.max_steps


def test_tables_4_and_9() -> None:
    for prefix in ("advflyp", "tecoa"):
        weights = {}
        for name in ("", "_feature", "_logit", "_full"):
            method = read_recipe(PAPER[prefix + name]).method
            weights[name] = (method.feature_weight, method.logit_weight)
        assert weights == {"": (0, 0), "_feature": (1, 0), "_logit": (0, 1), "_full": (1, 1)}


@pytest.mark.parametrize(
    "name", ["advflyp_full", "AdvFLYP_full", "advflyp_full.toml", "configs/advflyp_full.toml"]
)
def test_a_recipe_is_found_by_name_in_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name).samefile(PAPER["advflyp_full"])
    assert find_recipe(f"mini/{name.removeprefix('configs/')}").samefile(MINI["advflyp_full"])
    assert read_recipe(name) == read_recipe(PAPER["advflyp_full"])


def test_a_file_comes_before_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tecoa").write_text("")
    assert find_recipe("tecoa") == Path("tecoa")
    with pytest.raises(ValueError, match="there is no recipe mini/tecoas; did you mean 'mini/tecoa"):
        find_recipe("mini/tecoas")
    with pytest.raises(ValueError, match="is a folder; name a recipe file"):
        find_recipe(tmp_path)


def test_every_recipe_is_listed() -> None:
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.toml")}
    assert set(recipe_names()) == files


def test_the_keys_that_are_read_from_the_source_are_those_of_the_dataclasses() -> None:
    assert list(recipes.TABLES) == list(TABLES) and list(recipes.METHODS) == list(METHODS)
    for table, cls in TABLES.items():
        found = recipes.table_keys(table)
        assert list(found.defaults) == [field.name for field in dataclasses.fields(cls)]
        assert recipes.TABLES[table].split()[1] == cls.__name__
        for field in dataclasses.fields(cls):
            assert field.name == "name" or field.name in found.about or table == "log", (
                f"{table}.{field.name}"
            )
    for name, (_, cls) in METHODS.items():
        assert set(recipes.method_keys(name).defaults) == {field.name for field in dataclasses.fields(cls)}
    assert {"optim.lr", "data.train", "method.feature_weight"} <= set(known_keys())
