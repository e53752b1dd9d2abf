"""Images of another size than the model's own."""

from types import SimpleNamespace

import pytest
import torch
from open_clip.model import resize_pos_embed

from advflyp.model.clip import CLIP
from advflyp.model.resolution import positions_at
from helpers import assert_equal64, siglip_config, small_model


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 16), (40, 24)])
def test_positions_are_interpolated_as_open_clip_does_it(tiny: CLIP, size: tuple[int, int]) -> None:
    """open_clip's own function for weights that come from another resolution is the oracle."""
    visual = tiny.double().visual
    found = positions_at(visual, size, "tiny")["positional_embedding"]
    state = {"visual.positional_embedding": visual.positional_embedding.detach().clone()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(size[0] // 8, size[1] // 8))))
    assert_equal64(found, state["visual.positional_embedding"])


def test_the_models_own_size_needs_no_interpolation(any_tiny: CLIP) -> None:
    """The interpolation is then the identity, so what is computed with it are the model's embeddings."""
    model = any_tiny.double()
    ((key, found),) = positions_at(model.visual, model.image_size, "tiny").items()
    assert_equal64(found, model.visual.get_parameter(key))


def test_other_sizes_are_embedded(any_tiny: CLIP) -> None:
    """And the tower learns its own position embeddings from them."""
    size = 96 if any_tiny.image_size == (64, 64) else 48
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = any_tiny.double()
    whole = model.encode_image(images)
    assert whole.shape == (3, model.encode_image(torch.rand(1, 3, *model.image_size).double()).shape[1])
    model.micro_batch = 2
    assert_equal64(model.encode_image(images), whole)

    target = torch.rand(whole.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for parts in (None, 2):
        model.micro_batch = parts
        model.zero_grad()
        (model.encode_image(images) * target).sum().backward()
        gradients.append({name: p.grad for name, p in model.visual.named_parameters() if p.grad is not None})
    assert any("positional_embedding" in name and g.abs().sum() > 0 for name, g in gradients[0].items())
    assert_equal64(*gradients)


def test_sizes_and_towers_that_cannot(any_tiny: CLIP) -> None:
    with pytest.raises(ValueError, match=r"takes sizes that are multiples of \d+ pixels, not 44 × 44"):
        any_tiny.encode_image(torch.rand(1, 3, 44, 44))
    siglip = small_model(siglip_config())
    with pytest.raises(ValueError, match="TimmModel, takes images of its own size only"):
        siglip.encode_image(torch.rand(1, 3, 2 * siglip.image_size[0], 2 * siglip.image_size[1]))
