from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from advflyp.config import (
    Typed,
    build,
    check_there,
    convert,
    nearest_path,
    override,
    read_toml,
)
from advflyp.documents import read_text
from advflyp.training.recipe import read_recipe

CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True, kw_only=True)
class Inner:
    eps: float = 0.1
    steps: int = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    choice: Literal["a", "b"] = "a"
    limit: int | None = None
    names: tuple[str, ...] = ()
    flag: bool = False


def test_fills_nested_dataclasses() -> None:
    tree = {"name": "x", "inner": {"eps": "4/255"}, "limit": 3, "names": ["p", "q"], "flag": True}
    assert build(Outer, tree) == Outer(
        name="x", inner=Inner(eps=4 / 255), limit=3, names=("p", "q"), flag=True
    )


def test_texts_from_the_command_line() -> None:
    typed = {"inner.eps": "1e-2", "inner.steps": "7"}
    tree = {"name": "x", **override({}, typed)}
    tree |= {"limit": Typed("none"), "names": Typed("p, q"), "flag": Typed("true")}
    assert build(Outer, tree) == Outer(name="x", inner=Inner(eps=0.01, steps=7), names=("p", "q"), flag=True)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"nam": "x"}, "unknown key 'nam'; did you mean 'name'?"),
        ({"name": "x", "inner": {"stepz": 1}}, "unknown key 'inner.stepz'; did you mean 'inner.steps'?"),
        ({"name": "x", "zzz": 1}, "unknown key 'zzz'; known: choice, flag, inner, limit, name, names"),
        ({}, "the recipe lacks name"),
        ({"name": 3}, "name must be a string, not 3"),
        ({"name": "x", "inner": {"steps": 1.5}}, "inner.steps must be a whole number, not 1.5"),
        ({"name": "x", "inner": {"steps": True}}, "inner.steps must be a whole number, not True"),
        ({"name": "x", "inner": {"steps": "7"}}, 'inner.steps is the text "7"; write it without quotes: 7'),
        ({"name": "x", "inner": {"eps": "0.1"}}, 'inner.eps is the text "0.1"; write it without quotes: 0.1'),
        ({"name": "x", "flag": "true"}, 'flag is the text "true"; write it without quotes: true'),
        ({"name": "x", "names": "p,q"}, "names must be a list, not 'p,q'"),
        ({"name": "x", "inner": {"steps": "two"}}, "inner.steps must be a whole number, not 'two'"),
        ({"name": "x", "inner": {"eps": "1/0"}}, "inner.eps must be a number or a fraction"),
        ({"name": "x", "inner": {"eps": "nan"}}, "inner.eps must be a number, not nan"),
        ({"name": "x", "inner": {"eps": [1]}}, "inner.eps must be a number"),
        ({"name": "x", "inner": 3}, "inner must be a table, not 3"),
        ({"name": "x", "choice": "c"}, "choice cannot be 'c'; it is one of a, b"),
        ({"name": "x", "flag": "yes"}, "flag must be true or false, not 'yes'"),
        ({"name": "x", "names": 3}, "names must be a list, not 3"),
    ],
)
def test_mistakes_are_one_sentence(tree: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        build(Outer, tree)
    assert str(error.value).startswith(message)


def test_overrides_do_not_change_the_original() -> None:
    tree = {"a": {"x": 1}}
    assert override(tree, {"a.x": "2", "b.y": 3}) == {"a": {"x": "2"}, "b": {"y": 3}}
    assert tree == {"a": {"x": 1}}
    with pytest.raises(ValueError, match=r"'lr' is not a recipe key; write it as table\.key"):
        override(tree, {"lr": 1})
    with pytest.raises(ValueError, match="'a' must be a table"):
        override({"a": 1}, {"a.x": "2"})


def test_another_method_has_other_keys() -> None:
    """On a command line as in a recipe on top of a base: the keys below are those of the base's method."""
    tree = {"method": {"name": "advflyp", "loss": "sigmoid"}}
    assert override(tree, {"method.loss": "auto"})["method"] == {"name": "advflyp", "loss": "auto"}
    same = override(tree, {"method.name": "advflyp", "method.logit_weight": "1"})["method"]
    assert same == {"name": "advflyp", "loss": "sigmoid", "logit_weight": "1"}
    own = override(tree, {"method.weight": "2", "method.name": "my:Own"})["method"]
    assert own == {"name": "my:Own", "weight": "2"}


def test_fractions() -> None:
    assert convert("8/255", float, "x") == 8 / 255
    assert convert("none", int | None, "x") is None
    assert convert(1, float, "x") == 1.0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_text(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes('[a]\nx = "é"\n'.encode(encoding))
    assert read_toml(path) == {"a": {"x": "é"}}
    assert read_text(path).startswith("[a]")


def test_a_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("cat\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"labels.txt is not UTF-8 \(byte 0xe9 in line 2\); save it as UTF-8"
    ):
        read_text(path)


def test_unreadable_recipes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*x\.toml: No such file"):
        read_toml(tmp_path / "x.toml")
    with pytest.raises(ValueError, match="cannot read .*: Is a directory"):
        read_toml(tmp_path)
    (tmp_path / "bad.toml").write_text("[a\n")
    with pytest.raises(ValueError, match="is not valid TOML"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"')
    with pytest.raises(ValueError, match="is not valid TOML"):
        read_toml(tmp_path / "latin.toml")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.toml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_shipped_recipe_reads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    (tmp_path / "resolved.toml").write_text(recipe.toml())
    assert read_recipe(tmp_path / "resolved.toml") == recipe


def test_the_paper_s_recipe() -> None:
    """Sec. 4.2 and the released code's optimiser."""
    recipe = read_recipe(CONFIGS / "advflyp_full.toml")
    assert recipe.model.name == "ViT-B-32/openai"
    assert recipe.data.batch_size == 256
    assert (recipe.attack.norm, recipe.attack.eps) == ("linf", 1 / 255)
    assert (recipe.attack.steps, recipe.attack.step_size) == (2, 1 / 255)
    assert (recipe.method.feature_weight, recipe.method.logit_weight) == (1, 1)
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 1e-4, 0.9, 0)
    assert (optim.warmup_steps, optim.schedule) == (1000, "cosine")
    assert (recipe.train.epochs, recipe.train.patience, recipe.train.unfreeze) == (100, 10, "vision")
    assert (recipe.data.resize, recipe.data.interpolation, recipe.data.drop_last) == (256, "bilinear", False)
    assert recipe.train.seed == 42
    basic = read_recipe(CONFIGS / "advflyp.toml")
    assert (basic.method.feature_weight, basic.method.logit_weight) == (0, 0)
    assert basic.attack == recipe.attack and basic.optim == recipe.optim


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.name": "advflip"}, "unknown method 'advflip'; did you mean 'advflyp'?"),
        ({"method.feature_wieght": 1}, "did you mean 'method.feature_weight'?"),
        ({"atack.eps": 1}, "unknown key 'atack'; did you mean 'attack'?"),
        ({"attack.eps": 0}, "eps must be above 0"),
        ({"attack.eps": "-1/255"}, "eps must be above 0"),
        ({"data.batch_size": 0}, "data.batch_size must be at least 2"),
        ({"data.batch_size": 1}, "data.batch_size must be at least 2, not 1: the contrastive loss"),
        ({"data.limit": 8}, "data.limit = 8 does not fill one batch of 256"),
        ({"data.workers": 0}, "data.workers must be at least 1"),
        ({"optim.lr": "fast"}, "optim.lr must be a number"),
        ({"optim.lr": 0}, "optim.lr must be above 0"),
        ({"optim.warmup_steps": -1}, "optim.warmup_steps must be at least 0"),
        ({"optim.max_grad_norm": 0}, "optim.max_grad_norm must be above 0"),
        ({"train.epochs": 0}, "train.epochs must be at least 1"),
        (
            {"train.unfreeze": "everything"},
            "train.unfreeze must be one of vision, vision+text, all, or 'vision[:4]'",
        ),
        ({"validate.attack": "pgd"}, "there is no attack 'pgd'"),
        ({"validate.limit": 0}, "validate.limit must be at least 1"),
        ({"checkpoint.keep": 0}, "checkpoint.keep must be at least 1"),
    ],
)
def test_impossible_values(overrides: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_recipe(CONFIGS / "advflyp_full.toml", overrides)
    assert message in str(error.value)


NUMERIC = [
    f"{table}.{key}"
    for table, keys in read_recipe(CONFIGS / "mini/advflyp_full.toml").tree().items()
    for key, value in keys.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]


@pytest.mark.parametrize("value", ["1e39", "-1e39", "1e400", "9" * 400])
@pytest.mark.parametrize("key", NUMERIC)
def test_no_number_that_nothing_can_compute_with(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.") + r"\b.*(size|number|above|between|most)"):
        read_recipe(CONFIGS / "mini/advflyp_full.toml", {key: value})


def test_no_integer_of_a_file_that_no_float_holds() -> None:
    with pytest.raises(ValueError, match=r"eps must be at most 1e\+30 in size"):
        build(Outer, {"name": "x", "inner": {"eps": 10**400}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", "1e38"),
        ("optim.momentum", "1"),
        ("attack.step_size", "4"),
        ("optim.weight_decay", "1e20"),
    ],
)
def test_numbers_that_no_run_survives(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        read_recipe(CONFIGS / "mini/advflyp_full.toml", {key: value})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ValueError) as error:
        build(Outer, {"nam": "x", "flag": "yes", "inner": {"steps": "two", "eps": "nan", "zzz": 1}})
    assert str(error.value) == (
        "5 mistakes: (1) unknown key 'nam'; did you mean 'name'?  (2) flag must be true or false, not 'yes'  "
        "(3) inner.steps must be a whole number, not 'two'  (4) inner.eps must be a number, not nan  "
        "(5) unknown key 'inner.zzz'; known: eps, steps"
    )


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("my-picturs", [], "my-pictures"),
        ("./my-picturs", [], "my-pictures"),
        ("my-picturs/cat", [], "my-pictures/cat"),
        ("{}/my-picturs/cat", [], "{}/my-pictures/cat"),
        ("my-picturs/dog", [], None),  # neither is there
        ("my-pictures/cta", [], "my-pictures/cat"),
        ("my-pictures", ["your-pictures"], None),  # it is there
        ("x" * 300, [], None),
        ("a\0b", [], None),
        ("eurosta", ["eurosat"], "eurosat"),
        ("eurosta", [], None),
        (".hiden", [], None),
        ("no/such/place/at/all", [], None),
        ("nothing", [], None),  # other.png is not near it
        ("", [], None),
    ],
)
def test_the_nearest_path(
    name: str, known: list[str], hint: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-pictures/cat").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "other.png").touch()
    monkeypatch.chdir(tmp_path)
    found = nearest_path(name.format(tmp_path), known)
    assert found == ("" if hint is None else f"; did you mean '{hint.format(tmp_path)}'?")
    if hint is not None and not known:
        with pytest.raises(
            ValueError, match=f"there is no folder .*; did you mean '{hint.format(tmp_path)}'"
        ):
            check_there(name.format(tmp_path), "there is no folder")
