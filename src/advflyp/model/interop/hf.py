"""An open_clip model as transformers' `CLIPModel` or `SiglipModel`, with processor and tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import nn

from advflyp.model.architectures import SPARE_NUMBERS, TOO_LARGE
from advflyp.model.clip import CLIP
from advflyp.model.interop.hf_names import convert, correspondence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

INTERPOLATIONS = {"bilinear": 2, "bicubic": 3}
# open_clip's names of the start and end tokens → transformers'.
NAMED = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
ADVICE = "export it with --format open_clip or onnx"


def check_stored(transformers: Any, config: Any, folder: Path, spare: int = 0) -> None:
    """As `check_size`, for a model that transformers makes: it would fill what the folder's weights lack with noise.

    Args:
        transformers: The module.
        config: Its configuration of the model.
        folder: The folder with the weights.
        spare: Number of parameters that may be missing.

    Raises:
        ValueError: The model has more parameters than the files, at half a byte each, can hold.
    """
    with torch.device("meta"):
        net = transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    numbers = sum(tensor.numel() for tensor in net.parameters())
    files = (path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    if numbers > 2 * sum(path.stat().st_size for path in files) + spare + SPARE_NUMBERS:
        raise ValueError(TOO_LARGE.format(numbers))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and reports, such as that a file's text tower is unexpected."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def greedy(net: Any, tokenizer: Any, max_new_tokens: int, pad_token_id: int) -> Any:
    """Generation settings for greedy decoding, without the sampling and penalties that a model may ask for."""
    from transformers import GenerationConfig

    own = net.generation_config
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        pad_token_id=pad_token_id,
    )


def to_transformers(model: CLIP) -> "PreTrainedModel":
    """The same weights in transformers' class, on the CPU. ValueError for an architecture without one."""
    state = {key: value.detach().cpu() for key, value in model.net.state_dict().items()}
    siglip = "visual.trunk.attn_pool.latent" in state
    clip = "visual.class_embedding" in state and "visual.proj" in state
    if not clip and not siglip:
        raise ValueError(f"transformers has no class for the image tower of {model.name}; {ADVICE}")
    names = correspondence(state, is_theirs=False)
    lacking = [name for one in names for name in one.open_clip if name not in state]
    extra = state.keys() - {name for one in names for name in one.open_clip} - {"logit_bias"}
    if lacking or extra:
        odd = ", ".join(sorted([*lacking, *extra])[:3])
        raise ValueError(
            f"transformers has no class for {model.name}: its tensors differ ({odd}, …); {ADVICE}"
        )
    net = _empty(model, siglip)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    net.load_state_dict(convert(state, shapes, names, to_theirs=True), strict=True)
    return net.eval()


def _empty(model: CLIP, siglip: bool) -> "PreTrainedModel":
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    height, width = model.image_size
    if height != width:
        raise ValueError(
            f"transformers takes square images, not the {height}×{width} of {model.name}; {ADVICE}"
        )
    net: Any = model.net
    vision, text = net.visual, getattr(net, "text", net)
    blocks = text.transformer.resblocks
    towers: Any = {
        "text_config": {
            **_tower(
                text.ln_final.weight.shape[0], blocks, blocks[0].mlp.c_fc, blocks[0].mlp.gelu, blocks[0].ln_1
            ),
            "max_position_embeddings": text.positional_embedding.shape[0],
            "vocab_size": text.token_embedding.num_embeddings,
            **_special_tokens(model.tokenizer),
        }
    }
    if siglip:
        trunk, first = vision.trunk, vision.trunk.blocks[0]
        towers["text_config"]["projection_size"] = text.text_projection.out_features
        towers["vision_config"] = {
            **_tower(trunk.embed_dim, trunk.blocks, first.mlp.fc1, first.mlp.act, first.norm1),
            "image_size": height,
            "patch_size": trunk.patch_embed.patch_size[0],
        }
        return SiglipModel(SiglipConfig(**towers))
    blocks = vision.transformer.resblocks
    towers["vision_config"] = {
        **_tower(vision.conv1.out_channels, blocks, blocks[0].mlp.c_fc, blocks[0].mlp.gelu, blocks[0].ln_1),
        "image_size": height,
        "patch_size": vision.conv1.kernel_size[0],
    }
    width = vision.proj.shape[1]
    for tower in towers.values():
        tower["projection_dim"] = width
    return CLIPModel(CLIPConfig(**towers, projection_dim=width))


