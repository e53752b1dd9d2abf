"""Embeddings in parts: the values and gradients of the whole batch, in the memory of a part."""

import copy

import pytest
import torch

from advflyp.method.advflyp import clip_loss
from advflyp.model.clip import CLIP
from advflyp.model.recompute import in_parts
from helpers import TEXT, VISION, assert_equal64, small_model


def gradients(model: CLIP, images: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
    leaf = images.clone().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    loss = clip_loss(model.encode_image(leaf), text, 20.0)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert leaf.grad is not None
    return {"loss": loss.detach(), "pixels": leaf.grad, **found}


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_loss_and_gradients_are_those_of_the_whole_batch(any_tiny: CLIP, size: int) -> None:
    any_tiny.double().requires_grad_(False)
    any_tiny.visual.requires_grad_(True)
    images = torch.rand(10, 3, *any_tiny.image_size, dtype=torch.float64)
    text = torch.nn.functional.normalize(torch.randn(10, 24, dtype=torch.float64), dim=-1)
    whole = gradients(any_tiny, images, text)
    any_tiny.micro_batch = size
    parts = gradients(any_tiny, images, text)
    assert parts.keys() == whole.keys() and len(whole) > 10
    for key in ("loss", "pixels"):
        assert_equal64(parts.pop(key), whole.pop(key))
    assert_equal64(parts, whole)


def test_patches_in_parts(tiny: CLIP) -> None:
    images = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    whole = tiny.double().encode_patches(images)
    tiny.micro_batch = 2
    parts = tiny.encode_patches(images)
    assert_equal64(parts.image, whole.image)
    assert_equal64(parts.tokens, whole.tokens)
    assert parts.grid == whole.grid


def test_second_gradients_are_refused(tiny: CLIP) -> None:
    """Rather than silently without what flows through the recomputation."""
    tiny.micro_batch = 2
    images = torch.rand(3, 3, 32, 32).requires_grad_()
    (first,) = torch.autograd.grad(tiny.encode_image(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_what_needs_no_gradient_gets_none() -> None:
    weight, unused = (torch.nn.Parameter(torch.randn(n, 3, dtype=torch.float64)) for n in (3, 1))
    x = torch.randn(4, 3, dtype=torch.float64)

    def encode(rows: torch.Tensor) -> torch.Tensor:
        return rows @ weight

    in_parts(encode, x, 2, [weight, unused]).sum().backward()
    assert unused.grad is None and x.grad is None
    assert_equal64(weight.grad, x.sum(0)[:, None].expand(3, 3))
    with torch.no_grad():
        assert not in_parts(encode, x, 2, [weight]).requires_grad
    frozen = weight.detach()
    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(in_parts(lambda rows: rows @ frozen, leaf, 2, [frozen]).sum(), leaf)
    assert_equal64(found, frozen.sum(1).expand(4, 3))


def test_memory_is_that_of_a_part() -> None:
    """Activations kept for the gradient, counted where autograd keeps them."""
    deep = {"embed_dim": 24, "vision_cfg": {**VISION["vit"], "layers": 4}, "text_cfg": TEXT}
    model = small_model(deep)
    model.requires_grad_(False)
    model.visual.requires_grad_(True)

    def most_kept(micro_batch: int | None) -> int:
        here = copy.deepcopy(model)
        here.micro_batch = micro_batch
        kept, most = 0, 0

        class Held:
            def __init__(self, tensor: torch.Tensor) -> None:
                nonlocal kept, most
                self.tensor = tensor
                kept += tensor.numel()
                most = max(most, kept)

            def __del__(self) -> None:
                nonlocal kept
                kept -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            here.encode_image(torch.rand(128, 3, 32, 32)).sum().backward()
        return most

    assert most_kept(16) < 0.25 * most_kept(None)
