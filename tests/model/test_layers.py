"""Layers computed in another way: PyTorch's own results and gradients, at the cost that their products say."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from advflyp.model.clip import CLIP, Precision
from advflyp.model.layers import Float32Conv2d, SelfAttention, exchange


def gradients(module: nn.Module, x: Tensor, *arguments: object, **how: object) -> Iterator[Tensor]:
    """The output, and the gradients of a sum of it by the input and the parameters."""
    x = x.clone().requires_grad_()
    inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    found = module(*inputs, *arguments, **how)
    found = found[0] if isinstance(found, tuple) else found
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    yield found
    yield from torch.autograd.grad((found * weights).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked: bool) -> None:
    plain = nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(plain.in_proj_bias)
    ours = deepcopy(plain)
    exchange(nn.Sequential(ours), nn.Conv2d(3, 1, 1))
    assert type(ours) is SelfAttention and ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(5, 7, 24, dtype=torch.float64)
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1) if masked else None
    for one, other in zip(
        gradients(ours, x, attn_mask=mask, need_weights=False),
        gradients(plain, x, attn_mask=mask, need_weights=False),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_other_uses_of_attention_are_pytorchs() -> None:
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    ours = deepcopy(plain)
    ours.__class__ = SelfAttention
    x, y = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
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
        torch.testing.assert_close(one[0], other[0])
        assert (one[1] is None) == (other[1] is None)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "how", "size"),
    [
        (4, {"stride": 4}, (8, 12)),
        ((2, 4), {"stride": (2, 4)}, (8, 12)),
        (4, {"stride": 4}, (9, 13)),  # a margin that the convolution leaves out
        (3, {"stride": 2, "padding": 1}, (8, 12)),
        (4, {"stride": 4, "padding": 2}, (8, 12)),
        (2, {"stride": 2, "dilation": 2}, (8, 12)),
    ],
)
def test_convolution(kernel: int, how: dict, size: tuple[int, int], bias: bool) -> None:
    plain = nn.Conv2d(3, 5, kernel, bias=bias, **how)
    ours = deepcopy(plain)
    ours.__class__ = Float32Conv2d
    x = torch.randn(2, 3, *size)
    for layout in (torch.contiguous_format, torch.channels_last):
        images = x.contiguous(memory_format=layout)
        for one, other in zip(gradients(ours, images), gradients(plain, images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Called(TorchDispatchMode):
    """Which operations were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_attack_on_frozen_weights_copies_them_for_no_place_of_the_sequence(
    tiny: CLIP, precision: Precision
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


def as_pytorch(model: CLIP) -> CLIP:
    """A copy with PyTorch's own layers."""
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.__class__ = nn.MultiheadAttention
        if isinstance(module, Float32Conv2d):
            module.__class__ = nn.Conv2d
    return model


def test_a_tower_counts_and_computes_the_same(tiny: CLIP) -> None:
    images = torch.rand(2, 3, *tiny.image_size)
    counts = []
    for model in (tiny, as_pytorch(tiny)):
        with FlopCounterMode(display=False) as counter:
            embeddings = model.encode_image(images)
        counts.append(counter.get_total_flops())
        torch.testing.assert_close(embeddings, tiny.encode_image(images), rtol=1e-5, atol=1e-6)
    assert counts[0] == counts[1] > 0
