"""Checkpoint files, ours and other projects', as models: `FILE` or `FILE@MODEL`.

    runs/x/checkpoints/step-….pt        our own; the recipe inside says what it started from
    fare.pt@ViT-L-14/openai             RobustVLM: the state of an image tower
    model_best.pth.tar@ViT-B-32/openai  AdvFLYP, TeCoA, PMG-AFT, TGA-ZSR: an image tower, or what was trained
    epoch_5.pt@ViT-B-32/random          open_clip's trainer: a whole model

MODEL is what the weights were finetuned from, any name `load_model` takes. It gives what the file does not hold: the
text tower, the activation (QuickGELU or GELU, which no shape tells) and the preprocessing. The format is recognised
by the content of the file. docs/checkpoints.md has the details.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advflyp.documents import parse_toml
from advflyp.model.architectures import describe_models, fitting_architectures, models_of, only_model
from advflyp.model.clip import CLIP
from advflyp.model.interop.weights_file import read_weights_file
from advflyp.model.load import BEST, CONFIG_FILE, HF_CONFIG_FILE, ModelConfig, build_model
from advflyp.model.repository import HUB_PREFIX
from advflyp.model.zoo import ZOO
from advflyp.wording import counted

SUFFIXES = (".pt", ".pth", ".pth.tar", ".bin", ".safetensors", ".ckpt")
# Where a state dict may lie in a checkpoint, the most telling first: with prompts, "state_dict" is that of the prompts.
PLACES = ("partial_state_dict", "vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
# What wrappers put before every name.
WRAPPERS = ("module.", "net.", "model.")
TEXT_TOWER = ("token_embedding.", "transformer.", "text.")
# Constants, not weights: of OpenAI's archives, of older versions of open_clip.
CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids")
# The last layer of image classifiers in timm's and torchvision's models.
CLASSIFIER_HEADS = ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight", "heads.head.weight")
SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    state:   tensors by open_clip's names, those of the image tower with "visual." before them
    partial: only what was trained; the rest is the base model's
    start:   the base model, where the file says it
    """

    state: dict[str, Tensor]
    partial: bool = False
    start: ModelConfig | None = None

    @property
    def whole(self) -> bool:
        """A text tower is there, too."""
        return not self.partial and any(key.startswith(TEXT_TOWER) for key in self.state)


def split_name(name: str) -> tuple[Path, str | None] | None:
    """ "FILE@MODEL" or "FILE" → the file and the model; None where `name` is no file's.

    Before the @ may also stand a folder of transformers', to which MODEL gives what it lacks.
    ValueError for the name of a checkpoint that is not there, and for MODEL behind a folder that says all.
    """
    if Path(name).is_file():
        return Path(name), None
    # The first "@" that follows a file: there may be others in its path, and in the model's.
    places = [index for index, letter in enumerate(name) if letter == "@"]
    for index in places:
        path, base = Path(name[:index]), name[index + 1 :]
        if (path / CONFIG_FILE).is_file() or (path / BEST / CONFIG_FILE).is_file():
            raise ValueError(f"{path} is a folder that says all of the model; leave out @{base}")
        if path.is_file() or (path / HF_CONFIG_FILE).is_file():
            if not base:
                raise ValueError(f"{name}: name a model after the @, as in {path}@ViT-B-32/openai")
            return path, base
    for path in [name, *(name[:index] for index in places)]:
        if path.endswith(SUFFIXES):
            what = f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}"
            raise ValueError(f"{what}; name a checkpoint, alone or as FILE@MODEL")
    return None


def load_checkpoint_file(path: Path, base: str | None, name: str, *, shown: str | None = None) -> CLIP:
    """The model in a checkpoint.

    Args:
        path: The file.
        base: What it was finetuned from; needed where the file does not tell all of the model.
        name: What the user called the model.
        shown: What messages call the file, where its path means nothing to the user.

    Raises:
        ValueError: If the file cannot be read, is of no known kind, or does not fit `base`.
    """
    content = read_weights_file(path)
    path = path if shown is None else Path(shown)
    weights = find_weights(content, path)
    if base is not None:
        model = build_model(base, weights=not weights.whole)
    elif weights.start is not None:
        model, base = _start_of(weights.start, path), weights.start.name
    else:
        base = _only_base(weights, path)
        model = build_model(base, weights=False)
    _fill(model.net, weights, path, base)
    model.name = name
    return model


def find_weights(content: Mapping[str, Any], path: Path) -> Weights:
    """The state dict in a checkpoint, whoever wrote it. ValueError where there is none of a CLIP."""
    _refuse_prompts(content, path)
    place = next((place for place in PLACES if _is_state(content.get(place))), None)
    found = content[place] if place is not None else content
    if not _is_state(found):
        entries = ", ".join(str(key) for key in list(content)[:8])
        raise ValueError(f"{path} holds no state dict; its entries are: {entries or 'none'}")
    start = None
    if place == "model" and isinstance(content.get("recipe"), str):
        start = _recipe_start(content["recipe"], path)
    partial = place == "partial_state_dict"
    state = _bare(_tensors(found))
    if any(key.startswith(("vision_model.", "text_model.")) for key in state):
        raise ValueError(
            f"{path} has the names of transformers' CLIP; name the folder or the repository that holds it with its "
            "config.json instead"
        )
    if not any(key.startswith("visual.") for key in state):
        if "conv1.weight" in state or any(key.startswith("trunk.") for key in state):
            state = {f"visual.{key}": value for key, value in state.items()}
        elif head := next((key for key in CLASSIFIER_HEADS if key in state), None):
            raise ValueError(
                f"{path} holds an image classifier with {len(state[head])} fixed classes ({head}), which is no CLIP: "
                "it has no text tower, so it cannot be measured zero-shot"
            )
        elif not partial:
            raise ValueError(
                f"{path} holds {counted(len(state), 'tensor')} but none of an image tower as OpenAI's and open_clip's "
                f"CLIP name them: {_named(state)}"
            )
    return Weights(state, partial, start)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(_tensors(value))


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)
    }


