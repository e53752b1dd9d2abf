"""open_clip's architectures: look up configurations, build their modules, find the ones that match given weights."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import PatchDropout, QuickGELU, TextTransformer, VisionTransformer
from timm.layers.drop import DropPath
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advflyp.config import nearest
from advflyp.model.layers import ORIGINALS
from advflyp.model.precision import for_use
from advflyp.model.repository import HF_CONFIG_FILE, open_repository

# Our own architectures, and their vocabulary.
ARCHITECTURES = Path(__file__).parent / "configs"
# Allowance for buffers that weights files do not store, such as attention masks.
SPARE_NUMBERS = 100_000_000
TOO_LARGE = "its configuration describes a model of {:,} parameters, more than its weights file holds"
NEEDS_TRANSFORMERS = "needs transformers: pip install transformers"
# What torch's and timm's initialisers call on a new tensor.
INITIALISERS = {"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"}
# Largest difference between unit-norm embeddings that counts as rounding, even in TF32.
TOLERANCE = 1e-3
# Attributes of a module that do not affect its output in evaluation mode.
STATE = ("training", "output_dict", "grad_checkpointing")
# Attributes that a "model_cfg" does not describe: open_clip adds the normalisation afterwards, transformers where a
# module is from.
NOT_BUILT = (*STATE, "image_mean", "image_std", "name_or_path")
# Attributes of modules that change no embedding of pixels: how timm computes attention, where transformers has a module
# from, the normalisation that open_clip leaves to its callers.
NO_SETTINGS = (*STATE, "dropout", "fused_attn", "name_or_path", "image_mean", "image_std")


def architecture_names() -> list[str]:
    """open_clip's architectures and ours."""
    _add_ours()
    return open_clip.list_models()


@cache
def _add_ours() -> None:
    """Cached, since open_clip rereads all its configurations whenever some are added."""
    open_clip.add_model_config(ARCHITECTURES)


def architecture_config(name: str) -> dict[str, Any]:
    """The "model_cfg" of an architecture.

    Raises:
        ValueError: If open_clip has no architecture of that name.
    """
    known = architecture_names()
    if name not in known:
        raise ValueError(f"open_clip has no architecture '{name}'{nearest(name, known)}")
    return deepcopy(open_clip.get_model_config(name) or {})


def new_net(model_cfg: Mapping[str, Any]) -> nn.Module:
    """The module that a "model_cfg" describes, with random weights, on torch's current device."""
    arguments = deepcopy(dict(model_cfg))
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    if "multimodal_cfg" not in arguments:
        # Only CoCa's decoder reads more than the embeddings.
        vision["output_tokens"] = text["output_tokens"] = False
    if "timm_model_name" in vision:
        if not timm.is_model(vision["timm_model_name"]):
            raise ValueError(f"timm has no model '{vision['timm_model_name']}'")
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_name"] = str(_text_tower_folder(text["hf_model_name"]))
        text["hf_model_pretrained"] = False
    kind: Any = open_clip.CLIP
    if arguments.pop("custom_text", False) or text.get("hf_model_name"):
        kind = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP
    net: Any = kind(**arguments)
    if kind is open_clip.CoCa:
        # open_clip leaves it as the memory was; the others of the decoder are initialised.
        projection = net.text_decoder.text_projection
        nn.init.normal_(projection, std=len(projection) ** -0.5)
    return net


def _text_tower_folder(name: str) -> Path:
    """Fetch the configuration from which open_clip builds a transformers text tower."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(f"the text tower {name} {NEEDS_TRANSFORMERS}") from None
    folder = open_repository(name).fetch([HF_CONFIG_FILE])
    try:
        # open_clip leaves trust_remote_code unset, and transformers would then ask on the terminal.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # transformers may raise anything for a bad configuration
        raise ValueError(
            f"the text tower {name} has a type that transformers does not know, and code that comes with a model is "
            "never run"
        ) from None
    check_attention(config, f"the text tower {name}")
    return folder


def check_attention(config: Any, what: str) -> None:
    """ValueError if a configuration of transformers names an attention kernel that it would fetch from the hub and run.

    Args:
        config: The configuration.
        what: What it describes, in the message.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        # Those that are part of PyTorch, or left to transformers.
        if part._attn_implementation not in (None, "sdpa", "eager"):
            raise ValueError(
                f"{what} asks for the attention implementation {part._attn_implementation}, which may be code from "
                f"elsewhere; remove that key from its {HF_CONFIG_FILE}"
            )


