"""Texts without their padding: open_clip's embeddings and gradients, from fewer places."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from advflyp.model.text_tower import encode_unpadded
from helpers import TEXT, VISION, assert_equal64, small_model

CAUSAL = {
    "argmax": {},
    "its own end": {"pool_type": "eos", "eos_id": 7},
    "no projection": {"proj_type": "none", "width": 24},
    "projection with a bias": {"proj_bias": True},
    "of its own": {"custom_text": True},
    "of its own, its own end": {"custom_text": True, "pool_type": "eos", "eos_id": 7},
}
WHOLE = {
    "sees the padding": {"no_causal_mask": True},
    "read at the last place": {"pool_type": "last"},
    "an embedding at the end": {"embed_cls": True, "custom_text": True},
}


def tower(keys: dict[str, Any]) -> Any:
    custom = {"custom_text": True} if "custom_text" in keys else {}
    text = {**TEXT, **{key: value for key, value in keys.items() if key != "custom_text"}}
    net: Any = (
        small_model({"embed_dim": 24, "vision_cfg": VISION["vit"], "text_cfg": text, **custom}).double().net
    )
    return net.train()


def of_lengths(net: Any, lengths: tuple[int, ...]) -> Tensor:
    """Texts that end with 99, the highest token, or where the tower looks for it with 7."""
    context = getattr(net, "text", net).context_length
    pooling = net.text.pool_type if hasattr(net, "text") else net.text_pool_type
    end = 7 if pooling == "eos" else 99
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, : length - 1] = torch.arange(8, 7 + length)
        tokens[row, length - 1] = end
    return tokens


def with_gradients(net: Any, features: Tensor) -> dict[str, Tensor]:
    weights = {name: w for name, w in net.named_parameters() if "visual" not in name and w.requires_grad}
    target = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view_as(features)
    found = torch.autograd.grad((features * target).sum(), list(weights.values()), allow_unused=True)
    return {"features": features} | {n: g for n, g in zip(weights, found, strict=True) if g is not None}


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_tower_computes_no_padding(name: str) -> None:
    net = tower(CAUSAL[name])
    tokens, cpu = of_lengths(net, (3, 5, 2)), torch.device("cpu")
    assert_equal64(
        with_gradients(net, encode_unpadded(net, tokens, cpu)), with_gradients(net, net.encode_text(tokens))
    )
    counts = []
    for encode in (lambda: encode_unpadded(net, tokens, cpu), lambda: net.encode_text(tokens)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encode()
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.4 * counts[1], "5 of 16 places"


@pytest.mark.parametrize("name", CAUSAL)
def test_texts_that_fill_the_context(name: str) -> None:
    net = tower(CAUSAL[name])
    tokens = of_lengths(net, (16, 2))
    assert_equal64(encode_unpadded(net, tokens, torch.device("cpu")), net.encode_text(tokens))


@pytest.mark.parametrize("name", WHOLE)
def test_other_towers_are_computed_whole(name: str) -> None:
    net = tower(WHOLE[name])
    tokens = of_lengths(net, (3, 5, 2))
    found = encode_unpadded(net, tokens, torch.device("cpu"))
    assert torch.equal(found, net.encode_text(tokens))
    assert not torch.allclose(net.encode_text(torch.where(tokens == 0, 1, tokens)), found), (
        "the padding counts"
    )


def test_no_texts() -> None:
    net = tower({})
    assert encode_unpadded(net, torch.zeros(0, 16, dtype=torch.int64), torch.device("cpu")).shape == (0, 24)