def _refuse_prompts(content: Mapping[str, Any], path: Path) -> None:
    """TeCoA's code stores visual prompts beside the tower, of no size where none were trained."""
    if "add_prompter" not in content:
        return
    for place in ("state_dict", "add_prompter"):
        prompts = content.get(place)
        tensors = _tensors(prompts) if isinstance(prompts, Mapping) else {}
        trained = [key for key, value in tensors.items() if value.numel()]
        if trained:
            raise ValueError(
                f"{path} holds a trained visual prompt ({place}: {_named(trained)}), without which its weights are "
                "another model; only checkpoints without prompts can be loaded"
            )


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DataParallel, torch.compile and other wrappers put before them."""
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _recipe_start(recipe: str, path: Path) -> ModelConfig:
    try:
        table = parse_toml(recipe).get("model")
    except ValueError:
        table = None
    name, text = (table.get("name"), table.get("text")) if isinstance(table, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str | None):
        raise ValueError(f"{path} holds a recipe that cannot be read; name its model: {path}@MODEL")
    return ModelConfig(name=name, text=text)


def _start_of(start: ModelConfig, path: Path) -> CLIP:
    """The model that a run of ours started from, for its architecture and tokenizer."""
    if named := next((one for one in (start.name, start.text) if one and _is_fetched(one)), None):
        # Whoever made the file would decide what is fetched.
        raise ValueError(
            f"{path} is of a run that started from {named}; name that model, so that it is fetched: {path}@{start.name}"
        )
    try:
        model = build_model(start.name, weights=False)
        if start.text is not None:
            model.tokenizer = build_model(start.text, weights=False).tokenizer
        return model
    except ValueError as error:
        raise ValueError(
            f"{path} is of a run that started from {start.name}, which cannot be loaded ({error}); "
            f"name a model of the same architecture: {path}@MODEL"
        ) from None


def _is_fetched(name: str) -> bool:
    """Building it would ask the hub for a repository, even without its weights."""
    if name in ZOO:
        return ZOO[name].base is None
    return HUB_PREFIX in name or any(part in ZOO for part in name.split("@"))


def _only_base(weights: Weights, path: Path) -> str:
    """The one model that a whole state dict can be of. ValueError where there are several, or none."""
    if (path.parent / CONFIG_FILE).is_file():
        raise ValueError(
            f"{path} belongs to {path.parent}; name that folder, whose {CONFIG_FILE} says the rest"
        )
    models = models_of(_fitting(weights))
    if weights.whole and (only := only_model(models)):
        return only
    activation = "its activation (QuickGELU or GELU)"
    if weights.whole:
        lacks = f"says neither {activation} nor its preprocessing"
    elif weights.partial:
        lacks = f"holds only the part of a model that was trained, and does not say {activation}"
    else:
        lacks = f"holds an image tower without a text tower, and does not say {activation}"
    known = describe_models(models)
    if not known:
        known = f"no architecture of open_clip ({_described(weights.state)}); a folder will do as MODEL"
    example = next(iter(models), "ViT-B-32/openai")
    raise ValueError(
        f"{path} {lacks}: name the model it was finetuned from, as in {path}@{example}; its shapes are those of {known}"
    )


def _fitting(weights: Weights) -> list[str]:
    shapes = {key: value.shape for key, value in weights.state.items()}
    return fitting_architectures(shapes, whole=weights.whole)


def _described(state: Mapping[str, Tensor]) -> str:
    """What the shapes say of a vision transformer's size."""
    patches, places = state.get("visual.conv1.weight"), state.get("visual.positional_embedding")
    if patches is None or places is None or patches.dim() != 4 or places.dim() != 2:
        return counted(len(state), "tensor")
    layers = {key.split(".")[3] for key in state if key.startswith("visual.transformer.resblocks.")}
    width, _, patch, _ = patches.shape
    side = round((len(places) - 1) ** 0.5)
    projection = state.get("visual.proj")
    size = f", embeddings {projection.shape[-1]}" if projection is not None else ""
    return f"width {width}, {counted(len(layers), 'layer')}, {side}×{side} patches of {patch}{size}"


def _fill(net: torch.nn.Module, weights: Weights, path: Path, base: str) -> None:
    """Put the weights into the model, in float32. ValueError, with names, unless all fit and none is missing."""
    own = net.state_dict()
    state = {_as_in(own, key): value for key, value in weights.state.items()}
    expected = [key for key in own if weights.whole or key.startswith("visual.")]
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own and key.rpartition(".")[2] not in CONSTANTS]
    wrong = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({_named(keys)})"
        for what, keys in (
            ("missing", [] if weights.partial else missing),
            ("left over", extra),
            ("of another shape", wrong),
        )
        if keys
    ]
    if faults:
        fitting = [] if weights.partial else _fitting(weights)
        hint = f"; its shapes are those of {_named(fitting)}" if fitting else ""
        raise ValueError(f"the tensors of {path} are not those of {base}: {'; '.join(faults)}{hint}")
    net.load_state_dict({key: state[key].to(own[key].dtype) for key in state if key in own}, strict=False)


def _as_in(own: Mapping[str, Tensor], key: str) -> str:
    """The name a tensor has in the model: open_clip keeps some text towers under "text." and others at the top."""
    other = key.removeprefix("text.") if key.startswith("text.") else f"text.{key}"
    return other if key not in own and other in own else key


def _named(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
