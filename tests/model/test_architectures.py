"""Configurations of open_clip, the modules they describe, and models that users made with open_clip."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from transformers import BertConfig

import advflyp
from advflyp.evaluation.suite import evaluate
from advflyp.model import architectures
from advflyp.model.architectures import (
    architecture_config,
    architecture_names,
    config_of,
    embeds_as,
    is_built_by,
    meta_net,
    new_net,
    similar_architectures,
)
from advflyp.model.folder import save_model, weights_sha256
from advflyp.model.load import load_model
from advflyp.training.loop import train
from helpers import siglip_config

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Any, Any, Any]:
    """What a user of open_clip has: a net, its evaluation transform, its tokenizer."""
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "my-vit.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(tmp_path / "architectures")
    torch.manual_seed(0)
    net, _, preprocess = open_clip.create_model_and_transforms("my-vit", image_mean=(0.5, 0.4, 0.3))
    return net, preprocess, open_clip.get_tokenizer("my-vit")


def test_a_model_made_with_open_clip(made: tuple[Any, Any, Any], recipe: Path, tmp_path: Path) -> None:
    net, preprocess, tokenizer = made
    net.eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = net.visual.image_mean, net.visual.image_std
    normalised = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = net.encode_image(normalised, normalize=True)
        texts = net.encode_text(tokenizer(["a cat"]), normalize=True)
    model = advflyp.CLIP.from_open_clip(net, preprocess, tokenizer, name="mine")
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.encode_text(["a cat"]), texts, rtol=0, atol=1e-6)
    (clean,) = evaluate(model, ["mini/flags"], ["clean"], limit=8, device="cpu")
    assert clean.model == "mine" and clean.n == 8
    save_model(model, tmp_path / "mine", {})
    assert weights_sha256(load_model(tmp_path / "mine")) == weights_sha256(model)
    run = train(recipe, {"model.name": str(tmp_path / "mine"), "train.max_steps": 1}, out=tmp_path / "run")
    assert weights_sha256(load_model(run.out)) != weights_sha256(model)


def test_quick_gelu_is_seen(made: tuple[Any, Any, Any]) -> None:
    net, _, preprocess = open_clip.create_model_and_transforms("my-vit", force_quick_gelu=True)
    model = advflyp.CLIP.from_open_clip(net, preprocess, made[2])
    assert model.config["model_cfg"]["quick_gelu"]
    plain, _, preprocess = open_clip.create_model_and_transforms("my-vit")
    with pytest.raises(ValueError, match="does not match the given architecture"):
        advflyp.CLIP.from_open_clip(plain, preprocess, made[2], architecture={**CONFIG, "quick_gelu": True})


def test_other_models_need_their_architecture(made: tuple[Any, Any, Any]) -> None:
    architecture_names()  # tells open_clip ours
    net, _, preprocess = open_clip.create_model_and_transforms("mini")
    tokenizer = open_clip.get_tokenizer("my-vit")
    with pytest.raises(ValueError, match="the architecture of .* cannot be inferred from it: give"):
        advflyp.CLIP.from_open_clip(net, preprocess, tokenizer)
    model = advflyp.CLIP.from_open_clip(net, preprocess, tokenizer, architecture="mini")
    assert model.config["model_cfg"]["vision_cfg"]["layers"] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"no architecture 'mini-vitt'; did you mean 'mini-vit'\?"):
        advflyp.CLIP.from_open_clip(net, preprocess, tokenizer, architecture="mini-vitt")


def test_a_text_tower_without_a_causal_mask(made: tuple[Any, Any, Any], tmp_path: Path) -> None:
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "no_causal_mask": True}}
    (tmp_path / "architectures" / "my-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "architectures")
    net, _, preprocess = open_clip.create_model_and_transforms("my-vit")
    model = advflyp.CLIP.from_open_clip(net, preprocess, made[2])
    assert model.config["model_cfg"]["text_cfg"]["no_causal_mask"]
    save_model(model, tmp_path / "mine", {})
    texts = ["a red square", "a cat"]
    with torch.no_grad():
        loaded = load_model(tmp_path / "mine", device="cpu").encode_text(texts)
        torch.testing.assert_close(loaded, model.encode_text(texts), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="does not match the given architecture"):
        advflyp.CLIP.from_open_clip(net, preprocess, made[2], architecture=CONFIG)


def doubled(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


@pytest.mark.parametrize("part", ["a hook", "a method", "a mask"])
def test_a_change_that_a_saved_model_would_lose(made: tuple[Any, Any, Any], part: str) -> None:
    net, preprocess, tokenizer = made
    net.train()
    net.visual.ln_pre.eval()
    advflyp.CLIP.from_open_clip(net, preprocess, tokenizer)
    if part == "a hook":
        net.visual.transformer.resblocks[0].mlp.register_forward_hook(doubled)
    elif part == "a method":
        net.encode_text = lambda tokens: torch.ones(len(tokens), 24)
    else:
        net.attn_mask.zero_()
    with pytest.raises(
        ValueError, match="open_clip embeds differently from its architecture .*: undo what was"
    ):
        advflyp.CLIP.from_open_clip(net, preprocess, tokenizer)
    assert net.training and not net.visual.ln_pre.training


def test_another_image_size_needs_a_configuration(made: tuple[Any, Any, Any]) -> None:
    """In a ResNet no shape depends on it, but a saved model would take images of the size in its configuration."""
    architecture_names()  # tells open_clip ours
    net, _, preprocess = open_clip.create_model_and_transforms("mini", force_image_size=96)
    tokenizer = made[2]
    with pytest.raises(ValueError, match="does not match the given architecture; .* or give its model_cfg"):
        advflyp.CLIP.from_open_clip(net, preprocess, tokenizer, architecture="mini")


def test_another_transform_and_half_precision_are_refused(made: tuple[Any, Any, Any]) -> None:
    net, preprocess, tokenizer = made
    _, train_preprocess, _ = open_clip.create_model_and_transforms("my-vit", image_mean=(0.5, 0.4, 0.3))
    with pytest.raises(
        ValueError, match="preprocess is not the evaluation transform of open_clip: pass the third"
    ):
        advflyp.CLIP.from_open_clip(net, train_preprocess, tokenizer)
    with pytest.raises(ValueError, match="has half-precision weights; create it with precision='fp32'"):
        advflyp.CLIP.from_open_clip(net.half(), preprocess, tokenizer)


def test_a_classifier_is_a_module() -> None:
    model = load_model("mini-vit", device="cpu")
    classifier = model.classifier(["cat", "dog", "pizza"], ["a photo of a {}", "a {}"])
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    with model.computing_in("bf16"):
        logits = classifier(images)
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        cosines = model.encode_image(images) @ classifier.weights.T
    torch.testing.assert_close(logits, cosines * model.logit_scale, rtol=0, atol=1e-4)
    assert not classifier.weights.requires_grad and not set(classifier.state_dict()) & {"weights"}


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-g-14"])
def test_the_configuration_of_a_module(name: str) -> None:
    net = meta_net(architecture_config(name))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    config = config_of(net, tokenizer)
    assert config is not None and is_built_by(net, config)
    other = architecture_config("ViT-B-16" if name == "ViT-B-32" else "ViT-B-32")
    assert not is_built_by(net, other)


def test_a_text_tower_of_transformers_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
    }
    BertConfig(vocab_size=100, **sizes).save_pretrained(tmp_path)
    monkeypatch.setattr(architectures, "_text_tower_folder", lambda name: tmp_path)
    config = {**CONFIG, "text_cfg": {"hf_model_name": "owner/name"}}
    net = new_net(config)
    assert is_built_by(net, config) and embeds_as(net, config)
    net.get_submodule("text").register_forward_hook(lambda module, inputs, output: output.flip(1))
    assert is_built_by(net, config) and not embeds_as(net, config)


def test_no_memory_for_a_look() -> None:
    for config in (siglip_config(), architecture_config("convnext_base")):
        net = meta_net(config)
        assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"meta"}


def test_position_embeddings_that_are_computed_take_no_memory_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip computes them in NumPy, on the meta device too: 256 GB at the largest sizes allowed."""
    config = architecture_config("ViT-B-32")
    plain = meta_net(config).state_dict()["visual.positional_embedding"].shape
    config["vision_cfg"]["pos_embed_type"] = "sin_cos_2d"
    assert new_net(config).state_dict()["visual.positional_embedding"].shape == plain
    monkeypatch.setattr(open_clip.transformer, "get_2d_sincos_pos_embed", None)
    assert meta_net(config).state_dict()["visual.positional_embedding"].shape == plain


