"""Which parameters are trained."""

from pathlib import Path

import pytest
import torch

from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.training.loop import train
from advflyp.training.recipe import read_recipe
from advflyp.training.unfreeze import unfreeze
from helpers import siglip_config, small_model

STEM = {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}


def trained(model: CLIP, what: str) -> set[str]:
    """Names below the image tower of what `unfreeze` lets gradients reach."""
    chosen = {id(parameter) for parameter in unfreeze(model, what)}
    names = {name for name, parameter in model.net.named_parameters() if parameter.requires_grad}
    assert chosen == {id(dict(model.net.named_parameters())[name]) for name in names}
    assert all(name.startswith("visual.") for name in names)
    return {name.removeprefix("visual.") for name in names}


def test_the_first_blocks_of_a_vit(tiny_folder: Path) -> None:
    assert trained(load_model(tiny_folder), "vision[:0]") == STEM
    one = trained(load_model(tiny_folder), "vision[:1]")
    block = {name for name, _ in load_model(tiny_folder).visual.named_parameters() if ".resblocks.0." in name}
    assert block and one == STEM | block
    every = {name for name, _ in load_model(tiny_folder).visual.named_parameters()}
    assert every - trained(load_model(tiny_folder), "vision[:2]") == {
        "ln_post.weight",
        "ln_post.bias",
        "proj",
    }


def test_the_first_blocks_of_timms_vit() -> None:
    found = trained(small_model(siglip_config()), "vision[:1]")
    assert {"trunk.pos_embed", "trunk.patch_embed.proj.weight", "trunk.blocks.0.attn.qkv.weight"} <= found
    assert {name.split(".")[1] for name in found} == {"pos_embed", "patch_embed", "blocks"}
    assert not any(name.startswith("trunk.blocks.1") for name in found)


def test_a_run_moves_nothing_else(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    for name, more in {"plain": {}, "parts": {"train.micro_batch": 5}}.items():
        overrides = {"train.unfreeze": "vision[:1]", "train.max_steps": 2, **more}
        train(recipe, overrides, out=tmp_path / name)
        before, after = (load_model(folder).net.state_dict() for folder in (tiny_folder, tmp_path / name))
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved == {f"visual.{key}" for key in trained(load_model(tiny_folder), "vision[:1]")}


def test_mistakes(recipe: Path, tmp_path: Path, tiny: CLIP, tiny_rn_folder: Path) -> None:
    with pytest.raises(
        ValueError, match="is for ViTs: the image tower of .*, ModifiedResNet, has no sequence of blocks"
    ):
        unfreeze(load_model(tiny_rn_folder), "vision[:1]")
    with pytest.raises(ValueError, match=r"'vision\[:3\]': the image tower of .* has 2 blocks"):
        unfreeze(tiny, "vision[:3]")
    for wrong in ("vision[4]", "vision[:-1]", "text"):
        with pytest.raises(
            ValueError, match=r"train.unfreeze must be one of vision, vision\+text, all, or 'vision"
        ):
            read_recipe(recipe, {"train.unfreeze": wrong})