def _tower(width: int, blocks: Any, inner: Any, activation: nn.Module, norm: Any) -> dict[str, Any]:
    """The sizes of a tower, from its blocks and the layers of its first one."""
    return {
        "hidden_size": width,
        "intermediate_size": inner.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "hidden_act": _activation(activation),
        "layer_norm_eps": norm.eps,
    }


def _activation(module: nn.Module) -> str:
    if type(module).__name__ == "QuickGELU":
        return "quick_gelu"
    tanh = type(module).__name__ == "GELUTanh" or getattr(module, "approximate", "none") == "tanh"
    return "gelu_pytorch_tanh" if tanh else "gelu"


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    if isinstance(tokenizer, SimpleTokenizer):
        end = tokenizer.eot_token_id
        return {"bos_token_id": tokenizer.sot_token_id, "eos_token_id": end, "pad_token_id": end}
    theirs = tokenizer.tokenizer
    return {f"{name}_token_id": getattr(theirs, f"{name}_token_id") for name in ("bos", "eos", "pad")}


def tokenizer_of(model: CLIP) -> "PreTrainedTokenizerBase":
    """The model's tokenizer as one of transformers."""
    tokenizer: Any = model.tokenizer
    if isinstance(tokenizer, HFTokenizer):
        return _canonical(tokenizer) if "canonicalize" in str(tokenizer.clean_fn) else tokenizer.tokenizer
    from transformers import CLIPTokenizer

    vocabulary: Any = {NAMED.get(token, token): number for token, number in tokenizer.encoder.items()}
    # An empty line ends the file of merges.
    merges: list[Any] = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]
    return CLIPTokenizer(vocabulary, merges, model_max_length=tokenizer.context_length)


def _canonical(tokenizer: HFTokenizer) -> "PreTrainedTokenizerBase":
    """The tokenizer with open_clip's text cleaning for SigLIP (lower case, no punctuation) built in."""
    from tokenizers import Regex, normalizers

    found = deepcopy(tokenizer.tokenizer)
    own = found.backend_tokenizer.normalizer
    clean = [
        normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    found.backend_tokenizer.normalizer = normalizers.Sequence([*clean, own] if own is not None else clean)
    found.model_max_length = tokenizer.context_length
    return found


def processor_of(model: CLIP, net: "PreTrainedModel") -> "ProcessorMixin":
    """Preprocessing and tokenizer, as transformers bundles them. ValueError for resizing that it does not support."""
    from transformers import CLIPImageProcessor, CLIPProcessor, SiglipImageProcessor, SiglipProcessor

    settings = model.config["preprocess_cfg"]
    size = model.image_size[0]
    how: dict[str, Any] = {
        "image_mean": list(settings["mean"]),
        "image_std": list(settings["std"]),
        # open_clip's "random" is for training; it evaluates with bicubic interpolation then.
        "resample": INTERPOLATIONS.get(settings.get("interpolation"), INTERPOLATIONS["bicubic"]),
        "do_convert_rgb": True,
    }
    mode = settings.get("resize_mode", "shortest")
    if mode == "longest":
        raise ValueError(f"transformers cannot resize images as {model.name} does ('longest'); {ADVICE}")
    square = {"height": size, "width": size}
    tokenizer = tokenizer_of(model)
    siglip = net.config.model_type == "siglip"
    if siglip and mode == "squash":
        return SiglipProcessor(SiglipImageProcessor(size=square, **how), tokenizer)
    crop: dict[str, Any] = {"size": square, "do_center_crop": False}
    if mode == "shortest":
        crop = {"size": {"shortest_edge": size}, "crop_size": square, "do_center_crop": True}
    return (SiglipProcessor if siglip else CLIPProcessor)(CLIPImageProcessor(**how, **crop), tokenizer)