class _SkipInitialisers(TorchFunctionMode):
    """Skip initialisers on the meta device, where timm's take seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in INITIALISERS and tensor is not None and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


def meta_net(model_cfg: Mapping[str, Any]) -> nn.Module:
    """`new_net` on the meta device: its weights take no memory."""
    vision = dict(model_cfg["vision_cfg"])
    if "pos_embed_type" in vision:
        # open_clip computes the other kind, of the same size, in NumPy, whatever the device.
        vision["pos_embed_type"] = "learnable"
    with torch.device("meta"), _SkipInitialisers():
        return new_net({**model_cfg, "vision_cfg": vision})


def check_size(model_cfg: Mapping[str, Any], stored: int) -> None:
    """Refuse a configuration that describes a larger model than its weights file can fill.

    Otherwise one line of untrusted JSON could use up all memory for layers without weights.

    Args:
        model_cfg: open_clip's configuration.
        stored: Upper bound on the number of values in the weights file.

    Raises:
        ValueError: If the model has more values.
    """
    net = meta_net(model_cfg)
    numbers = sum(tensor.numel() for tensor in (*net.parameters(), *net.buffers()))
    if numbers > stored + SPARE_NUMBERS:
        raise ValueError(TOO_LARGE.format(numbers))


def config_of(net: Any, tokenizer: Any) -> dict[str, Any] | None:
    """The "model_cfg" of a ViT with CLIP's text tower and vocabulary, read from the module; None for other models."""
    kinds = (open_clip.CLIP, VisionTransformer, SimpleTokenizer)
    if kinds != (type(net), _kind(net.visual), type(tokenizer)):
        return None
    if tokenizer.vocab_size != CLIPTextCfg.vocab_size or net.visual.proj is None:
        return None
    image, text = net.visual.transformer.resblocks, net.transformer.resblocks
    width = net.visual.conv1.out_channels
    config: dict[str, Any] = {
        "embed_dim": net.visual.output_dim,
        "vision_cfg": {
            "image_size": net.visual.image_size[0],
            "patch_size": net.visual.patch_size[0],
            "width": width,
            "layers": len(image),
            "head_width": width // image[0].attn.num_heads,
            "mlp_ratio": image[0].mlp.c_fc.out_features / width,
        },
        "text_cfg": {
            "context_length": net.context_length,
            "vocab_size": net.vocab_size,
            "width": net.ln_final.normalized_shape[0],
            "layers": len(text),
            "heads": text[0].attn.num_heads,
            "mlp_ratio": text[0].mlp.c_fc.out_features / net.ln_final.normalized_shape[0],
        },
    }
    if isinstance(image[0].mlp.gelu, QuickGELU):
        config["quick_gelu"] = True
    if net.attn_mask is None:
        config["text_cfg"]["no_causal_mask"] = True
    return config if is_built_by(net, config) else None


def is_built_by(net: nn.Module, model_cfg: Mapping[str, Any]) -> bool:
    """Whether a module has the layers, settings and shapes that a "model_cfg" describes."""
    return _description(net) == _description(meta_net(model_cfg))