def test_tokens_are_put_out_for_a_decoder_only() -> None:
    """Otherwise the tower would return two tensors where one is expected."""
    config = architecture_config("ViT-B-32")
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["output_tokens"] = True
    assert not new_net(config).visual.output_tokens
    assert meta_net(architecture_config("coca_ViT-B-32")).visual.output_tokens


def test_architectures_of_the_same_sizes() -> None:
    state = meta_net(architecture_config("ViT-L-14-336")).state_dict()
    assert similar_architectures(state) == ["ViT-L-14-336", "ViT-L-14-CLIPA-336", "ViT-L-14-336-quickgelu"]
    assert similar_architectures(state | {"visual.proj": torch.ones(())}) == []
    assert similar_architectures(state | {"visual.positional_embedding": torch.ones(0, 3)}) == []
    state.pop("visual.conv1.weight")
    assert similar_architectures(state) == []


def test_a_random_coca_model_holds_no_uninitialised_memory() -> None:
    """open_clip never fills the projection of its decoder: it may be NaN, and no seed determines it."""
    config: Any = {
        **CONFIG,
        "custom_text": True,
        "vision_cfg": {**CONFIG["vision_cfg"], "output_tokens": True},
        "text_cfg": {**CONFIG["text_cfg"], "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 1},
    }
    empty, projections = torch.empty, []
    for filling in (1.0, torch.nan):

        def filled(*size: Any, value: float = filling, **how: Any) -> torch.Tensor:
            return empty(*size, **how).fill_(value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", filled)
            torch.manual_seed(0)
            net: Any = new_net(config)
            projections.append(net.text_decoder.text_projection.detach())
    assert torch.equal(*projections) and 0.1 < float(projections[0].std()) < 0.3


@pytest.mark.parametrize(
    ("tower", "options"),
    [
        ("image", {"pool_type": "none"}),
        ("image", {"attentional_pool": "parallel", "width": 24, "head_width": 8, "attn_pooler_heads": 2}),
        ("text", {"pool_type": "none"}),
    ],
)
def test_a_tower_that_pools_nothing(
    made: tuple[Any, Any, Any], tower: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Its many vectors for each image or text are no embedding."""
    table = {"image": "vision_cfg", "text": "text_cfg"}[tower]
    config: Any = {**CONFIG, table: {**CONFIG[table], **options}}
    (tmp_path / "architectures" / "unpooled.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "architectures")
    preprocess: Any
    net, _, preprocess = open_clip.create_model_and_transforms("unpooled")
    refused = f"the {tower} tower returns tokens instead of one embedding for each {tower}; choose another"
    with pytest.raises(ValueError, match=refused):
        advflyp.CLIP.from_open_clip(net, preprocess, made[2], architecture=config)
    with pytest.raises(ValueError, match=refused):
        evaluate(
            load_model("unpooled/random", device="cpu"), ["mini/flags"], ["clean"], limit=2, device="cpu"
        )


def test_a_logit_scale_with_one_dimension_is_a_scalar(made: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """open_clip's `nonscalar_logit_scale`, for FSDP."""
    config: Any = {**CONFIG, "nonscalar_logit_scale": True, "init_logit_bias": -10}
    (tmp_path / "architectures" / "nonscalar.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "architectures")
    net: Any
    preprocess: Any
    net, _, preprocess = open_clip.create_model_and_transforms("nonscalar")
    model = advflyp.CLIP.from_open_clip(net, preprocess, made[2], architecture=config)
    assert net.logit_scale.shape == (1,)
    assert model.logit_scale.shape == () and model.logit_scale == net.logit_scale.exp()
    assert model.logit_bias is not None and model.logit_bias.shape == () and model.logit_bias == -10
