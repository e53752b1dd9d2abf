"""Folders that transformers wrote, from its own random models: what we load computes the same."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from open_clip.tokenizer import SimpleTokenizer

from advflyp.cli.main import main
from advflyp.model.folder import save_model
from advflyp.model.load import load_model
from helpers import assert_equal64

pytest.importorskip("transformers")
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

TEXTS = ["a photo of a cat", "Two dogs,  one bone!", "naïve café"]


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own vocabulary, made from open_clip's copy of it."""
    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: Any = {names.get(token, token): number for token, number in own.encoder.items()}
    return CLIPTokenizer(vocabulary, [pair for pair in own.bpe_ranks if len(pair) == 2], model_max_length=20)


def write(folder: Path, activation: str = "quick_gelu", **processor: Any) -> CLIPModel:
    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "hidden_act": activation}
    text = {**small, "num_hidden_layers": 1, "max_position_embeddings": 20, "projection_dim": 12}
    vision = {**small, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **processor}
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**size), clip_tokenizer()).save_pretrained(folder)
    return model


def assert_same(model: CLIPModel, folder: Path) -> None:
    model, found = deepcopy(model).double(), load_model(folder).double()
    pixels = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    inputs = clip_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        images = model.get_image_features(pixel_values=(pixels - found.mean) / found.std).pooler_output
        texts = model.get_text_features(**inputs).pooler_output
        for ours, theirs in ((found.encode_image(pixels), images), (found.encode_text(TEXTS), texts)):
            assert_equal64(ours, theirs / theirs.norm(dim=-1, keepdim=True))
    assert_equal64(found.logit_scale, model.logit_scale.exp())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_the_same_embeddings(activation: str, tmp_path: Path) -> None:
    """The activation is what the configuration says, also of what is saved from it."""
    model = write(tmp_path / "hf", activation)
    assert_same(model, tmp_path / "hf")
    loaded = load_model(tmp_path / "hf")
    assert isinstance(loaded.tokenizer, SimpleTokenizer), "CLIP's vocabulary needs no transformers"
    save_model(loaded, tmp_path / "ours", {})
    assert_same(model, tmp_path / "ours")


def test_files_of_weights(tmp_path: Path) -> None:
    model = write(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert (tmp_path / "model.safetensors.index.json").is_file() and len(list(tmp_path.glob("model-*"))) > 1
    assert_same(model, tmp_path)
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(ValueError, match=r"lacks model-00001-of-\d+\.safetensors, which its model"):
        load_model(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(model, tmp_path)


def test_weights_that_are_none_or_twice_there(tmp_path: Path) -> None:
    model = write(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="4MB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    first, second = sorted(tmp_path.glob("model-*"))[:2]
    states = [safetensors.torch.load_file(path) for path in (first, second)]
    key = next(iter(states[0]))
    safetensors.torch.save_file({**states[1], key: states[0][key]}, second)
    with pytest.raises(ValueError, match=f"two of the weights files in .* hold {key}; delete"):
        load_model(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    state = model.state_dict()
    key = "visual_projection.weight"
    torch.save({**state, key: state[key].to(torch.int8)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"stores visual\.proj as whole numbers, which are no weights"):
        load_model(tmp_path)


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


WRONG_VALUES = {
    "config.json": [
        {"vision_config": None},
        {"text_config": []},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"text_config": {"num_hidden_layers": "x"}},
        {"vision_config": {"hidden_act": ["gelu"]}},
        {"vision_config": {"image_size": 10**6}},
        {"vision_config": {"layer_norm_eps": 1e-2}},
        {"text_config": {"layer_norm_eps": 1e-6}},
        {"vision_config": {"num_attention_heads": 0}},
        {"text_config": {"eos_token_id": 320}},
    ],
    "processor_config.json": [
        {"image_mean": "x"},
        {"image_std": [0, 0, 0]},
        {"image_std": [1, 1]},
        {"resample": []},
        {"resample": 99},
        {"resample": 1},
        {"size": "x"},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_resize": False},
        {"do_resize": "x"},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": "x"},
    ],
}


CASES = [(name, number) for name, rows in WRONG_VALUES.items() for number in range(len(rows))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_wrong_values(name: str, number: int, tmp_path: Path) -> None:
    """Each is one sentence, and found before memory is taken for what it describes."""
    write(tmp_path / "model")
    path = tmp_path / "model" / name
    found = json.loads(path.read_text())
    tables = found["image_processor"] if name == "processor_config.json" else found
    for key, value in WRONG_VALUES[name][number].items():
        both = isinstance(value, dict) and isinstance(tables.get(key), dict)
        tables[key] = {**tables[key], **value} if both else value
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="model"):
        load_model(tmp_path / "model")


def test_wrong_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(name: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["eval", str(tmp_path / name), "--sets", "mini/food", "--limit", "2"])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1, error
        return error

    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    assert "holds a model of the type 'bert'; only transformers models of type 'clip'" in refused("bert")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    assert "config.json is damaged" in refused("damaged")
    (tmp_path / "list").mkdir()
    (tmp_path / "list/config.json").write_text("[1]")
    assert "is damaged: it does not hold an object" in refused("list")

    write(tmp_path / "empty")
    (tmp_path / "empty/model.safetensors").unlink()
    assert "holds no weights: neither model.safetensors nor pytorch_model.bin" in refused("empty")
    write(tmp_path / "cut")
    whole = (tmp_path / "cut/model.safetensors").read_bytes()
    (tmp_path / "cut/model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in refused("cut")
    write(tmp_path / "odd", resample=3, size={"shortest_edge": 48})
    assert "resizes images to {'shortest_edge': 48} and crops" in refused("odd")
    write(tmp_path / "wide")
    config = json.loads((tmp_path / "wide/config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    change(tmp_path / "wide/config.json", **config)
    assert "do not fit its config.json" in refused("wide")
    write(tmp_path / "relu")
    config["vision_config"] |= {"num_hidden_layers": 2, "hidden_act": "relu"}
    change(tmp_path / "relu/config.json", **config)
    assert "open_clip has no activation 'relu'; known: quick_gelu, gelu" in refused("relu")


def test_a_layer_of_any_number(tmp_path: Path) -> None:
    """The weights say how many there are, not how they are numbered."""
    write(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    state = safetensors.torch.load_file(path)
    state["vision_model.encoder.layers.9999999999.x"] = torch.ones(1)
    safetensors.torch.save_file(state, path, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 'vision_model.encoder.layers.2"):
        load_model(tmp_path / "model")
