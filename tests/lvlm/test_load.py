import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from advflyp.lvlm.load import load_lvlm, with_tower
from advflyp.model.interop.hf import to_transformers
from helpers import assert_equal64
from helpers import loaded_vit as clip


@pytest.mark.parametrize(("kind", "tokens"), [("llava_folder", 9), ("next_folder", 9 + 6 * 7)])
def test_another_tower(kind: str, tokens: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """At another resolution: its states, its normalisation, as many image tokens as it has patches."""
    tower = clip(tmp_path)
    model = load_lvlm(request.getfixturevalue(kind), vision=tower, device="cpu").double()
    assert model.vision_name == "robust"
    assert model.image_side == (24 if kind == "llava_folder" else 48)
    assert model.image_tokens == tokens
    images = torch.rand(2, 3, model.image_side, model.image_side, dtype=torch.float64)
    losses = model.per_sample_loss(images, ["a", "what is there ?"], ["red", "a cat"])
    assert losses.isfinite().all()
    assert len(model.answer(images, ["a", "what is there ?"], max_new_tokens=3)) == 2
    # Raw states of the last layer but one, without the class token and the layer norm behind the tower.
    pixels = (images - tower.mean.double()) / tower.std.double()
    reference: Any = to_transformers(tower).double()
    if kind == "llava_folder":
        states = reference.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        seen = []
        model.net.model.multi_modal_projector.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        model.per_sample_loss(images, ["a", "a"], ["red", "red"])
        assert_equal64(seen[0], states)


def test_our_tower_gives_the_states_of_open_clip(llava_folder: Path, tmp_path: Path) -> None:
    """The trap: open_clip's own patch tokens are of the last layer, behind its layer norm."""
    tower = clip(tmp_path, size=16)
    model = load_lvlm(llava_folder, vision=tower, device="cpu").double()
    tower = tower.double()
    seen: list[torch.Tensor] = []
    visual: Any = tower.visual
    visual.transformer.resblocks[-2].register_forward_hook(lambda _, __, out: seen.append(out))
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    tower.encode_image(images)
    found = model.encode_tokens(images, patches=True)
    assert_equal64(found, torch.nn.functional.normalize(seen[0], dim=-1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"width": 40}, "40 wide, that of .* 32"), ({"layers": 2}, "2 layers deep, that of .* 3")],
)
def test_a_tower_that_does_not_fit(
    llava_folder: Path, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_lvlm(llava_folder, vision=clip(tmp_path, **changes), device="cpu")


def test_a_tower_without_tokens(llava_folder: Path, tiny_rn_folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a CLIP ViT; .* needs one that is 32 wide and 3 layers deep"):
        load_lvlm(llava_folder, vision=tiny_rn_folder, device="cpu")


def changed(source: Path, target: Path, **values: Any) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text()) | values
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, "vision tower of Qwen2.5-VL"),
        ({"model_type": "blip"}, "of the type 'blip'"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            "vision_config is of the type 'siglip_vision_model'",
        ),
        ({"text_config": {"model_type": "llama", "hidden_size": 10**12}}, "hidden_size must be at most"),
        ({"text_config": None}, "text_config is of the type 'None'"),
        (
            {"vision_feature_layer": 99},
            r"reads layer 99 of its image tower \(vision_feature_layer\), which has 3",
        ),
        ({"vision_feature_layer": [-5]}, "reads layer -5 of its image tower"),
        ({"image_token_index": 3}, r"do not hold its image token \(image_token_index 3\) once"),
        ({"image_token_index": -1}, r"do not hold its image token \(image_token_index -1\) once"),
        ({"attn_implementation": "evil/kernel"}, "attention implementation evil/kernel, which may be code"),
        ({"_attn_implementation": {"": "evil/kernel"}}, "attention implementation .*evil/kernel"),
    ],
)
def test_configurations_that_are_refused(
    llava_folder: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_lvlm(changed(llava_folder, tmp_path / "other", **values), device="cpu")


def test_a_model_is_no_larger_than_its_weights(llava_folder: Path, tmp_path: Path) -> None:
    """transformers would fill what is missing with noise, gigabytes of it, before it says that it is."""
    text = json.loads((llava_folder / "config.json").read_text())["text_config"]
    folder = changed(llava_folder, tmp_path / "other", text_config=text | {"intermediate_size": 1_000_000})
    with pytest.raises(
        ValueError, match="describes a model of .* parameters, more than its weights file holds"
    ):
        load_lvlm(folder, device="cpu")


@pytest.mark.parametrize("mean", [None, [0.5], "x", [0.5] * 4, 0.5])
def test_a_normalisation_of_other_colours(llava_folder: Path, tmp_path: Path, mean: Any) -> None:
    folder = changed(llava_folder, tmp_path / "other")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            settings.get("image_processor", settings)["image_mean"] = mean
            (folder / name).unlink()
            (folder / name).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="image_mean"):
        load_lvlm(folder, device="cpu")


