"""Load a Hugging Face folder of transformers' `CLIPModel` or `SiglipModel` as an open_clip model."""

import math
import re
import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, set_model_preprocess_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor, nn

from advflyp.config import convert as checked
from advflyp.documents import read_json_object
from advflyp.model.architectures import architecture_config, architecture_names, check_size, new_net
from advflyp.model.build import check_sizes
from advflyp.model.clip import CLIP
from advflyp.model.interop.hf import INTERPOLATIONS, NAMED
from advflyp.model.interop.hf_names import convert, correspondence
from advflyp.model.repository import HF_CONFIG_FILE
from advflyp.model.tokenizers import has_tokenizer, hf_tokenizer, shortened
from advflyp.model.weights_file import check_floating, read_weights_file

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# transformers' names of activations → whether it is QuickGELU, and the `approximate` argument of nn.GELU.
ACTIVATIONS = {"quick_gelu": (True, "none"), "gelu": (False, "none"), "gelu_pytorch_tanh": (False, "tanh")}
PROCESSOR_FILE = "preprocessor_config.json"
# Written by newer versions: tokenizer and image processor in one.
PROCESSORS_FILE = "processor_config.json"


def check_complete(folder: Path, name: str, base: str | None) -> None:
    """Check that a base model is named if the folder needs one.

    Args:
        folder: The folder, with its small files at least.
        name: What the user called the folder, or the repository it is from.
        base: The model that supplies what is missing, if named.

    Raises:
        ValueError: If one is needed and not named.
    """
    lacking = [] if _has_processor(folder) else [f"neither {PROCESSOR_FILE} nor {PROCESSORS_FILE}"]
    if not has_tokenizer(folder):
        lacking.append("no tokenizer")
    if lacking and base is None:
        raise ValueError(
            f"{folder} holds {' and '.join(lacking)}: name the model that it was finetuned from, which has them, as in "
            f"{name}@ViT-L-14/openai"
        )


def _has_processor(folder: Path) -> bool:
    return (folder / PROCESSOR_FILE).is_file() or (folder / PROCESSORS_FILE).is_file()


def load_hf_folder(folder: Path, name: str, lender: CLIP | None = None) -> CLIP:
    """Build the model in a folder.

    Args:
        folder: Holds configuration and weights.
        name: What the user called it.
        lender: Supplies preprocessing and tokenizer if the folder lacks them; its weights do not matter.

    Raises:
        ValueError: If the folder holds another kind of model, is incomplete or damaged, or `lender` does not fit it.
    """
    config = read_hf_config(folder)
    state = _weights(folder)
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    try:
        names = correspondence(state, is_theirs=True)
        vision, text = config["vision_config"], config["text_config"]
        for tower in (vision, text):
            check_sizes(tower, "not a model")
        if config["model_type"] == "clip":
            net, model_cfg = _clip(vision, text, state)
        else:
            net, model_cfg = _siglip(folder, vision, text, state)
        _check_epsilon(vision, net.visual)
        _check_epsilon(text, net.text if hasattr(net, "text") else net.transformer)
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        found = convert(state, shapes, names, to_theirs=False)
        check_floating(found, net.state_dict(), folder)
    except KeyError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its {HF_CONFIG_FILE}: one of them lacks {error}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    except Exception as error:  # a wrong configuration may raise anything
        raise ValueError(f"{folder}: its {HF_CONFIG_FILE} cannot be read: {shortened(error)}") from None
    if missing := sorted(shapes.keys() - found.keys()):
        raise ValueError(
            f"the weights in {folder} do not fit its {HF_CONFIG_FILE}: {len(missing)} are missing, such as {missing[0]}"
        )
    net.load_state_dict(found, strict=True)
    size = vision.get("image_size", 224)
    if lender is not None:
        _check_lender(lender, model_cfg, size, folder)
    if lender is None or _has_processor(folder):
        preprocess = _preprocess(folder, size)
    else:
        preprocess = {**lender.config["preprocess_cfg"], "size": size}
    set_model_preprocess_cfg(net, preprocess)
    if lender is None or has_tokenizer(folder):
        tokenizer = _tokenizer(folder, model_cfg["text_cfg"], text)
    else:
        tokenizer = lent_tokenizer(lender, model_cfg)
    return CLIP(net, tokenizer, {"model_cfg": model_cfg, "preprocess_cfg": preprocess}, name)


