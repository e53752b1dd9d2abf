"""What a run says of keys that change nothing because of its model and data is true."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advflyp.model.folder import save_model
from advflyp.training.build import build
from advflyp.training.recipe import read_recipe
from advflyp.training.update import update
from data.test_training import class_tree
from devices.recording import Recordings
from helpers import TEXT, VISION, models_in_float64, siglip_config, small_model, write_shards

LABELLED = {"method.name": "tecoa", "data.train": "classes"}
PROXY = {"method.name": "flyp", "data.train": "mini/proxy", "data.limit": 40}
MINI = {"data.train": "mini", "data.limit": 40}
FARE = {"method.name": "fare"}
TEMPLATES = "a {} | the {}"
IN_MEMORY = "a mini corpus is in memory, and its images are composed"
NOT_IN_TABLE = "the pairs are not in a table"
NOT_ON_LABELS = "method.name = 'advflyp' does not train on labels"


def steps(recipe: Path, keys: dict[str, Any], out: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights after an epoch and a step, and what was said before."""
    with models_in_float64():
        run = build(read_recipe(recipe, keys), out)
    for batch in [*run.pairs.epoch(0), next(run.pairs.epoch(1))]:
        update(run, batch)
        run.state.step += 1
    run.close()
    return run.model.state_dict(), [note for note in run.notes if "no effect" in note]


@pytest.fixture
def recipe(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    class_tree(tmp_path / "classes", 40)
    write_shards(tmp_path / "shards", 40, 20)
    rows = [f"none,pairs/{number:04d}.png,wrong,a thing" for number in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(["image,b,caption,d", *rows]))
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text().replace("feature_weight = 1.0\nlogit_weight = 1.0\n", "")
    recipe.write_text(text.replace("deterministic = true", "deterministic = false"))
    return recipe


@pytest.mark.parametrize(
    ("keys", "key", "value", "why"),
    [
        ({}, "data.templates", TEMPLATES, NOT_ON_LABELS),
        (MINI, "data.templates", TEMPLATES, NOT_ON_LABELS),
        ({}, "data.shuffle_buffer", 5, "the pairs are not in shards"),
        ({}, "data.size", 30, "the pairs are not in shards"),
        ({}, "data.image_column", "x", NOT_IN_TABLE),
        ({"data.limit": 20, "data.also": "shards"}, "data.caption_column", "x", NOT_IN_TABLE),
        (LABELLED, "data.shuffle_buffer", 5, "labelled images are not read in the order of shards"),
        (LABELLED, "data.caption_column", "text", "labelled images are not read in the order of shards"),
        (LABELLED, "data.text_cache", "cache", "each class has one prompt, encoded once"),
        (MINI, "data.interpolation", "bilinear", IN_MEMORY),
        (PROXY, "data.resize", 40, IN_MEMORY),
        (PROXY, "data.loader", "process", IN_MEMORY),
        (FARE, "data.text_cache", "cache", "method.name = 'fare' uses no text"),
        ({}, "train.batch_norm", "update", "{model} has no batch normalisation"),
    ],
)
def test_a_key_that_is_named_changes_nothing(
    keys: dict[str, Any], key: str, value: Any, why: str, recipe: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    without, _ = steps(recipe, keys, tmp_path / "without")
    weights, said = steps(recipe, {**keys, key: value}, tmp_path / "run")
    assert said == [f"{key} has no effect here: {why.format(model=tiny_folder)}"]
    assert all(torch.equal(weight, without[name]) for name, weight in weights.items())


@pytest.mark.parametrize(
    "keys",
    [
        {"data.train": "shards", "data.shuffle_buffer": 5, "data.text_cache": "cache"},
        {"data.train": "table.csv", "data.image_column": "b", "data.caption_column": "d"},
        {"data.also": "table.csv", "data.image_column": "b", "data.caption_column": "d"},
        {"data.also": "shards", "data.shuffle_buffer": 5, "data.resize": 40},
        {**PROXY, "data.templates": TEMPLATES, "data.text_cache": "cache"},
        {**LABELLED, "data.resize": 40, "data.interpolation": "bilinear", "data.templates": TEMPLATES},
    ],
)
def test_no_key_that_changes_something_is_named(keys: dict[str, Any], recipe: Path, tmp_path: Path) -> None:
    assert steps(recipe, keys, tmp_path / "run")[1] == []


def test_statistics_of_a_resnet_are_updated(recipe: Path, tmp_path: Path, tiny_rn_folder: Path) -> None:
    keys = {"model.name": str(tiny_rn_folder), "train.batch_norm": "update"}
    assert steps(recipe, keys, tmp_path / "run")[1] == []


@pytest.mark.parametrize("name", ["siglip", "patch dropout"])
def test_dropout_is_active_while_statistics_are_updated(name: str, recipe: Path, tmp_path: Path) -> None:
    """timm's towers have dropout at a rate of 0, which does nothing."""
    vision = {**VISION["vit"], "patch_dropout": 0.5}
    dropping = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    save_model(small_model(siglip_config() if name == "siglip" else dropping), tmp_path / name, {})
    keys = {"model.name": str(tmp_path / name)}
    without, _ = steps(recipe, keys, tmp_path / "without")
    weights, said = steps(recipe, {**keys, "train.batch_norm": "update"}, tmp_path / "run")
    is_same = all(torch.equal(weight, without[key]) for key, weight in weights.items())
    assert is_same == (said != []) == (name == "siglip")


@pytest.mark.parametrize("unfreeze", ["vision", "all"])
def test_a_frozen_text_tower_has_no_dropout(unfreeze: str, recipe: Path, tmp_path: Path) -> None:
    """Its embeddings are cached for all steps."""
    run = build(
        read_recipe(recipe, {"train.batch_norm": "update", "train.unfreeze": unfreeze}), tmp_path / "run"
    )
    add, modes = run.add_texts, list[bool]()
    run.add_texts = lambda batch: (modes.append(run.model.training), add(batch))[1]
    for batch in run.pairs.epoch(0):
        update(run, batch)
    assert set(modes) == {unfreeze == "all"}


SHARED = {"attack.steps": 1, "attack.start": "zero", "attack.share_clean_forward": True}
PMG = {"method.name": "pmg_aft", "data.train": "classes", **SHARED}


@pytest.mark.parametrize(
    ("keys", "replays"),
    [
        ({}, True),
        ({"attack.steps": 0}, False),
        ({"attack.steps": 0, "method.logit_weight": 1}, True),
        (PMG, True),
        ({**PMG, "method.original_weight": 0}, False),
    ],
)
def test_graphs_without_anything_to_replay(
    keys: dict[str, Any], replays: bool, recordings_of_a_processor: Recordings, recipe: Path, tmp_path: Path
) -> None:
    said = steps(recipe, {**keys, "train.graphs": True}, tmp_path / "run")[1]
    assert (recordings_of_a_processor.replayed > 0) == replays
    assert [note.split(" here")[0] for note in said] == ["train.graphs has no effect"] * (not replays)