def test_a_tokenizer_that_may_take_long(llava_folder: Path, tmp_path: Path) -> None:
    folder = changed(llava_folder, tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"cannot load .*its normalizer uses the pattern"):
        load_lvlm(folder, device="cpu")


def test_weights_that_are_not_finite(llava_folder: Path, tmp_path: Path) -> None:
    folder = changed(llava_folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights[min(weights)].view(-1)[0] = float("nan")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="cannot be used: 1 of its tensors is not finite"):
        load_lvlm(folder, device="cpu")


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 0.05},
        {"suppress_tokens": [*range(6, 40)]},
        {"min_new_tokens": 9},
        {"num_beams": 3},
    ],
)
def test_answers_are_greedy_whatever_the_folder_asks_for(
    llava_folder: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    folder = changed(llava_folder, tmp_path / "other")
    path = folder / "generation_config.json"
    own = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(own | asked))
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    one, other = (load_lvlm(place, device="cpu") for place in (llava_folder, folder))
    prompts = ["what is there in the image ?"] * 4
    expected = one.answer(images, prompts, max_new_tokens=12)
    assert other.answer(images, prompts, max_new_tokens=12) == expected and len(set(expected)) > 1
    assert one.config_sha256() == other.config_sha256()
    path.write_text(json.dumps(own | {"eos_token_id": 7}))
    assert load_lvlm(folder, device="cpu").config_sha256() != one.config_sha256()
    path.write_text(json.dumps(own | {"eos_token_id": "x"}))
    with pytest.raises(ValueError, match="eos_token_id"):
        load_lvlm(folder, device="cpu")


def test_rotary_positions_are_part_of_the_configuration(llava_folder: Path, tmp_path: Path) -> None:
    text = json.loads((llava_folder / "config.json").read_text())["text_config"]
    rope = text["rope_parameters"] | {"rope_theta": 50.0}
    folder = changed(llava_folder, tmp_path / "other", text_config=text | {"rope_parameters": rope})
    one, other = (load_lvlm(place, device="cpu").config_sha256() for place in (llava_folder, folder))
    assert one != other


def test_tiles_that_are_refused(next_folder: Path, tmp_path: Path) -> None:
    folder = changed(next_folder, tmp_path / "other", image_grid_pinpoints=[[16, 32]])
    with pytest.raises(ValueError, match="does not allow images of 32×32"):
        load_lvlm(folder, device="cpu")


def test_only_safetensors(llava_folder: Path, tmp_path: Path) -> None:
    folder = changed(llava_folder, tmp_path / "other")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="holds no safetensors"):
        load_lvlm(folder, device="cpu")


def test_a_model_that_comes_without_its_tower_takes_another(llava_folder: Path, tmp_path: Path) -> None:
    headless = shutil.copytree(llava_folder, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "vision_tower" not in key}
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"headless lacks .* weights, such as model\.vision_tower\."):
        load_lvlm(headless, device="cpu")
    tower = clip(tmp_path)
    found, whole = (load_lvlm(folder, vision=tower, device="cpu") for folder in (headless, llava_folder))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in found.state_dict().items())
    kept.popitem()
    save_file(kept, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weight, such as"):
        load_lvlm(headless, vision=tower, device="cpu")


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model folder"):
        load_lvlm(tmp_path / "nothing", device="cpu")
    with pytest.raises(ValueError, match="not a transformers model"):
        load_lvlm(tmp_path, device="cpu")


def test_a_tower_is_put_in_after_loading(llava_folder: Path, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16)
    model = load_lvlm(llava_folder, device="cpu")
    before = model.per_sample_loss(images, ["a"], ["cat"])
    after = with_tower(model, clip(tmp_path, size=16)).per_sample_loss(images, ["a"], ["cat"])
    assert not torch.allclose(before, after)