def _check_lender(lender: CLIP, model_cfg: dict[str, Any], size: int, folder: Path) -> None:
    theirs = lender.config["model_cfg"]
    text, their_text = model_cfg["text_cfg"], theirs["text_cfg"]
    facts = (
        ("pixels a side", lender.image_size[0], size),
        ("QuickGELU", bool(theirs.get("quick_gelu")), bool(model_cfg.get("quick_gelu"))),
        *(
            (what, their_text.get(key, default), text.get(key, default))
            for what, key, default in (
                ("tokens of a text", "context_length", DEFAULT_CONTEXT_LENGTH),
                ("tokens in the vocabulary", "vocab_size", CLIPTextCfg.vocab_size),
                ("token that stands for a text", "pool_type", "argmax"),
            )
        ),
    )
    for what, lent, own in facts:
        if lent != own:
            raise ValueError(
                f"{lender.name} is not what {folder} was finetuned from: {what} {lent} instead of {own}"
            )


def lent_tokenizer(lender: CLIP, model_cfg: dict[str, Any]) -> Any:
    """The tokenizer of another model; `model_cfg` is updated to say how to find it again."""
    lent, own = lender.config["model_cfg"]["text_cfg"], model_cfg["text_cfg"]
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        own.pop(key, None)
        if key in lent:
            own[key] = deepcopy(lent[key])
    if isinstance(lender.tokenizer, HFTokenizer):
        own["hf_tokenizer_name"] = "."
    return lender.tokenizer


def read_hf_config(folder: Path) -> dict[str, Any]:
    """The configuration in `folder`. ValueError if it is for another kind of model."""
    path = folder / HF_CONFIG_FILE
    config = read_json_object(path)
    kind = config.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ValueError(
            f"{folder} holds a model of the type '{kind}'; only transformers models of type 'clip' or "
            "'siglip', with both towers, can be loaded"
        )
    for tower in ("vision_config", "text_config"):
        checked(config.get(tower), dict[str, Any], f"{path}: {tower}")
    return config


