"""Load large vision-language models from folders and the hub, optionally with another vision tower."""

from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from advflyp.config import convert
from advflyp.documents import read_json_object
from advflyp.errors import first_line
from advflyp.lvlm.model import LVLM
from advflyp.model.architectures import check_attention
from advflyp.model.build import check_sizes
from advflyp.model.clip import CLIP
from advflyp.model.folder import broken_weights, not_finite
from advflyp.model.interop.chat import chat_prompt
from advflyp.model.interop.hf import check_stored, quiet, to_transformers
from advflyp.model.load import load_model, pick_device
from advflyp.model.repository import HF_CONFIG_FILE, HUB_PREFIX, open_repository
from advflyp.model.tokenizers import check_tokenizer
from advflyp.wording import counted

MISSING = "large vision-language models need transformers; pip install transformers"
KINDS = ("llava", "llava_next")
LANGUAGE_MODELS = ("llama", "mistral", "qwen2")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
SMALL_FILES = (".json", ".txt", ".model", ".jinja")
# The tiny LLaVA that comes with the package, without its tower, which is the model `mini-vit`.
MINI, MINI_FOLDER, MINI_TOWER = "mini-llava", Path(__file__).parent / "mini-llava", "mini-vit"
# The template of the released LLaVA-1.5; its first copies had none in their files.
LLAVA_TEMPLATE = "USER: {image}\n{prompt} ASSISTANT:"


def load_lvlm(
    name: str | Path, vision: CLIP | str | Path | None = None, *, device: str | torch.device = "auto"
) -> LVLM:
    """Load a large vision-language model, optionally with another vision tower.

        model = load_lvlm("llava-hf/llava-1.5-7b-hf", vision="runs/robust-vit-l")

    Args:
        name: A folder that transformers saved, a repository on the hub (OWNER/NAME), or "mini-llava", which comes
            with the package.
        vision: A CLIP with the width and depth of the model's own tower, at any resolution; None keeps that one.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        The model in float32, frozen.

    Raises:
        ValueError: The model is of another kind, its files are incomplete, or the tower does not fit.
    """
    place = pick_device(device)
    if str(name) == MINI:
        folder, vision = MINI_FOLDER, vision or MINI_TOWER
    else:
        folder = _folder(str(name))
    clip = None
    if vision is not None:
        clip = deepcopy(vision) if isinstance(vision, CLIP) else load_model(vision, device="cpu")
    net, processor = _loaded(folder, str(name), clip)
    template = _template(processor, net.config.model_type, str(name))
    mean, std = (
        convert(getattr(processor.image_processor, key, None), tuple[float, float, float], f"{name}: {key}")
        for key in ("image_mean", "image_std")
    )
    model = LVLM(net, processor.tokenizer, template, mean=mean, std=std, name=str(name))
    _check_agreement(model)
    if clip is not None:
        model = with_tower(model, clip)
    return model.to(place)


def with_tower(model: LVLM, clip: CLIP) -> LVLM:
    """The same language model with the image tower of `clip`, at its normalisation and resolution.

    The number of image tokens follows from the new tower's image and patch size. Do not use `model` afterwards:
    the result changes and shares its net. `clip` is frozen.

    Raises:
        ValueError: The tower is not a CLIP ViT, or its width or depth differs from that of the model's own.
    """
    net: Any = model.net
    own = net.config.vision_config
    if not {"visual.class_embedding", "visual.proj"} <= clip.net.state_dict().keys():
        raise ValueError(
            f"the image tower of {clip.name} is not a CLIP ViT; {model.name} needs one that is {own.hidden_size} wide "
            f"and {own.num_hidden_layers} layers deep"
        )
    tower: Any = to_transformers(clip).vision_model
    found = tower.config
    for what, theirs, ours in (
        ("wide", own.hidden_size, found.hidden_size),
        ("layers deep", own.num_hidden_layers, found.num_hidden_layers),
    ):
        if theirs != ours:
            raise ValueError(
                f"the image tower of {clip.name} is {ours} {what}, that of {model.name} {theirs}: its projector would "
                "read noise; choose a model that was finetuned from the same architecture"
            )
    place = model.device
    if model.is_next:
        # Tiles are as large as the tower's input.
        scale = found.image_size / own.image_size
        net.config.image_grid_pinpoints = [
            [round(side * scale) for side in pair] for pair in net.config.image_grid_pinpoints
        ]
    net.model.vision_tower = tower.to(next(net.parameters()).dtype)
    net.config.vision_config = found
    return LVLM(
        net,
        model.tokenizer,
        model.template,
        mean=clip.mean.flatten().tolist(),
        std=clip.std.flatten().tolist(),
        name=model.name,
        vision_name=clip.name,
        clip=clip,
    ).to(place)


def is_of_tower(key: str) -> bool:
    """Whether a weight of a LLaVA, named `key`, belongs to its image tower."""
    return "vision_tower" in key


