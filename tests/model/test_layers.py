"""Layers computed in another way: PyTorch's own results and gradients, at the cost that their products say."""

import json
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Transformer
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from advflyp.model.clip import CLIP
from advflyp.model.layers import (
    ORIGINALS,
    AttentionPool,
    Float32Conv2d,
    LastBlock,
    SelfAttention,
    patch_layers,
)
from advflyp.model.precision import Resolved
from helpers import TEXT, VISION, assert_equal64, small_model


def gradients(module: nn.Module, x: Tensor, *arguments: object, **how: object) -> Iterator[Tensor]:
    """The output, and the gradients of a sum of it by the input and the parameters."""
    x = x.clone().requires_grad_()
    inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    found = module(*inputs, *arguments, **how)
    found = found[0] if isinstance(found, tuple) else found
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    yield found
    yield from torch.autograd.grad((found * weights).sum(), [x, *module.parameters()])


def test_attention_of_some_places_to_all() -> None:
    """The class token alone, as in `LastBlock`."""
    plain = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(plain.in_proj_bias)
    ours = deepcopy(plain)
    ours.__class__ = SelfAttention
    x = torch.randn(5, 7, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (ours, plain):
        found, _ = layer(x[:, :2], x, x, need_weights=False)
        results.append([found, *torch.autograd.grad(found.square().sum(), [x, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        assert_equal64(one, other)


@pytest.mark.parametrize("masked", ["", "causal", "each its own"])
def test_attention(masked: str) -> None:
    plain = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(plain.in_proj_bias)
    ours = deepcopy(plain)
    patch_layers(nn.Sequential(ours), nn.Conv2d(3, 1, 1))
    assert type(ours) is SelfAttention and ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(5, 7, 24, dtype=torch.float64)
    masks = {
        "": None,
        "causal": torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1),
        "each its own": torch.randn(5 * 3, 7, 7, dtype=torch.float64),
    }
    for one, other in zip(
        gradients(ours, x, attn_mask=masks[masked], need_weights=False),
        gradients(plain, x, attn_mask=masks[masked], need_weights=False),
        strict=True,
    ):
        assert_equal64(one, other)


def test_other_uses_of_attention_are_pytorchs() -> None:
    plain = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    ours = deepcopy(plain)
    ours.__class__ = SelfAttention
    x, y = (torch.randn(2, places, 8, dtype=torch.float64) for places in (4, 3))
    for arguments, how in (
        ((x, y, y), {"need_weights": False}),
        ((x, x, x), {}),
        (
            (x, x, x),
            {"need_weights": False, "key_padding_mask": torch.tensor([[False, False, True, True]] * 2)},
        ),
        ((x[0], x[0], x[0]), {"need_weights": False}),
    ):
        one, other = ours(*arguments, **how), plain(*arguments, **how)
        assert_equal64(one[0], other[0])
        assert (one[1] is None) == (other[1] is None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "how", "size"),
    [
        (4, {"stride": 4}, (8, 12)),
        ((2, 4), {"stride": (2, 4)}, (8, 12)),
        (4, {"stride": 4}, (9, 13)),  # a margin that the convolution leaves out
        (1, {"stride": 2}, (9, 12)),  # as in MobileOne's stem
        (3, {"stride": 2, "padding": 1}, (8, 12)),
        (4, {"stride": 4, "padding": 2}, (8, 12)),
        (2, {"stride": 2, "dilation": 2}, (8, 12)),
    ],
)
def test_convolution(kernel: int, how: dict, size: tuple[int, int], bias: bool) -> None:
    plain = nn.Conv2d(3, 5, kernel, bias=bias, dtype=torch.float64, **how)
    ours = deepcopy(plain)
    ours.__class__ = Float32Conv2d
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = x.contiguous(memory_format=layout)
        for one, other in zip(gradients(ours, images), gradients(plain, images), strict=True):
            assert_equal64(one, other)


# What `torch_settings.py` may set → where products are rounded then: CUDA's of matrices and convolutions, the CPU's.
# None: torch 2.11 and 2.15 differ in what reaches convolutions on CUDA.
ROUNDED = {
    "defaults": (False, True, False, False),
    "old matmul": (True, True, False, False),
    "old cudnn off": (False, False, False, False),
    "high": (True, True, True, False),
    "medium": (True, True, True, False),
    "new tf32": (True, True, True, True),
    "new ieee": (False, None, False, False),
    "new cpu bf16": (False, None, True, True),
    "new conv ieee": (False, False, False, False),
    "old and new": (False, True, False, False),
}


@pytest.fixture(scope="module")
def under_each_setting() -> dict[str, dict[str, Any]]:
    program = Path(__file__).with_name("torch_settings.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", ROUNDED)
def test_whatever_torch_is_set_to_the_pixels_keep_a_perturbation(
    name: str, under_each_setting: dict[str, dict[str, Any]]
) -> None:
    """Nothing raises, which older and newer names do to each other; and everything stays as it was set."""
    found = under_each_setting[name]
    for rounds, expected in zip(found["rounds"][:4], ROUNDED[name], strict=True):
        assert expected is None or rounds == expected
    assert found["rounds"][4:] == [False, False], "Apple's GPUs have nothing of the kind"
    # A sum of n = 192 products is in error by √n·2⁻²⁴ of their sizes' sum, n/20; the effect is √n/20 of 1/64. So
    # float32 may lose √n·2⁻²⁴·√n·64 = 7e-4 (and loses 3e-5), where TF32 and bfloat16 lose 2e-2.
    assert max(found["errors"]) < 7e-4
    assert found["kept"]


@pytest.fixture
def rounding_on_the_cpu() -> Iterator[None]:
    for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv):
        place.fp32_precision = "bf16"
    yield
    for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv):
        place.fp32_precision = "none"


class Products(TorchDispatchMode):
    """The types of the factors of each product, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution):
            self.types.append(args[-1].dtype if func is torch.ops.aten.mm.default else args[1].dtype)
        elif func is torch.ops.aten.convolution_backward.default:
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("rounding_on_the_cpu")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_first_layer_goes_another_way(any_tiny: CLIP, precision: Resolved) -> None:
    """Forward and backward; the rest of the tower is left to what the user has set."""
    images = torch.rand(2, 3, *any_tiny.image_size, requires_grad=True)
    with any_tiny.computing_in(precision):
        with Products() as forward:
            embeddings = any_tiny.encode_image(images)
        with Products() as backward:
            torch.autograd.grad(embeddings.sum(), images)
    rest = torch.bfloat16 if precision == "bf16" else torch.float32
    assert forward.types[0] == torch.float64 and set(forward.types[1:]) == {rest}
    assert backward.types[-1] == torch.float64 and torch.float64 not in backward.types[:-1]
    assert embeddings.dtype == torch.float32


def test_every_convolution_of_pixels_is_patched_and_no_subclass() -> None:
    """Some towers read the pixels twice; a subclass computes something else."""

    class Standardised(nn.Conv2d):
        pass

    tower = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 3), Standardised(3, 4, 1)])
    patch_layers(tower, tower)
    assert list(map(type, tower)) == [Float32Conv2d, nn.Conv2d, Float32Conv2d, Standardised]
    without = nn.ModuleList([nn.Linear(3, 4)])
    patch_layers(without, without)


def test_single_pixels_are_multiplied() -> None:
    """The backward pass of such a convolution, of images of 256 pixels in channels-last layout, crashes torch."""
    layer = nn.Conv2d(3, 4, 1, stride=2)
    layer.__class__ = Float32Conv2d
    images = torch.rand(2, 3, 9, 12).contiguous(memory_format=torch.channels_last)
    with Called() as found:
        layer(images).sum().backward()
    assert not any("convolution" in name for name in found.names)


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, Conv2dSame])
def test_timms_own_convolutions_of_pixels_are_not_rounded(kind: Any) -> None:
    """They pad the image or standardise the weights first, and read pixels all the same."""
    plain = kind(3, 4, 3, stride=2)
    ours = deepcopy(plain)
    for _ in range(2):
        patch_layers(nn.Sequential(ours), nn.Sequential(ours))
    assert ORIGINALS[type(ours)] is kind and ours.state_dict().keys() == plain.state_dict().keys()
    images = torch.rand(2, 3, 9, 13)
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(images).dtype == torch.bfloat16
        assert torch.equal(ours(images), deepcopy(ours)(images))
        assert ours(images).dtype == torch.float32
        found = ours(images)
    assert torch.equal(found, plain(images))
    for one, other in zip(
        gradients(ours.double(), images.double()), gradients(plain.double(), images.double()), strict=True
    ):
        assert_equal64(one, other)


def test_by_default_nothing_is_computed_in_float64(any_tiny: CLIP) -> None:
    with Products() as found:
        any_tiny.encode_image(torch.rand(2, 3, *any_tiny.image_size))
    assert set(found.types) == {torch.float32}


def test_half_images_and_weights_are_computed_in_float32() -> None:
    layer = nn.Conv2d(3, 4, 2, stride=2).bfloat16()
    layer.__class__ = Float32Conv2d
    x = torch.rand(1, 3, 4, 4).bfloat16()
    with Products() as found:
        assert layer(x).dtype == torch.bfloat16
    assert found.types == [torch.float32]


def test_a_compiled_tower_is_not_broken_at_the_first_layer() -> None:
    layer = nn.Conv2d(3, 4, 2, stride=2)
    layer.__class__ = Float32Conv2d
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


class Called(TorchDispatchMode):
    """Which operations were called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    @property
    def names(self) -> set[str]:
        return set(self.calls)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_on_frozen_weights_copies_them_for_no_place_of_the_sequence(
    tiny: CLIP, precision: Resolved
) -> None:
    """A batch of products is what becomes of the projection where it does: see `SelfAttention`."""

    def called(model: CLIP) -> set[str]:
        with model.computing_in(precision), Called() as found:
            torch.autograd.grad(model.encode_image(images).sum(), images)
        return found.names

    tiny.requires_grad_(False)
    images = torch.rand(2, 3, *tiny.image_size, requires_grad=True)
    assert "aten.mm" in called(tiny) and "aten.bmm" not in called(tiny)
    assert "aten.bmm" in called(as_pytorch(tiny)), "what this guards against is real"


def test_attention_gathers_its_gradient_in_one_operation() -> None:
    layer = SelfAttention(24, 3, batch_first=True)
    x = torch.randn(5, 7, 24, requires_grad=True)
    with Called() as found:
        torch.autograd.grad(layer(x, x, x, need_weights=False)[0].sum(), x)
    assert "aten.stack" in found.names
    assert not {"aten.select_backward", "aten.add", "aten.clone"} & found.names


@pytest.mark.parametrize(("kernel", "copies"), [(4, 2), (3, 1)])
def test_the_first_layer_copies_pixels_once(kernel: int, copies: int) -> None:
    """A ViT's gathers patches of whatever layout, and its weights; another one wants the channels last."""
    layer = nn.Conv2d(3, 5, kernel, stride=4)
    layer.__class__ = Float32Conv2d
    images = torch.rand(2, 3, 8, 8)
    with Called() as found, torch.no_grad():
        result = layer(images)
    assert found.calls.count("aten.clone") == copies
    assert result.is_contiguous(memory_format=torch.channels_last)


LAST = {
    "plain": {},
    "layer scale": {"ls_init_value": 0.3},
    "norm after pooling": {"final_ln_after_pool": True},
    "patch dropout": {"patch_dropout": 0.5},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", LAST)
def test_the_last_block_computes_the_class_token_alone(name: str, checkpointing: bool) -> None:
    """Embeddings and all gradients are those of open_clip's own tower, for fewer products."""
    vision = {**VISION["vit"], "layers": 3, **LAST[name]}
    ours = small_model({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}).double().train()
    plain = as_pytorch(ours)
    assert type(ours.net.visual.transformer.resblocks[-1]) is LastBlock
    assert type(plain.net.visual.transformer) is Transformer
    images = torch.rand(2, 3, *ours.image_size, dtype=torch.float64)
    results, counts = [], []
    for model in (ours, plain):
        model.requires_grad_(True).net.visual.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        results.append(list(gradients(model.visual, images)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.visual(images)
        counts.append(counter.get_total_flops())
    for one, other in zip(*results, strict=True):
        assert_equal64(one, other)
    # Of each other token: ten of twelve products of width², and its attention to all tokens.
    others, width = 8 if name == "patch dropout" else 16, 32
    assert counts[1] - counts[0] == 2 * 2 * others * (10 * width**2 + 2 * (1 + others) * width)


def test_attention_pooling_computes_one_query() -> None:
    """The embedding and all gradients are those of open_clip's own layer, for fewer products."""
    plain = AttentionPool2d(3, 24, 3, 10).double()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = deepcopy(plain)
    patch_layers(nn.Sequential(ours), nn.Conv2d(3, 1, 1))
    assert type(ours) is AttentionPool
    x = torch.randn(2, 24, 3, 3, dtype=torch.float64)
    # Together, because the gradient of the keys' bias is zero.
    assert_equal64(*({str(n): one for n, one in enumerate(gradients(layer, x))} for layer in (ours, plain)))
    counts = []
    for layer in (ours, plain):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        counts.append(counter.get_total_flops())
    # Of nine other places: the query's product and its output's, and its attention to ten places.
    assert counts[1] - counts[0] == 2 * 2 * 9 * (24 * 24 + 24 * 10 + 2 * 10 * 24)


def test_other_uses_of_the_blocks_are_open_clips() -> None:
    """Intermediate features have every token, and so has a tower that pools them or returns them."""
    vision = {**VISION["vit"], "layers": 3}
    model = small_model({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}).double()
    images = torch.rand(2, 3, *model.image_size, dtype=torch.float64)
    one, other = (each.net.visual.forward_intermediates(images) for each in (model, as_pytorch(model)))
    assert len(one["image_intermediates"]) == 3
    for ours, plain in zip(one["image_intermediates"], other["image_intermediates"], strict=True):
        assert_equal64(ours, plain)
    # What is set later counts too.
    for change in ({"pool_type": "avg"}, {"output_tokens": True}):
        found = []
        for each in (model, as_pytorch(model)):
            vars(each.visual).update(change)
            result = each.visual(images)
            found += [dict(enumerate(result if isinstance(result, tuple) else [result]))]
        assert_equal64(*({str(key): value for key, value in one.items()} for one in found))
        vars(model.visual).update(pool_type="tok", output_tokens=False)
    model.net.visual.transformer.prune_intermediate_layers(2)
    assert_equal64(model.visual(images), as_pytorch(model).visual(images))


def as_pytorch(model: CLIP) -> CLIP:
    """A copy with PyTorch's own layers."""
    model = deepcopy(model)
    for module in model.modules():
        module.__class__ = ORIGINALS.get(type(module), type(module))
    return model


def test_a_tower_computes_the_same_for_less(tiny: CLIP) -> None:
    tiny, images = tiny.double(), torch.rand(2, 3, *tiny.image_size, dtype=torch.float64)
    counts = []
    for model in (tiny, as_pytorch(tiny)):
        with FlopCounterMode(display=False) as counter:
            embeddings = model.encode_image(images)
        counts.append(counter.get_total_flops())
        assert_equal64(embeddings, tiny.encode_image(images))
    assert 0 < counts[0] < counts[1]
