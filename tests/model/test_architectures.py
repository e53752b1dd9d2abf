"""Which models of open_clip the shapes of a file fit."""

from typing import Any

import open_clip
import pytest
import torch

from advflyp.model.architectures import describe_models, fitting_architectures, models_of, only_model
from advflyp.model.load import load_model


def shapes_of(architecture: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        config: Any = open_clip.get_model_config(architecture)
        custom = config.pop("custom_text", False)
        config["vision_cfg"]["timm_model_pretrained"] = False
        net = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return {key: value.shape for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("architecture", "whole", "image_tower"),
    [
        ("ViT-L-14", ["ViT-L-14", "ViT-L-14-quickgelu"], None),
        ("ViT-L-14-336", ["ViT-L-14-336", "ViT-L-14-336-quickgelu"], None),
        ("RN50", ["RN50", "RN50-quickgelu"], None),
        # Which size of picture it was trained on, a convolution does not tell.
        ("convnext_base_w", ["convnext_base_w", "convnext_base_w_320"], None),
        ("ViT-g-14", ["ViT-g-14"], ["ViT-g-14"]),
        ("ViT-B-16-SigLIP", ["ViT-B-16-SigLIP"], None),
    ],
)
def test_architectures_by_their_shapes(
    architecture: str, whole: list[str], image_tower: list[str] | None
) -> None:
    shapes = shapes_of(architecture)
    assert fitting_architectures(shapes, whole=True) == whole
    image = {key: shape for key, shape in shapes.items() if key.startswith("visual.")}
    found = fitting_architectures(image, whole=False)
    assert found == image_tower or (image_tower is None and set(whole) <= set(found))


def test_a_tensor_more_or_less_fits_nothing() -> None:
    shapes = shapes_of("ViT-B-32")
    assert not fitting_architectures({**shapes, "visual.more": torch.Size([1])}, whole=True)
    shapes.pop("visual.proj")
    assert not fitting_architectures(shapes, whole=True)


def test_ours() -> None:
    state = load_model("mini-vit").net.state_dict()
    shapes = {key: value.shape for key, value in state.items()}
    models = models_of(fitting_architectures(shapes, whole=True))
    assert only_model(models) == "mini-vit"


def test_activations_are_told_apart() -> None:
    models = models_of(["ViT-B-32", "ViT-B-32-quickgelu"])
    assert models["ViT-B-32/openai"][0] and not models["ViT-B-32/laion2b_s34b_b79k"][0]
    assert only_model(models) is None
    # The same weights under both names.
    assert "ViT-B-32-quickgelu/openai" not in models
    described = describe_models(models)
    assert described.startswith("ViT-B-32/openai, ")
    assert "(QuickGELU) or ViT-B-32/laion2b" in described and described.endswith("(GELU)")


def test_one_architecture_may_still_have_several_meanings() -> None:
    assert only_model(models_of(["convnext_base_w"])) is not None
    assert only_model(models_of(["convnext_base_w", "convnext_base"])) is None
    assert only_model({}) is None


def test_without_known_weights_an_architecture_is_named_alone() -> None:
    assert not open_clip.list_pretrained_tags_by_model("ViT-S-32")
    assert list(models_of(["ViT-S-32"])) == ["ViT-S-32/random"]