def _folder(name: str) -> Path:
    """A folder with all files needed, fetched if `name` is that of a repository."""
    path = Path(name).expanduser()
    if path.is_dir():
        _check_config(path, name)
        return path
    name = name.removeprefix(HUB_PREFIX)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(
            f"there is no model folder {name}; name one, a model of the hub as OWNER/NAME, or {MINI}"
        )
    repository = open_repository(name)
    small = [file for file in repository.files if file.endswith(SMALL_FILES)]
    folder = repository.fetch(small)
    _check_config(folder, name)
    weights = [file for file in repository.files if file.endswith(".safetensors")]
    return repository.fetch([*small, *weights])


def _check_config(folder: Path, name: str) -> None:
    """ValueError unless the folder holds a LLaVA that can be loaded; checked before anything large is read."""
    path = folder / HF_CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{name} holds no {HF_CONFIG_FILE}: it is not a transformers model")
    config = read_json_object(path)
    kind = config.get("model_type")
    if kind == "qwen2_5_vl":
        raise ValueError(
            f"{name}: the vision tower of Qwen2.5-VL (window attention, rotary positions, merged patches) is not a "
            "CLIP, so no robust CLIP can take its place; choose a LLaVA-1.5 or LLaVA-NeXT"
        )
    if kind not in KINDS:
        raise ValueError(f"{name} is a model of the type '{kind}'; supported: {', '.join(KINDS)}")
    if "quantization_config" in config:
        raise ValueError(
            f"{name} has quantised weights, which give an attack no gradients; name the original"
        )
    towers = {"vision_config": ("clip_vision_model",), "text_config": LANGUAGE_MODELS}
    for part, known in towers.items():
        inner = config.get(part)
        if not isinstance(inner, dict) or inner.get("model_type") not in known:
            found = inner.get("model_type") if isinstance(inner, dict) else None
            raise ValueError(f"{path}: {part} is of the type '{found}'; supported: {', '.join(known)}")
        check_sizes(inner, f"{path} is damaged")


def _loaded(folder: Path, name: str, clip: CLIP | None) -> tuple[Any, Any]:
    """The transformers model and processor from local files, without running any code from the folder.

    Args:
        clip: What takes the place of the tower, whose weights may then be missing.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError:
        raise ValueError(MISSING) from None
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise ValueError(f"{folder} holds no safetensors ({' or '.join(WEIGHTS)}); save the model with them")
    local: Any = {"trust_remote_code": False, "local_files_only": True}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(str(folder), **local)
            check_attention(config, "it")
            tower = 0 if clip is None else sum(tensor.numel() for tensor in clip.net.parameters())
            check_stored(transformers, config, folder, tower)
            check_tokenizer(folder)
            processor = transformers.AutoProcessor.from_pretrained(str(folder), **local)
            net, report = transformers.AutoModelForImageTextToText.from_pretrained(
                str(folder), dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
            )
            # transformers would fill what `greedy` leaves open from the model's own penalties and suppressed tokens.
            ends = convert(net.generation_config.eos_token_id, int | list[int] | None, "eos_token_id")
            net.generation_config = transformers.GenerationConfig(eos_token_id=ends)
    except Exception as error:  # transformers may raise anything on untrusted files
        raise ValueError(f"cannot load {name}: {first_line(error)}") from error
    # transformers only warns about missing weights, and initialises them at random.
    if lacking := [key for key in report["missing_keys"] if clip is None or not is_of_tower(key)]:
        raise ValueError(
            f"{name} lacks {counted(len(lacking), 'weight')}, such as {min(lacking)}; fetch it again"
        )
    if wrong := not_finite(net.state_dict()):
        raise ValueError(f"{name} cannot be used: {broken_weights(wrong)}; fetch it again")
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"the processor of {name} lacks its image processor or its tokenizer; fetch it again"
        )
    return net, processor


def _template(processor: Any, kind: str, name: str) -> Callable[[str], str]:
    if getattr(processor, "chat_template", None):
        return chat_prompt(processor, name)
    if kind != "llava":
        raise ValueError(
            f"the processor of {name} has no chat template, so the format of its prompts is unknown"
        )
    image = processor.image_token
    return lambda prompt: LLAVA_TEMPLATE.format(image=image, prompt=prompt)


def _check_agreement(model: LVLM) -> None:
    """ValueError unless the configuration agrees with the tower, the tokenizer and the chat template."""
    side, config = model.image_side, model.net.config
    if model.is_next and [side, side] not in [list(pair) for pair in config.image_grid_pinpoints]:
        raise ValueError(
            f"{model.name} does not allow images of {side}×{side} pixels (image_grid_pinpoints), the size that attacks "
            "use: one whole image and four tiles"
        )
    layers, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"{model.name} reads layer {layer} of its image tower (vision_feature_layer), which has {depth}; fetch "
                "its configuration again"
            )
    if model.image_tokens_in([model.template("")]) != [1]:
        raise ValueError(
            f"prompts in the chat template of {model.name} do not hold its image token (image_token_index "
            f"{config.image_token_id}) once; fetch its configuration, tokenizer and chat template again"
        )
