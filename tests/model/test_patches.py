"""Patch embeddings of small random models of every family of ViT that open_clip builds."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from helpers import TEXT, assert_equal64, small_model, small_timm

# Not square, so that rows and columns cannot be mixed up: 3 × 4 patches.
SIZE, PATCH, GRID = (24, 32), 8, (3, 4)


def _register(name: str, like: str, **other: Any) -> str:
    return small_timm(name, like, img_size=SIZE, patch_size=PATCH, **other)


OPEN_CLIP = {"image_size": SIZE, "patch_size": PATCH, "width": 32, "head_width": 16, "layers": 2}
TIMM = {"image_size": SIZE, "timm_model_pretrained": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "class token": OPEN_CLIP,
    "class token, no norm before": {**OPEN_CLIP, "no_ln_pre": True},
    "average": {**OPEN_CLIP, "pool_type": "avg"},
    "average, norm after": {**OPEN_CLIP, "pool_type": "avg", "final_ln_after_pool": True},
    "fixed positions": {**OPEN_CLIP, "image_size": (32, 32), "pos_embed_type": "sin_cos_2d"},
    "CoCa": {**OPEN_CLIP, "attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4},
    "SigLIP": {
        **TIMM,
        "timm_model_name": _register("small_siglip", "vit_base_patch16_siglip_224"),
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "EVA": {
        **TIMM,
        "timm_model_name": _register("small_eva", "eva02_base_patch16_clip_224"),
        "timm_pool": "token",
        "timm_proj": None,
    },
    "Perception Encoder": {
        **TIMM,
        "timm_model_name": _register("small_pe", "vit_pe_core_base_patch16_224", attn_pool_num_heads=2),
        "timm_pool": "map",
        "timm_proj": None,
    },
    "timm, average": {
        **TIMM,
        "timm_model_name": _register("small_gap", "vit_medium_patch16_gap_256"),
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "timm, relative positions": {
        **TIMM,
        "timm_model_name": _register("small_relpos", "vit_relpos_medium_patch16_cls_224"),
        "timm_pool": "token",
        "timm_proj": "mlp",
    },
}


WIDTH = 32  # of tokens and embeddings, since SigLIP has no projection between them


def make(vision: dict[str, Any], seed: int = 0) -> CLIP:
    """A CLIP in float64 with this tower; every parameter random, so that none hides behind a zero."""
    model = small_model({"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": TEXT}, seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in model.visual.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return model.double().eval()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[CLIP]:
    yield make(FAMILIES[request.param])


def noise_images(model: CLIP, n: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, *model.image_size, generator=g, dtype=torch.float64)


def test_one_token_a_patch_beside_the_embedding_of_the_image(family: CLIP) -> None:
    images = noise_images(family)
    image, tokens, grid = family.encode_patches(images)
    assert grid == family.patch_grid == (family.image_size[0] // PATCH, family.image_size[1] // PATCH)
    assert tokens.shape == (2, grid[0] * grid[1], WIDTH)
    assert_equal64(tokens.norm(dim=-1), torch.ones(tokens.shape[:2], dtype=torch.float64))
    assert_equal64(image, family.encode_image(images))


def test_an_image_of_equal_tokens_has_the_embedding_of_each(family: CLIP) -> None:
    """What a patch's embedding means: without positions, one colour makes all tokens equal, the class's made so too."""
    tower: Any = getattr(family.visual, "trunk", family.visual)
    image = torch.full((1, 3, *family.image_size), 0.3, dtype=torch.float64)
    conv = next(m for m in tower.modules() if isinstance(m, nn.Conv2d))
    patch = conv((image - family.mean) / family.std)[0, :, 0, 0]
    for name in ("positional_embedding", "pos_embed"):
        if getattr(tower, name, None) is not None:
            getattr(tower, name).data.zero_()
    for name in ("class_embedding", "cls_token"):
        if getattr(tower, name, None) is not None:
            token = getattr(tower, name).data
            token.copy_(patch.detach().expand_as(token))
    embedding, tokens, _ = family.encode_patches(image)
    assert (embedding.abs() > 1e-3).any()
    assert_equal64(tokens, embedding[:, None].expand_as(tokens))


def test_tokens_are_in_the_order_of_the_patches(family: CLIP) -> None:
    """With attention cut off, a changed patch changes its own token only."""
    tower: Any = getattr(family.visual, "trunk", family.visual)
    blocks = tower.transformer.resblocks if hasattr(tower, "transformer") else tower.blocks
    for block in blocks:
        out = block.attn.out_proj if hasattr(block.attn, "out_proj") else block.attn.proj
        out.weight.data.zero_()
    images = noise_images(family, 1)
    columns = family.patch_grid[1]
    changed = images.clone()
    row, column = 2, 1
    changed[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 0.9
    before, after = family.encode_patches(images).tokens, family.encode_patches(changed).tokens
    moved = (after - before)[0].norm(dim=1)
    here = row * columns + column
    assert moved[here] > 1e-3
    assert (torch.cat([moved[:here], moved[here + 1 :]]) < 1e-12).all()


@pytest.mark.parametrize("name", ["class token", "average", "average, norm after"])
def test_tokens_by_hand(name: str) -> None:
    """Last block → ln_post → projection; without a norm after it, their mean is the average's embedding."""
    model = make(FAMILIES[name])
    visual: Any = model.visual
    states: list[torch.Tensor] = []
    visual.transformer.resblocks[-1].register_forward_hook(lambda *call: states.append(call[2]))
    images = noise_images(model)
    tokens = model.encode_patches(images).tokens
    x = states[0]
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    norm = visual.ln_post
    y = (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    projected = y @ visual.proj
    expected = projected[:, 1:] / projected[:, 1:].norm(dim=-1, keepdim=True)
    assert_equal64(tokens, expected)
    pooled = {"class token": projected[:, 0], "average": projected[:, 1:].mean(1)}
    if name in pooled:
        embedding = F.normalize(pooled[name], dim=-1)
        assert_equal64(model.encode_image(images), embedding)


def test_attention_pooling_of_one_token_by_hand() -> None:
    """SigLIP's head on one token: its value, the output projection, the MLP around its norm."""
    model = make(FAMILIES["SigLIP"])
    trunk: Any = model.visual.trunk
    images = noise_images(model)
    with torch.no_grad():
        features = trunk.forward_features((images - model.mean) / model.std)
        pool = trunk.attn_pool
        value = F.linear(features, pool.kv.weight[WIDTH:], pool.kv.bias[WIDTH:])
        x = pool.proj(value)
        expected = F.normalize(x + pool.mlp(pool.norm(x)), dim=-1)
        tokens = model.encode_patches(images).tokens
    assert_equal64(tokens, expected)


@pytest.mark.parametrize("name", ["class token", "SigLIP", "EVA"])
def test_patch_dropout_leaves_the_map_whole(name: str) -> None:
    model = make({**FAMILIES[name], "patch_dropout": 0.5}).train()
    images = noise_images(model)
    tokens = model.encode_patches(images).tokens
    dropouts = [m for m in model.visual.modules() if "PatchDropout" in type(m).__name__]
    assert len(dropouts) == 1 and dropouts[0].training, "on again for the next forward"
    model.eval()
    assert_equal64(tokens, model.encode_patches(images).tokens)


def test_more_tokens_than_an_attention_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(FAMILIES["SigLIP"])
    images = noise_images(model, 3)
    whole = model.encode_patches(images).tokens
    monkeypatch.setattr("advflyp.model.patches.MOST_SEQUENCES", 7)
    assert_equal64(model.encode_patches(images).tokens, whole)


def test_gradients_reach_pixels_and_weights(family: CLIP) -> None:
    images = noise_images(family).requires_grad_(True)
    family.encode_patches(images).tokens[:, 0, 0].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert next(m for m in family.visual.modules() if isinstance(m, nn.Conv2d)).weight.grad is not None


def test_pixels_stay_float32_in_bf16(family: CLIP) -> None:
    family, images = family.float(), noise_images(family).float()
    exact = family.encode_patches(images).tokens
    with family.computing_in("bf16"):
        rough = family.encode_patches(images).tokens
    assert exact.dtype == rough.dtype == torch.float32
    # Some 30 operations one after the other, each in error by up to 2⁻⁹ of a number: in all by 30·2⁻⁹ of the length, 1.
    assert 0 < (rough - exact).abs().max() < 30 * 2**-9


@pytest.mark.parametrize(
    ("vision", "architecture"),
    [
        ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}, "ModifiedResNet"),
        (
            {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
            "ConvNeXt",
        ),
        (
            {"image_size": 224, "timm_model_name": "swin_tiny_patch4_window7_224", "timm_proj": "linear"},
            "SwinTransformer",
        ),
    ],
)
def test_other_towers_have_no_patch_tokens(vision: dict[str, Any], architecture: str) -> None:
    model = small_model({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT})
    message = f"the image tower of small, {architecture}, has no patch tokens; choose a ViT"
    with pytest.raises(ValueError, match=message):
        model.encode_patches(noise_images(model))


def test_coca_has_them_and_its_raw_embedding_is_raw() -> None:
    """open_clip's CoCa normalises by default, and its tower returns its own tokens beside the embedding."""
    vision = {**FAMILIES["CoCa"], "output_tokens": True}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    decoder = {"context_length": 16, "vocab_size": 8192, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder}
    model = small_model(config).double()
    images = noise_images(model)
    image, tokens, grid = model.encode_patches(images)
    assert grid == GRID and tokens.shape == (2, 12, WIDTH)
    assert_equal64(image, model.encode_image(images))
    raw = model.encode_image_raw(images)
    assert ((raw.norm(dim=1) - 1).abs() > 0.01).all()
    assert_equal64(F.normalize(raw, dim=1), image)


def test_bundled_vit_has_them() -> None:
    assert load_model("mini-vit").patch_grid == (8, 8)
