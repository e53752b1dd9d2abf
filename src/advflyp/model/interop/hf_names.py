"""Tensor names of open_clip's models ↔ those of transformers' `CLIPModel` and `SiglipModel`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Layer names within a block: open_clip's, then timm's → transformers'.
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TIMM_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class TensorMap:
    """open_clip tensors that, concatenated along dim 0, hold the values of these transformers tensors, concatenated."""

    open_clip: Sequence[str]
    transformers: Sequence[str]
    transpose: bool = False


def correspondence(ours: Mapping[str, Tensor] | None, theirs: Mapping[str, Tensor] | None) -> list[TensorMap]:
    """The tensor maps of a whole model, from the state dict of either side."""
    if theirs is not None:
        kind = "siglip" if "vision_model.head.probe" in theirs else "clip"
        depths = [_layers(theirs, f"{tower}.encoder.layers.") for tower in ("vision_model", "text_model")]
        text = "text." if kind == "siglip" else ""
    else:
        assert ours is not None
        kind = "siglip" if "visual.trunk.attn_pool.latent" in ours else "clip"
        text = "text." if "text.token_embedding.weight" in ours else ""
        blocks = "visual.trunk.blocks." if kind == "siglip" else "visual.transformer.resblocks."
        depths = [_layers(ours, blocks), _layers(ours, f"{text}transformer.resblocks.")]
    return [
        *_vision(kind, depths[0]),
        *_text(kind, text, depths[1]),
        TensorMap(("logit_scale",), ("logit_scale",)),
    ]


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


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    # Not the largest number, which may be any.
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _both(ours: str, theirs: str) -> Iterator[TensorMap]:
    for part in ("weight", "bias"):
        yield TensorMap((f"{ours}.{part}",), (f"{theirs}.{part}",))


def _vision(kind: str, depth: int) -> Iterator[TensorMap]:
    inside = "vision_model.embeddings"
    layers = "vision_model.encoder.layers"
    if kind == "clip":
        yield TensorMap(("visual.class_embedding",), (f"{inside}.class_embedding",))
        yield TensorMap(("visual.conv1.weight",), (f"{inside}.patch_embedding.weight",))
        yield TensorMap(("visual.positional_embedding",), (f"{inside}.position_embedding.weight",))
        yield from _both("visual.ln_pre", "vision_model.pre_layrnorm")
        for n in range(depth):
            yield from _block(f"visual.transformer.resblocks.{n}", f"{layers}.{n}", BLOCK, "attn.in_proj_")
        yield from _both("visual.ln_post", "vision_model.post_layernorm")
        yield TensorMap(("visual.proj",), ("visual_projection.weight",), transpose=True)
        return
    yield TensorMap(("visual.trunk.pos_embed",), (f"{inside}.position_embedding.weight",))
    yield from _both("visual.trunk.patch_embed.proj", f"{inside}.patch_embedding")
    for n in range(depth):
        yield from _block(f"visual.trunk.blocks.{n}", f"{layers}.{n}", TIMM_BLOCK, "attn.qkv.")
    yield from _both("visual.trunk.norm", "vision_model.post_layernorm")
    pool, head = "visual.trunk.attn_pool", "vision_model.head"
    yield TensorMap((f"{pool}.latent",), (f"{head}.probe",))
    for part in ("weight", "bias"):
        yield TensorMap((f"{pool}.q.{part}", f"{pool}.kv.{part}"), (f"{head}.attention.in_proj_{part}",))
    yield from _both(f"{pool}.proj", f"{head}.attention.out_proj")
    yield from _both(f"{pool}.norm", f"{head}.layernorm")
    for part in ("mlp.fc1", "mlp.fc2"):
        yield from _both(f"{pool}.{part}", f"{head}.{part}")


def _text(kind: str, text: str, depth: int) -> Iterator[TensorMap]:
    inside = "text_model.embeddings"
    yield TensorMap((f"{text}token_embedding.weight",), (f"{inside}.token_embedding.weight",))
    yield TensorMap((f"{text}positional_embedding",), (f"{inside}.position_embedding.weight",))
    for n in range(depth):
        theirs = f"text_model.encoder.layers.{n}"
        yield from _block(f"{text}transformer.resblocks.{n}", theirs, BLOCK, "attn.in_proj_")
    yield from _both(f"{text}ln_final", "text_model.final_layer_norm")
    if kind == "clip":
        yield TensorMap((f"{text}text_projection",), ("text_projection.weight",), transpose=True)
    else:
        yield from _both(f"{text}text_projection", "text_model.head")
        yield TensorMap(("logit_bias",), ("logit_bias",))


def _block(ours: str, theirs: str, names: Mapping[str, str], joined: str) -> Iterator[TensorMap]:
    """A transformer block: `names` maps its layers; `joined` is the prefix of the fused query, key and value."""
    for one, other in names.items():
        yield from _both(f"{ours}.{one}", f"{theirs}.{other}")
    for part in ("weight", "bias"):
        split = tuple(f"{theirs}.self_attn.{which}_proj.{part}" for which in "qkv")
        yield TensorMap((f"{ours}.{joined}{part}",), split)
