"""bf16 copies of weights, in place of autocast's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.model.cast import WeightCasts, freeze_in_bf16, product_weights
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from helpers import TEXT, VISION, small_model
from model.test_patches import FAMILIES, WIDTH

TOWERS = {**FAMILIES, "ResNet": VISION["rn"]}


def make(vision: dict[str, Any]) -> CLIP:
    """A CLIP that computes in bf16; every weight random, so that none hides behind a zero, and none a bf16 number."""
    model = (
        small_model({"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": TEXT}).eval().requires_grad_(False)
    )
    for parameter in model.visual.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.precision = "bf16"
    return model


def outputs(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings, and the gradient of the images."""
    leaf = images.clone().requires_grad_()
    embeddings = model.encode_image(leaf)
    embeddings.backward(torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings))
    assert leaf.grad is not None
    return embeddings.detach(), leaf.grad


@pytest.mark.parametrize("family", TOWERS)
def test_copies_change_no_bit(family: str) -> None:
    model = make(TOWERS[family])
    images = torch.rand(3, 3, *model.image_size)
    expected = outputs(model, images)
    places = product_weights(model)
    casts = WeightCasts(places)
    for _ in range(2):
        with casts.in_place():
            assert {getattr(*place).dtype for place in places} == {torch.bfloat16}
            found = outputs(model, images)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    freeze_in_bf16(model)
    assert places and not product_weights(model)
    assert all(torch.equal(*pair) for pair in zip(outputs(model, images), expected, strict=True))


def test_the_weights_come_back_and_the_copies_follow_them(tiny: CLIP) -> None:
    tiny.precision = "bf16"
    before = dict(tiny.named_parameters())
    casts = WeightCasts(product_weights(tiny))
    with pytest.raises(KeyError), casts.in_place():
        raise KeyError
    after = dict(tiny.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert all(parameter.requires_grad for parameter in after.values())

    with torch.no_grad():
        for parameter in tiny.visual.parameters():
            parameter += 1
    expected = {name: value.bfloat16() for name, value in tiny.visual.named_parameters()}
    with casts.in_place():
        for name, value in tiny.visual.named_parameters():
            assert torch.equal(value.bfloat16(), expected[name])


def test_nothing_is_copied_in_float32_or_of_float64(tiny: CLIP) -> None:
    assert product_weights(tiny) == []
    weights = {name: value.clone() for name, value in tiny.state_dict().items()}
    freeze_in_bf16(tiny)
    assert all(torch.equal(value, weights[name]) for name, value in tiny.state_dict().items())
    tiny.precision = "bf16"
    assert product_weights(tiny.double()) == []


class Standardised(torch.nn.Conv2d):
    """What timm's ResNetV2 has: the weights are more than a factor."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), None, padding=1)


def test_a_layer_that_does_more_with_its_weights_keeps_them(tiny_rn_folder: Any) -> None:
    model = load_model(tiny_rn_folder)
    model.precision = "bf16"
    layer = [m for m in model.visual.modules() if type(m) is torch.nn.Conv2d and m.padding == (1, 1)][-1]
    assert (layer, "weight") in product_weights(model)
    layer.__class__ = Standardised
    assert (layer, "weight") not in product_weights(model)
