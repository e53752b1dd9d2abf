"""Objects in place of what a recipe names."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image

import advflyp
from advflyp.config import read_toml
from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256, read_card, save_model, weights_sha256
from advflyp.model.load import load_model
from advflyp.model.mix import interpolate
from advflyp.training import loop
from helpers import write_folder

FEW = {"train.max_steps": 3, "checkpoint.every": 1, "data.limit": None}


def pairs_in(folder: Path) -> list[tuple[Image.Image, str]]:
    """The pairs of `write_folder`, as anybody's list."""
    return [
        (Image.open(path).convert("RGB"), path.with_suffix(".txt").read_text())
        for path in sorted(folder.glob("*.png"))
    ]


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (value, value, value))


def test_objects_train_as_what_the_recipe_names(
    recipe: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short and resumed, too; the model that was given stays as it is, and the folder says what there was."""
    model = load_model(tiny_folder)
    before = weights_sha256(model)
    pairs = pairs_in(write_folder(tmp_path / "data", 40))
    mine = advflyp.LabelledSet([(grey(i), i % 2) for i in range(12)], ["dark", "light"], "a {}", name="mine")
    overrides = FEW | {"validate.attack": "pgd1"}

    def run(out: str, **how: bool) -> loop.RunResult:
        objects = {"model": model, "pairs": pairs, "validation_set": mine}
        return advflyp.train(recipe, overrides, out=tmp_path / out, **objects, **how)  # type: ignore[arg-type]

    result = run("whole")
    assert result.steps == 3 and result.before is not None and {"clean", "robust"} <= result.before.keys()
    assert weights_sha256(model) == before and weights_sha256(load_model(tmp_path / "whole")) != before
    written = read_toml(tmp_path / "whole/recipe.toml")
    assert written["model"]["name"] == f"object:{model.name}@{before[:12]}-{config_sha256(model)[:12]}"
    assert written["data"]["train"] == "object:list:40" and written["validate"]["set"] == "object:mine:12"
    assert read_card(tmp_path / "whole")["trained_on"][-1] == "object:list:40"

    real, steps = loop.update, iter(range(2))
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(loop, "update", lambda run, batch: (next(steps), real(run, batch))[1])
        run("cut")
    assert run("cut", resume=True).steps == 3
    for name, value in load_model(tmp_path / "whole").net.state_dict().items():
        assert torch.equal(value, load_model(tmp_path / "cut").net.state_dict()[name])


def test_names_do_as_well(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    data, out = write_folder(tmp_path / "more", 16), tmp_path / "run"
    advflyp.train(recipe, FEW | {"train.max_steps": 1}, out=out, model=tiny_folder, pairs=str(data))
    written = read_toml(out / "recipe.toml")
    assert (written["model"]["name"], written["data"]["train"]) == (str(tiny_folder), str(data))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_s_mode_without_gradients_changes_nothing(
    mode: Callable[[], AbstractContextManager[None]], recipe: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    pairs = pairs_in(tmp_path / "pairs")
    advflyp.train(recipe, FEW, out=tmp_path / "plain", model=load_model(tiny_folder), pairs=pairs)
    with mode():
        advflyp.train(recipe, FEW, out=tmp_path / "run", model=load_model(tiny_folder), pairs=pairs)
        assert not torch.is_grad_enabled()
    assert weights_sha256(load_model(tmp_path / "run")) == weights_sha256(load_model(tmp_path / "plain"))


def test_a_name_and_an_object_are_not_both_taken(recipe: Path, tmp_path: Path, tiny: CLIP) -> None:
    for key, objects in {
        "model.name": {"model": tiny},
        "data.train": {"pairs": pairs_in(tmp_path / "pairs")},
        "validate.set": {"validation_set": "mini/val"},
    }.items():
        with pytest.raises(
            ValueError, match=f"^{key} is given as an override and as an argument of train; leave"
        ):
            advflyp.train(recipe, {key: "mini"}, out=tmp_path / "run", **objects)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_resume_needs_the_same_objects(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    pairs, out = pairs_in(write_folder(tmp_path / "data", 40)), tmp_path / "run"
    advflyp.train(recipe, FEW, out=out, pairs=pairs)
    with pytest.raises(
        ValueError, match=r"data\.train = 'object:list:40' stands for a Python object.*\.train\(…, pairs=…\)"
    ):
        advflyp.train(recipe, FEW, out=out, resume=True)
    with pytest.raises(ValueError, match=r"data\.train = 'object:list:40' stands for a Python object"):
        advflyp.train(out / "recipe.toml", out=tmp_path / "again")
    with pytest.raises(ValueError, match="data.train was 'object:list:40', is 'object:list:39'"):
        advflyp.train(recipe, FEW, out=out, pairs=pairs[1:], resume=True)
    assert advflyp.train(recipe, FEW, out=out, pairs=pairs, resume=True).steps == 3


def test_objects_that_cannot_be_trained(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    frozen = load_model(tiny_folder).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"none of its parameters requires a gradient; call model\.requires_grad_"
    ):
        advflyp.train(recipe, FEW, out=tmp_path / "run", model=frozen)
    with pytest.raises(ValueError, match=r"model\.text cannot be combined with a model that is given"):
        advflyp.train(recipe, FEW | {"model.text": "mini"}, out=tmp_path / "run", model=frozen)
    with pytest.raises(ValueError, match="is a labelled set, and this method trains on pairs"):
        mine = advflyp.LabelledSet([(grey(i), i % 2) for i in range(16)], ["dark", "light"])
        advflyp.train(recipe, FEW, out=tmp_path / "run", pairs=mine)
    # Not passed over in favour of what the recipe names.
    with pytest.raises(
        ValueError, match=r"model=…\) takes a name or an advflyp.CLIP, not a CustomTextCLIP|CLIP; make"
    ):
        advflyp.train(recipe, FEW, out=tmp_path / "run", model=frozen.net)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"set=…\) takes a name or an advflyp.LabelledSet, not a list; make"):
        advflyp.train(recipe, FEW, out=tmp_path / "run", validation_set=[(grey(1), 0)])  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    # The folder of a run that could not be opened is free again, also while its error is at hand.
    advflyp.train(recipe, FEW, out=tmp_path / "run")
    with pytest.raises(ValueError, match="nowhere") as _:
        advflyp.train(recipe, FEW | {"data.train": "nowhere/*.tar"}, out=tmp_path / "run", resume=True)
    advflyp.train(recipe, FEW, out=tmp_path / "run", resume=True)


def test_what_two_models_learned_from_goes_on_from_their_mixture(
    recipe: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    models = []
    for name in ("food", "icons"):
        save_model(load_model(tiny_folder), tmp_path / name, {"trained_on": [f"mini/{name}"]})
        models.append(load_model(tmp_path / name))
    pairs, once = [(grey(i), str(i)) for i in range(40)], FEW | {"train.max_steps": 1}
    advflyp.train(recipe, once, out=tmp_path / "run", model=interpolate(*models, 0.5), pairs=pairs)
    assert read_card(tmp_path / "run")["trained_on"] == ["mini/food", "mini/icons", "object:list:40"]
    towers = {"model.name": str(tmp_path / "food"), "model.text": str(tmp_path / "icons")}
    advflyp.train(recipe, once | towers, out=tmp_path / "towers", pairs=pairs)
    assert read_card(tmp_path / "towers")["trained_on"] == ["mini/food", "mini/icons", "object:list:40"]
