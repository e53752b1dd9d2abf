"""Tensor names of open_clip's models ↔ those of transformers' `CLIPModel` and `SiglipModel`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# open_clip's names → transformers'. "*" stands for "weight" and for "bias"; of several names, the tensors are joined.
BOTH = {
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.*": "text_model.final_layer_norm.*",
    "logit_scale": "logit_scale",
}
CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.*": "vision_model.pre_layrnorm.*",
    "visual.ln_post.*": "vision_model.post_layernorm.*",
    "visual.proj": "visual_projection.weight",
    "text.text_projection": "text_projection.weight",
}
SIGLIP = {
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.patch_embed.proj.*": "vision_model.embeddings.patch_embedding.*",
    "visual.trunk.norm.*": "vision_model.post_layernorm.*",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.q.* visual.trunk.attn_pool.kv.*": "vision_model.head.attention.in_proj_*",
    "visual.trunk.attn_pool.proj.*": "vision_model.head.attention.out_proj.*",
    "visual.trunk.attn_pool.norm.*": "vision_model.head.layernorm.*",
    "visual.trunk.attn_pool.mlp.fc1.*": "vision_model.head.mlp.fc1.*",
    "visual.trunk.attn_pool.mlp.fc2.*": "vision_model.head.mlp.fc2.*",
    "text.text_projection.*": "text_model.head.*",
    "logit_bias": "logit_bias",
}
# Names within a transformer block: open_clip's, then timm's.
QKV = "self_attn.q_proj.* self_attn.k_proj.* self_attn.v_proj.*"
BLOCK = {
    "ln_1.*": "layer_norm1.*",
    "ln_2.*": "layer_norm2.*",
    "attn.out_proj.*": "self_attn.out_proj.*",
    "attn.in_proj_*": QKV,
    "mlp.c_fc.*": "mlp.fc1.*",
    "mlp.c_proj.*": "mlp.fc2.*",
}
TIMM_BLOCK = {
    "norm1.*": "layer_norm1.*",
    "norm2.*": "layer_norm2.*",
    "attn.proj.*": "self_attn.out_proj.*",
    "attn.qkv.*": QKV,
    "mlp.fc1.*": "mlp.fc1.*",
    "mlp.fc2.*": "mlp.fc2.*",
}
TRANSPOSED = ("visual.proj", "text.text_projection")


@dataclass(frozen=True)
class TensorMap:
    """open_clip tensors that, concatenated along dim 0, hold the values of these transformers tensors, concatenated."""

    open_clip: Sequence[str]
    transformers: Sequence[str]
    transpose: bool = False


def correspondence(state: Mapping[str, Tensor], *, is_theirs: bool) -> list[TensorMap]:
    """The tensor maps of a whole model, from its state dict, which is transformers' or open_clip's."""
    is_siglip = ("vision_model.head.probe" if is_theirs else "visual.trunk.attn_pool.latent") in state
    has_text_apart = is_siglip if is_theirs else "text.token_embedding.weight" in state
    vision = ("visual.trunk.blocks", TIMM_BLOCK) if is_siglip else ("visual.transformer.resblocks", BLOCK)
    towers = {"vision_model": vision, "text_model": ("text.transformer.resblocks", BLOCK)}
    found = [*_maps(BOTH), *_maps(SIGLIP if is_siglip else CLIP)]
    for tower, (blocks, names) in towers.items():
        layers = f"{tower}.encoder.layers"
        own = blocks if has_text_apart else blocks.removeprefix("text.")
        for n in range(_depth(state, layers if is_theirs else own)):
            found += _maps(names, f"{blocks}.{n}.", f"{layers}.{n}.")
    if has_text_apart:
        return found
    return [replace(one, open_clip=[name.removeprefix("text.") for name in one.open_clip]) for one in found]


def convert(
    state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], names: list[TensorMap], *, to_theirs: bool
) -> dict[str, Tensor]:
    """A state dict under the other side's names.

    Args:
        shapes: Shapes of the other side's tensors.

    KeyError for a missing tensor, ValueError if a tensor's size does not match the shapes.
    """
    result: dict[str, Tensor] = {}
    for one in names:
        sources, targets = (
            (one.open_clip, one.transformers) if to_theirs else (one.transformers, one.open_clip)
        )
        whole = torch.cat([state[name] for name in sources]) if len(sources) > 1 else state[sources[0]]
        whole = whole.T if one.transpose else whole
        wanted = [shapes[name] for name in targets]
        if whole.numel() != sum(shape.numel() for shape in wanted):
            raise ValueError(f"{sources[0]} {tuple(whole.shape)} instead of {tuple(wanted[0])}")
        pieces = whole.reshape(-1).split([shape.numel() for shape in wanted])
        for name, piece, shape in zip(targets, pieces, wanted, strict=True):
            # A copy of its own: safetensors stores no views.
            result[name] = piece.reshape(shape).clone()
    return result


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    # Not the largest number, which may be any.
    return len(
        {key.removeprefix(f"{blocks}.").split(".")[0] for key in state if key.startswith(f"{blocks}.")}
    )


def _maps(names: Mapping[str, str], ours: str = "", theirs: str = "") -> Iterator[TensorMap]:
    """The tensor maps of a table of names, with these prefixes."""
    for one, other in names.items():
        for part in ("weight", "bias") if "*" in one else ("",):
            yield TensorMap(
                [ours + name.replace("*", part) for name in one.split()],
                [theirs + name.replace("*", part) for name in other.split()],
                one in TRANSPOSED,
            )
