"""Logits in blocks of rows: the same losses and gradients, with memory that grows with N."""

import pytest
import torch

import advflyp.method.advflyp as contrastive
import advflyp.method.blocks as blocks
from advflyp.method.advflyp import clip_loss, same_captions, sigmoid_loss
from advflyp.method.regularisers import logit_divergence
from helpers import assert_equal64


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1).requires_grad_(True)


@pytest.mark.parametrize("kind", ["clip", "clip masked", "sigmoid", "sigmoid masked", "kl"])
@pytest.mark.parametrize("most", [1, 100, 23 * 23])
def test_blocks_change_nothing(kind: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 23
    images, text, other = unit(n, 8, 0), unit(n, 8, 1), unit(n, 8, 2)
    scale = torch.tensor(30.0, dtype=torch.float64, requires_grad=True)
    # Two captions alone: whole blocks of a column are left out.
    mask = same_captions(["a", "b"] * 11 + ["a"]) if "masked" in kind else None

    def loss() -> torch.Tensor:
        if kind.startswith("clip"):
            return clip_loss(images, text, scale, ignore=mask)
        if kind.startswith("sigmoid"):
            return sigmoid_loss(images, text, scale, -3.0, ignore=mask)
        return logit_divergence(images, other, text, scale)

    expected = loss()
    slopes = torch.autograd.grad(expected, [images, text, scale])
    monkeypatch.setattr(blocks, "MOST_LOGITS", most)
    monkeypatch.setattr(contrastive, "MOST_LOGITS", most)
    found = loss()
    assert_equal64(found, expected)
    for a, b in zip(torch.autograd.grad(found, [images, text, scale]), slopes, strict=True):
        assert_equal64(a, b)


def test_no_matrix_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MOST_LOGITS", 64 * 8)
    monkeypatch.setattr(contrastive, "MOST_LOGITS", 64 * 8)
    largest = 0

    def look(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    images, text = unit(64, 4, 0), unit(64, 4, 1)
    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        clip_loss(images, text, 10.0).backward()
    assert largest <= 64 * 8
