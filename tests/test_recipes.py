"""The recipes that are shipped: each has its twin at mini scale, and differs from the others only where it must."""

import dataclasses
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from advflyp import recipes
from advflyp.method import METHODS
from advflyp.recipes import check_names, find_recipe, known_keys, read_recipe_tree, recipe_names, recipe_text
from advflyp.training.checks import without_effect
from advflyp.training.recipe import TABLES, read_recipe

CONFIGS = Path(__file__).parent.parent / "configs"
AUTHORS = {path.stem: path for path in sorted((CONFIGS / "authors").glob("*.toml"))}
PAPER = {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}
MINI = {path.stem: path for path in sorted((CONFIGS / "mini").glob("*.toml")) if "pretrain" not in path.stem}
LABELLED = {"tecoa", "tecoa_feature", "tecoa_logit", "tecoa_full", "pmg_aft", "tga_zsr", "fare", "flyp", "agft",
            "clean_classification"}  # fmt: skip
CLEAN = {"clean_contrastive", "clean_classification"}
ONE_STEP = {"attack.steps": 1, "attack.start": "zero", "attack.share_clean_forward": True}
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
        expected |= {
            "attack.steps": 0,
            "optim.lr": 5e-5,
            "optim.warmup_share": 1,
            "data.limit": 100_000,
            "train.epochs": 10,
            "train.patience": None,
            "validate.attack": "clean",
        }
    if name in UNFROZEN:
        expected["train.unfreeze"] = UNFROZEN[name]
    if name == "advflyp_fast":  # ours
        expected |= ONE_STEP | {
            "data.schedule": [(160, 0.8), (224, 0.2)], "train.epochs": 10, "train.patience": None
        }  # fmt: skip
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
    if name == "advflyp_fast":
        expected |= ONE_STEP | {"data.schedule": [(48, 0.8), (64, 0.2)], "model.name": "mini-vit"}
    assert difference(MINI[name], MINI["advflyp_full"]) == expected


@pytest.mark.parametrize("name", MINI)
def test_a_twin_has_its_base_s_method(name: str) -> None:
    """The mask is the twin's own: a small corpus repeats its captions. So is the paper's map of TGA-ZSR."""
    base, twin = read_recipe_tree(PAPER[name])["method"], read_recipe_tree(MINI[name])["method"]
    mask = twin.pop("mask_same_caption", None)
    assert base.pop("attention_norm", None) == ("dim" if name == "tga_zsr" else None)
    assert twin == base
    assert mask == (True if base["name"] in ("advflyp", "flyp") else None)