@torch.no_grad()
def embeds_as(net: Any, model_cfg: Mapping[str, Any]) -> bool:
    """Whether a module that `is_built_by` a "model_cfg" also embeds as one that open_clip builds from it, given its
    weights: a hook, a method or a mask that somebody replaced is no setting.

    It encodes one image and two texts of noise; the other module shares the weights.
    """
    noise = torch.Generator().manual_seed(0)
    text = getattr(net, "text", net)
    positions = getattr(text, "positional_embedding", None)
    # Towers of transformers take texts of any length.
    length = 16 if positions is None else len(positions) - (getattr(text, "cls_emb", None) is not None)
    tokens = torch.randint(1, text.vocab_size, (2, length), generator=noise)
    tokens[:, length // 2] = text.vocab_size - 1  # the end; the rest of the second text is padding
    tokens[1, length // 2 + 1 :] = 0
    size: Any = to_2tuple(net.visual.image_size)
    images = torch.randn((1, 3, *size), generator=noise)
    other = _of_the_same_weights(net, model_cfg).eval()
    with for_use(net):
        found = [_embeddings(one, images, tokens) for one in (net, other)]
    return torch.allclose(*found, rtol=0, atol=TOLERANCE, equal_nan=True)


def _embeddings(net: Any, images: Tensor, tokens: Tensor) -> Tensor:
    device = next(net.parameters()).device
    found = (
        pooled(net.encode_image(images.to(device)), "image"),
        pooled(net.encode_text(tokens.to(device)), "text"),
    )
    return torch.cat([nn.functional.normalize(one, dim=-1) for one in found])


def _of_the_same_weights(net: nn.Module, model_cfg: Mapping[str, Any]) -> nn.Module:
    """What open_clip builds from a "model_cfg", with the tensors of a module and open_clip's own causal masks."""
    built = meta_net(model_cfg)
    built.load_state_dict(net.state_dict(), assign=True)
    for name, tensor in net.named_buffers():
        place, _, own = name.rpartition(".")
        module = built.get_submodule(place)
        if own == "attn_mask" and isinstance(module, open_clip.CLIP | TextTransformer):
            tensor = torch.full_like(tensor, -torch.inf).triu_(1)
        setattr(module, own, tensor)
    return built


def pooled(features: Tensor, what: str) -> Tensor:
    """The output of a tower, (N, d); ValueError if its configuration leaves all tokens unpooled, (N, L, d).

    Args:
        features: The output.
        what: "image" or "text".
    """
    if features.dim() != 2:
        raise ValueError(
            f"the {what} tower returns tokens instead of one embedding for each {what}; choose another pooling in its "
            "configuration (pool_type, attentional_pool, timm_pool)"
        )
    return features


def settings_of(net: nn.Module) -> dict[str, dict[str, Any]]:
    """The class and settings of every module of a model that open_clip built, by name, without those for training.

    Settings that are 0 or False are left out, so that a new release of a library, which adds one, changes nothing.
    """
    return {
        name: {"class": _kind(module).__qualname__}
        | {key: value for key, value in _settings(module).items() if value and key not in NO_SETTINGS}
        # open_clip's other text towers, which are seldom causal, keep the hash that they had.
        | ({"attn_mask": "none"} if isinstance(module, open_clip.CLIP) and module.attn_mask is None else {})
        for name, module in net.named_modules()
        if not isinstance(module, nn.Dropout | nn.Identity | PatchDropout | DropPath)
    }


def _description(net: nn.Module) -> Any:
    """The layers and settings of a module, and the shapes of its tensors, also of those that are not saved: masks."""
    tensors = (*net.named_parameters(), *net.named_buffers())
    layers = {
        name: (_kind(module), {key: one for key, one in _settings(module).items() if key not in NOT_BUILT})
        for name, module in net.named_modules()
    }
    return layers, {name: tensor.shape for name, tensor in tensors}


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | tuple) and key[0] != "_"
    }


def _kind(module: nn.Module) -> type[nn.Module]:
    """Its class as open_clip built it."""
    return ORIGINALS.get(type(module), type(module))


def similar_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """Architectures configured with a ViT image tower of the same size as the one in `state`; short names first.

    Args:
        state: Tensors by open_clip's names; those of the image tower start with "visual.".
    """
    patches, places = state.get("visual.conv1.weight"), state.get("visual.positional_embedding")
    if patches is None or places is None or patches.dim() != 4 or places.dim() != 2 or not len(places):
        return []
    layers = {key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")}
    side = round((len(places) - 1) ** 0.5) * patches.shape[-1]
    sizes = {
        "width": len(patches),
        "layers": len(layers),
        "patch_size": patches.shape[-1],
        "image_size": side,
    }
    configs = {name: architecture_config(name) for name in architecture_names()}
    projection = state.get("visual.proj")
    found = [
        name
        for name, config in configs.items()
        if sizes.items() <= {**asdict(CLIPVisionCfg()), **config["vision_cfg"]}.items()
        and (projection is None or projection.shape[-1:] == (config["embed_dim"],))
    ]
    return sorted(found, key=len)