def _clip(
    vision: dict[str, Any], text: dict[str, Any], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    quick = [_known(tower.get("hidden_act", "quick_gelu")) for tower in (vision, text)]
    if quick[0] != quick[1]:
        raise ValueError("the towers have different activations, which open_clip's CLIP does not support")
    width = state["vision_model.embeddings.patch_embedding.weight"].shape[0]
    heads = vision.get("num_attention_heads", 12)
    model_cfg: dict[str, Any] = {
        "embed_dim": state["visual_projection.weight"].shape[0],
        "vision_cfg": {
            "image_size": vision.get("image_size", 224),
            "layers": vision.get("num_hidden_layers", 12),
            "width": width,
            "head_width": width // heads,
            "mlp_ratio": state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / width,
            "patch_size": vision.get("patch_size", 32),
        },
        "text_cfg": _text_cfg(text, state),
    }
    if quick[0][0]:
        model_cfg["quick_gelu"] = True
    elif quick[0][1] == "tanh":
        for tower in ("vision_cfg", "text_cfg"):
            model_cfg[tower]["act_kwargs"] = {"approximate": "tanh"}
    check_size(model_cfg, sum(value.numel() for value in state.values()))
    return new_net(model_cfg), model_cfg


def _check_epsilon(tower: dict[str, Any], built: Any) -> None:
    """ValueError if a tower's layer normalisations have another ε than those that open_clip builds."""
    usual = next(part.eps for part in built.modules() if isinstance(part, nn.LayerNorm))
    if tower.get("layer_norm_eps", usual) != usual:
        raise ValueError(
            f"open_clip's tower has a layer_norm_eps of {usual:g}, not {tower['layer_norm_eps']}"
        )


def _known(activation: Any) -> tuple[bool, str]:
    if str(activation) not in ACTIVATIONS:
        raise ValueError(f"open_clip has no activation '{activation}'; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(activation)]


def _text_cfg(text: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    vocabulary, width = state["text_model.embeddings.token_embedding.weight"].shape
    return {
        "context_length": state["text_model.embeddings.position_embedding.weight"].shape[0],
        "vocab_size": vocabulary,
        "width": width,
        "heads": text.get("num_attention_heads", 8),
        "layers": text.get("num_hidden_layers", 12),
        "mlp_ratio": state["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0] / width,
    }


def _siglip(
    folder: Path, vision: dict[str, Any], text: dict[str, Any], state: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the open_clip architecture of these sizes: timm builds a tower by its name, not by its sizes."""
    sizes = (
        vision.get("image_size", 224),
        *state["text_model.embeddings.token_embedding.weight"].shape,
        len(state["vision_model.embeddings.patch_embedding.bias"]),
    )
    for architecture in architecture_names():
        model_cfg = architecture_config(architecture)
        tower, words = model_cfg["vision_cfg"], model_cfg["text_cfg"]
        known = (tower["image_size"], words.get("vocab_size"), words.get("width"), model_cfg["embed_dim"])
        if (
            known == sizes
            and tower.get("timm_pool") == "map"
            and _patch_fits(tower, vision.get("patch_size", 16))
        ):
            break
    else:
        raise ValueError("none of open_clip's SigLIP architectures has these sizes")
    check_size(model_cfg, sum(value.numel() for value in state.values()))
    if _known(vision.get("hidden_act", "gelu_pytorch_tanh"))[1] == "tanh":
        warnings.warn(
            f"{folder}: its image tower has the tanh approximation of GELU; open_clip's {architecture} computes GELU, "
            "as it does for the published weights",
            stacklevel=2,
        )
    approximate = _known(text.get("hidden_act", "gelu_pytorch_tanh"))[1]
    model_cfg["text_cfg"]["act_kwargs"] = {"approximate": approximate}
    return new_net(model_cfg), model_cfg


def _patch_fits(tower: dict[str, Any], size: int) -> bool:
    """Whether the patch size in the name of a timm tower, if there is one, is `size` pixels."""
    stated = re.search(r"_patch(\d+)_", tower["timm_model_name"])
    return stated is None or int(stated[1]) == size


def _preprocess(folder: Path, size: int) -> dict[str, Any]:
    """open_clip's settings for those of an image processor. ValueError for resizing that open_clip does not support."""
    if (folder / PROCESSOR_FILE).is_file():
        settings = read_json_object(folder / PROCESSOR_FILE)
    else:
        settings = read_json_object(folder / PROCESSORS_FILE).get("image_processor", {})
    settings = checked(settings, dict[str, Any], f"{folder}: image_processor")
    _check_steps(settings, folder)
    crop = settings.get("crop_size", {})
    crop = crop if isinstance(crop, dict) else {"height": crop, "width": crop}
    resize = settings.get("size", {})
    resize = resize if isinstance(resize, dict) else {"shortest_edge": resize}
    square = {"height": size, "width": size}
    cropped = (
        settings.get("do_center_crop", bool(crop)) and resize == {"shortest_edge": size} and crop == square
    )
    if not cropped and resize != square:
        raise ValueError(
            f"{folder} resizes images to {resize} and crops {crop or 'nothing'}; open_clip can resize to "
            f"{size}×{size}, or the shorter side to {size} with a crop"
        )
    names = {number: name for name, number in INTERPOLATIONS.items()}
    resample = checked(settings.get("resample", 3), int, f"{folder}: resample")
    if resample not in names:
        raise ValueError(
            f"{folder} resizes images in a way that open_clip does not offer (resample {resample})"
        )
    mean, std = (
        checked(settings.get(key), tuple[float, float, float], f"{folder}: {key}")
        for key in ("image_mean", "image_std")
    )
    if min(std) <= 0:
        raise ValueError(f"{folder}: image_std must be above 0")
    return {
        "size": size,
        "mode": "RGB",
        "mean": list(mean),
        "std": list(std),
        "interpolation": names[resample],
        "resize_mode": "shortest" if cropped else "squash",
        "fill_color": 0,
    }


def _check_steps(settings: dict[str, Any], folder: Path) -> None:
    """ValueError for a processor that leaves out a step of open_clip's, or scales bytes to another range."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if settings.get(key) not in (True, None):
            raise ValueError(
                f"{folder}: its image processor has {key} = {str(settings[key]).lower()}; open_clip always resizes, "
                "scales bytes to [0, 1] and normalises, so its embeddings would differ"
            )
    factor = settings.get("rescale_factor")
    if factor is not None and not math.isclose(checked(factor, float, f"{folder}: rescale_factor"), 1 / 255):
        raise ValueError(
            f"{folder}: its image processor has rescale_factor = {factor:g}; open_clip has 1/255"
        )


def _tokenizer(folder: Path, text_cfg: dict[str, Any], text: dict[str, Any]) -> Any:
    """open_clip's own tokenizer if the vocabulary is CLIP's, else the folder's, which `text_cfg` then names."""
    length = text_cfg["context_length"]
    for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
        text_cfg.pop(key, None)
    own = SimpleTokenizer(context_length=length)
    end = text.get("eos_token_id")
    if _vocabulary(folder) == {NAMED.get(token, token): number for token, number in own.encoder.items()}:
        # transformers' default is that of CLIP.
        _check_end(folder, text_cfg, own.eot_token_id if end is None else end, own.eot_token_id)
        return own
    tokenizer: Any = hf_tokenizer(folder, length)
    _check_end(folder, text_cfg, end, max(tokenizer.tokenizer.get_vocab().values()))
    text_cfg["hf_tokenizer_name"] = "."
    return tokenizer


def _check_end(folder: Path, text_cfg: dict[str, Any], end: Any, highest: int) -> None:
    # transformers takes 2 for "the highest token", as the first configurations had it.
    if text_cfg.get("pool_type", "argmax") == "argmax" and end not in (2, highest):
        raise ValueError(
            f"{folder}: its texts end with token {end}, but open_clip looks for the highest token, {highest}"
        )


def _vocabulary(folder: Path) -> dict[str, int] | None:
    if (folder / "vocab.json").is_file():
        return read_json_object(folder / "vocab.json")
    if (folder / "tokenizer.json").is_file():
        model = read_json_object(folder / "tokenizer.json").get("model")
        found = model.get("vocab") if isinstance(model, dict) else None
        return found if isinstance(found, dict) else None
    return None


def hf_weights(folder: Path, names: Collection[str]) -> list[str]:
    """The files that hold the weights: one, or the shards that an index lists; safetensors rather than torch.

    ValueError if there are none, or if an index is damaged or lists a missing file.
    """
    for name in WEIGHTS:
        if name in names:
            return [name]
        if (index := f"{name}.index.json") in names:
            parts = read_json_object(folder / index).get("weight_map")
            if not isinstance(parts, dict):
                raise ValueError(f"{folder / index} is damaged: it has no weight_map")
            if missing := sorted(set(map(str, parts.values())) - set(names)):
                raise ValueError(f"{folder} lacks {missing[0]}, which its {index} names")
            return sorted(set(parts.values()))
    raise ValueError(f"{folder} holds no weights: neither {' nor '.join(WEIGHTS)}")


def _weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in hf_weights(folder, {path.name for path in folder.iterdir() if path.is_file()}):
        for key, value in read_weights_file(folder / name).items():
            if key in state:
                raise ValueError(
                    f"two of the weights files in {folder} hold {key}; delete those of another model"
                )
            state[key] = value
    return state