def test_epochs_suffice_for_the_steps() -> None:
    """mini/proxy has 6,651 pictures."""
    recipe = read_recipe(MINI["tecoa"])
    assert recipe.train.max_steps is not None
    assert recipe.train.epochs * (6651 // recipe.data.batch_size) >= recipe.train.max_steps


COMMON = {
    "optim.name": "sgd", "optim.momentum": 0.9, "optim.weight_decay": 0, "optim.warmup_steps": 1000,
    "attack.eps": 1 / 255, "attack.steps": 2, "attack.step_size": 1 / 255, "train.epochs": 10,
    "data.resize": 256, "data.interpolation": "bilinear", "data.drop_last": False, "model.name": "ViT-B-32/openai",
    "data.templates": "This is a photo of a {}", "train.unfreeze": "vision",
}  # fmt: skip
ADAMW = {
    "optim.name": "adamw", "optim.lr": 1e-5, "optim.beta2": 0.999, "optim.epsilon": 1e-8, "optim.decayed": "all",
    "data.train": "imagenet@train", "data.resize": None, "data.interpolation": None, "data.drop_last": True,
}  # fmt: skip
# What the baselines' own papers and code say.
STATED: dict[str, dict[str, Any]] = {
    "tecoa": {**COMMON, "optim.lr": 1e-7, "data.train": "imagenet@train", "data.batch_size": 256},
    "pmg_aft": {
        **COMMON, "optim.lr": 5e-5, "data.train": "tiny-imagenet@train-all", "data.batch_size": 256,
        "optim.warmup_share": 1, "method.logit_temperature": 1, "method.divergence": "sum",
    },
    "tga_zsr": {
        **COMMON, "optim.lr": 1e-4, "data.train": "tiny-imagenet@train-all", "data.batch_size": 128,
        "method.attention_norm": "dim", "method.refinement_weight": 0.08, "method.constraint_weight": 0.05,
    },
    "fare": {
        **ADAMW, "model.name": "ViT-L-14/openai", "optim.weight_decay": 1e-4, "optim.warmup_steps": 1400,
        "attack.eps": 4 / 255, "attack.steps": 10, "attack.step_size": 1 / 255, "data.batch_size": 128,
        "train.max_steps": 20_000,
    },
    "flyp": {
        **ADAMW, "model.name": "ViT-B-16/openai", "optim.weight_decay": 0.1, "optim.warmup_steps": 500,
        "attack.steps": 0, "data.batch_size": 512, "data.templates": "openai", "train.epochs": 10,
        "train.unfreeze": "all", "method.mask_same_caption": False,
    },
    "agft": {
        **COMMON, "optim.lr": 4e-4, "optim.warmup_steps": 1400, "data.train": "imagenet@train", "data.batch_size": 256,
        "method.scale": 180, "method.ratio": 0.4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_a_baseline_as_its_authors_train_it(name: str) -> None:
    recipe = read_recipe(f"authors/{name}")
    tree = {f"{t}.{k}": v for t, table in recipe.tree().items() for k, v in table.items()}
    assert {key: tree.get(key) for key in STATED[name]} == STATED[name]
    assert recipe.method_name == name and recipe.validate.set is None


def test_every_baseline_has_two_recipes() -> None:
    assert AUTHORS.keys() == STATED.keys() == METHODS.keys() - {"advflyp"}
    assert AUTHORS.keys() <= PAPER.keys()


def test_fare_has_epochs_for_its_steps() -> None:
    """ImageNet has 1,281,167 training pictures."""
    recipe = read_recipe(AUTHORS["fare"])
    assert recipe.train.epochs * (1_281_167 // recipe.data.batch_size) >= (recipe.train.max_steps or 0)


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
        assert list(found) == [field.name for field in dataclasses.fields(cls)]
        assert recipes.TABLES[table].split()[1] == cls.__name__
        for field in dataclasses.fields(cls):
            assert found[field.name].help, f"{table}.{field.name} is not explained"
    for name, (_, cls) in METHODS.items():
        found = recipes.method_keys(name)
        assert set(found) == {field.name for field in dataclasses.fields(cls)}
        assert all(key.help for key in found.values())
    assert {"optim.lr", "data.train", "method.feature_weight"} <= set(known_keys())


def test_all_wrong_names_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-pairs").mkdir()
    (tmp_path / "my-classes").mkdir()
    check_names(
        MINI["tecoa"], {"data.train": "my-pairs", "validate.set": "none", "data.also": "hf:user/pairs"}
    )
    with pytest.raises(ValueError) as error:
        check_names(
            MINI["tecoa"],
            {"optim.lrr": "1", "method.loss": "clip", "data.train": "my-pars", "validate.set": "my-clases"},
        )
    assert str(error.value) == (
        "4 mistakes: (1) unknown key 'optim.lrr'; did you mean 'optim.lr'?  "
        "(2) method.loss is a key of advflyp and flyp, not of tecoa: leave it out, or choose a recipe for the method "
        "you mean (`advflyp recipes`)  "
        "(3) there are no pairs at my-pars; did you mean 'my-pairs'?  "
        "(4) there is no set 'my-clases'; did you mean 'my-classes'?"
    )
    with pytest.raises(ValueError, match="there are no pairs at minni; did you mean 'mini'"):
        check_names(MINI["tecoa"], {"data.train": "minni"})
    with pytest.raises(
        ValueError, match=r"3 mistakes: \(1\) data.batch_size .*\(2\) optim.lr .*\(3\) method.loss"
    ):
        read_recipe(MINI["tecoa"], {"data.batch_size": 1, "optim.lr": "fast", "method.loss": "clip"})


@pytest.mark.parametrize("value", ['["advflyp"]', "{a = 1}", "[[]]"])
def test_a_value_of_another_type_is_a_mistake(value: str, tmp_path: Path) -> None:
    """Also where a name is looked up before the types are checked."""
    for key in known_keys():
        table, _, name = key.partition(".")
        if table == "method" and name != "name":
            continue  # most methods lack it
        (tmp_path / "r.toml").write_text(f'base = "mini/advflyp"\n[{table}]\n{name} = {value}\n')
        with suppress(ValueError):
            check_names(tmp_path / "r.toml", {})
        with pytest.raises(ValueError, match=rf"{table}\W*{name}|unknown method"):
            read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("path", [*PAPER.values(), *MINI.values()], ids=lambda path: path.stem)
def test_recipes_of_the_package_name_what_there_is(path: Path) -> None:
    try:
        check_names(path, {})
    except ValueError as error:
        # The user's own data.
        assert str(error).startswith("there are no pairs at"), error


def test_a_recipe_in_utf_16_is_printed(tmp_path: Path) -> None:
    """As it is read."""
    (tmp_path / "x.toml").write_text('# mine\nbase = "advflyp"\n', encoding="utf-16")
    assert "# mine" in recipe_text(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("keys", "remarks"),
    [
        ({}, []),
        ({"method.clean_gradients": False, "method.reference": "frozen"},
         ["method.clean_gradients has no effect here: method.reference = 'frozen'"]),
        ({"method.feature_weight": 0, "method.logit_weight": 0, "method.original_sees": "clean"},
         ["method.original_sees has no effect here: neither regulariser has a weight"]),
        ({"method.logit_weight": 0, "method.logit_temperature": 1},
         ["method.logit_temperature has no effect here: method.logit_weight = 0"]),
        ({"attack.overfitting_gap": 0.1}, ["attack.overfitting_gap has no effect here: attack.steps is not 1"]),
        ({"attack.steps": 1, "attack.overfitting_gap": 0.1, "validate.set": "mini/val", "validate.attack": "clean"},
         ["attack.overfitting_gap has no effect here: validate.attack = 'clean'"]),
        ({"optim.beta2": 0.9, "optim.name": "sgd"}, ["optim.beta2 has no effect here: optim.name = 'sgd'"]),
        ({"data.also_share": 0.3}, ["data.also_share has no effect here: there is no data.also"]),
        ({"attack.steps": 0, "attack.start": "zero", "attack.step_size": 0.1},
         ["attack.start has no effect here: attack.steps = 0"]),
        ({"optim.warmup_steps": 0, "optim.warmup_share": 1},
         ["optim.warmup_share has no effect here: optim.warmup_steps = 0"]),
        ({"optim.warmup_share": 0, "optim.warmup_steps": 5},
         ["optim.warmup_steps has no effect here: optim.warmup_share = 0"]),
        ({"validate.set": "none", "validate.limit": 9},
         ["train.patience has no effect here: there is no validate.set"]),
        ({"data.text_cache": "x", "train.deterministic": True},
         ["data.text_cache has no effect here: train.deterministic = true"]),
        ({"data.text_cache": "x", "train.unfreeze": "all"},
         ["data.text_cache has no effect here: train.unfreeze = 'all'"]),
        ({"attack.steps": 0, "method.original_sees": "clean"},
         ["method.original_sees has no effect here: attack.steps = 0"]),
        ({"method.logit_gradients": "all"},
         ["method.logit_gradients has no effect here: only the image tower is trained"]),
        ({"method.name": "pmg_aft", "method.original_weight": 0, "method.clean_weight": 0, "method.divergence": "sum"},
         ["method.divergence has no effect here: neither divergence has a weight"]),
        ({"method.name": "tga_zsr", "method.refinement_weight": 0, "method.constraint_weight": 0,
          "method.attention_norm": "dim"},
         ["method.attention_norm has no effect here: neither attention map has a weight"]),
    ],
)  # fmt: skip
def test_keys_without_effect_are_named(keys: dict[str, Any], remarks: list[str]) -> None:
    assert without_effect(read_recipe("advflyp_full", {"data.train": "mini", **keys})) == remarks


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_no_recipe_of_the_package_has_one(name: str) -> None:
    assert without_effect(read_recipe(name, {})) == []


def test_fare_trains_no_text_tower() -> None:
    said = without_effect(read_recipe("mini/fare", {"train.unfreeze": "all"}))
    assert said == [
        "train.unfreeze has no effect here: no loss of method.name = 'fare' reaches the text tower"
    ]


def test_a_recipe_is_printed_whole() -> None:
    text = recipe_text("mini/tecoa")
    assert text.startswith(f"# {MINI['tecoa'].resolve()}") or "TeCoA (Mao et al. 2023)" in text
    assert tomllib.loads(text) == read_recipe_tree("mini/tecoa")
    assert tomllib.loads(text)["optim"]["lr_steps"] == 150 and "base" not in tomllib.loads(text)


def test_a_base_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common/all.toml").write_text('base = "mini/tecoa"\n[optim]\nlr = 1e-5\n')
    recipe = tmp_path / "mine.toml"
    recipe.write_text('base = "common/all.toml"\n[optim]\nmomentum = 0.8\n')
    found = read_recipe(recipe)
    # The base's lr_steps is for the base's lr.
    assert (found.optim.lr, found.optim.lr_steps, found.method_name) == (1e-5, None, "tecoa")
    assert found.optim.weight_decay == read_recipe("mini/tecoa").optim.weight_decay
    # Keys of another method are not inherited.
    recipe.write_text('base = "mini/advflyp_full"\n[method]\nname = "fare"\n')
    assert read_recipe_tree(recipe)["method"] == {"name": "fare"}
    recipe.write_text('base = "mini/advflyp_full"\n[optim]\nlrr = 1\n')
    with pytest.raises(ValueError, match="unknown key 'optim.lrr'; did you mean 'optim.lr'"):
        read_recipe(recipe)


@pytest.mark.parametrize(
    "base", ["../secret.toml", "{}/secret.toml", "link.toml", "a\\u0000b", "advflip", ""]
)
def test_a_base_elsewhere_is_not_read(base: str, tmp_path: Path) -> None:
    (tmp_path / "secret.toml").write_text("[optim]\nlr = 1e-5\n")
    here = tmp_path / "here"
    here.mkdir()
    (here / "link.toml").symlink_to(tmp_path / "secret.toml")
    (here / "mine.toml").write_text(f'base = "{base.format(tmp_path)}"\n')
    with pytest.raises(
        ValueError, match="base must be a file in this recipe's folder or a recipe of the package"
    ):
        read_recipe(here / "mine.toml")


def test_bases_in_a_circle(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "b")):
        (tmp_path / f"{name}.toml").write_text(f'base = "{base}.toml"\n')
    with pytest.raises(ValueError, match="b.toml is among its own bases"):
        read_recipe(tmp_path / "a.toml")


def test_a_resolved_recipe_has_no_base() -> None:
    assert "base" not in tomllib.loads(read_recipe("mini/tecoa").toml())


def test_the_page_on_recipes_has_every_key_and_recipe() -> None:
    page = (CONFIGS.parent / "docs/recipes.md").read_text()
    recipes = [path.stem for path in CONFIGS.glob("*.toml")]
    assert [name for name in [*known_keys(), *recipes] if f"`{name}`" not in page] == []
