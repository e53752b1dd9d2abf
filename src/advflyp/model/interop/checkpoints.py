"""Checkpoint files, ours and other projects', as weights for a model: `FILE@MODEL`.

    fare.pt@ViT-L-14/openai             RobustVLM: the state of an image tower
    model_best.pth.tar@ViT-B-32/openai  AdvFLYP, TeCoA, PMG-AFT, TGA-ZSR: an image tower, or its trained parameters
    epoch_5.pt@ViT-B-32/random          open_clip's trainer: a whole model
    runs/x/checkpoints/step-….pt        our own; the recipe inside names MODEL

MODEL is what the weights were finetuned from, by any name that `load_model` takes. It supplies what the file lacks: the
text tower, the activation (QuickGELU or GELU, which shapes do not reveal) and the preprocessing. The format is detected
from the file's content. docs/checkpoints.md has the details.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from advflyp.documents import parse_toml
from advflyp.model.architectures import similar_architectures
from advflyp.model.weights_file import check_floating, read_weights_file
from advflyp.wording import counted

SUFFIXES = (".pt", ".pth", ".pth.tar", ".bin", ".safetensors", ".ckpt")
# Keys that may hold the state dict in a checkpoint, most specific first: with prompts, "state_dict" is the prompts'.
PLACES = ("partial_state_dict", "vision_encoder_state_dict", "state_dict", "model_state_dict", "model")
# Prefixes that wrappers put before every name.
WRAPPERS = ("module.", "net.", "model.")
TEXT_TOWER = ("token_embedding.", "transformer.", "text.")
# Constants, not weights, found in OpenAI's archives and in files of older open_clip versions.
CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids")
# The last layer of image classifiers in timm's and torchvision's models.
CLASSIFIER_HEADS = ("head.weight", "head.fc.weight", "fc.weight", "classifier.weight", "heads.head.weight")
SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        file: Its name in messages.
        state: Tensors by open_clip's names; those of the image tower start with "visual.".
        partial: Only what was trained; the rest is the base model's.
        start: The recipe table `model` of our own checkpoints: "name" and "text".
    """

    file: str
    state: dict[str, Tensor]
    partial: bool = False
    start: dict[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether there is a text tower, too."""
        return not self.partial and any(key.startswith(TEXT_TOWER) for key in self.state)


def read_checkpoint(path: Path, shown: str) -> Weights:
    """Read the weights in a checkpoint, whoever wrote it.

    Raises:
        ValueError: If the file cannot be read or holds no weights of a CLIP.
    """
    content = read_weights_file(path)
    _refuse_prompts(content, shown)
    places = [place for place in PLACES if _is_state(content.get(place))]
    if len(places) > 1:
        raise ValueError(
            f"{shown} holds several state dicts ({', '.join(places)}); save the one to load alone"
        )
    found = content[places[0]] if places else content
    if not _is_state(found):
        entries = ", ".join(str(key) for key in list(content)[:8])
        raise ValueError(f"{shown} holds no state dict; its entries are: {entries or 'none'}")
    start = None
    if places == ["model"] and isinstance(content.get("recipe"), str):
        start = _recipe_start(content["recipe"], shown)
    state = _bare(_tensors(found), shown)
    if any(key.startswith(("vision_model.", "text_model.")) for key in state):
        raise ValueError(
            f"{shown} has the names of transformers' CLIP; name the folder or the repository that holds it with its "
            "config.json instead"
        )
    if not any(key.startswith("visual.") for key in state):
        if "conv1.weight" in state or any(key.startswith("trunk.") for key in state):
            state = {f"visual.{key}": value for key, value in state.items()}
        elif head := next((key for key in CLASSIFIER_HEADS if key in state and state[key].dim()), None):
            raise ValueError(
                f"{shown} holds an image classifier with {len(state[head])} fixed classes ({head}), not a CLIP: "
                "it has no text tower, so it cannot be measured zero-shot"
            )
        else:
            raise ValueError(
                f"{shown} holds {counted(len(state), 'tensor')} but none of an image tower as OpenAI's and open_clip's "
                f"CLIP name them: {first_few(state)}"
            )
    return Weights(shown, state, places == ["partial_state_dict"], start)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(_tensors(value))


def _tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)
    }


def _refuse_prompts(content: Mapping[str, Any], file: str) -> None:
    """Refuse trained visual prompts. TeCoA's code stores prompts beside the tower, empty if none were trained."""
    if "add_prompter" not in content:
        return
    for place in ("state_dict", "add_prompter"):
        prompts = content.get(place)
        tensors = _tensors(prompts) if isinstance(prompts, Mapping) else {}
        trained = [key for key, value in tensors.items() if value.numel()]
        if trained:
            raise ValueError(
                f"{file} holds a trained visual prompt ({place}: {first_few(trained)}), without which its weights give "
                "a different model; only checkpoints without prompts can be loaded"
            )


def _bare(state: dict[str, Tensor], file: str) -> dict[str, Tensor]:
    """Strip the prefixes that DataParallel, torch.compile and other wrappers put before names."""
    state = _renamed(state, lambda key: key.replace("_orig_mod.", ""), file)
    while prefix := next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _renamed(state: Mapping[str, Tensor], new_name: Callable[[str], str], file: str) -> dict[str, Tensor]:
    """The tensors by other names. ValueError if two that differ get the same one: either could be meant."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        other = found.setdefault(new_name(key), value)
        if other.shape != value.shape or other.dtype != value.dtype or not torch.equal(other, value):
            raise ValueError(
                f"{file} holds two different tensors that are both {new_name(key)}; save the state dict of one model"
            )
    return found


def _recipe_start(recipe: str, file: str) -> dict[str, Any]:
    try:
        table = parse_toml(recipe).get("model")
    except ValueError:
        table = None
    name, text = (table.get("name"), table.get("text")) if isinstance(table, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str | None):
        raise ValueError(f"{file} holds a recipe that cannot be read; name its model: {file}@MODEL")
    return {"name": name, "text": text}


def lacks_base(weights: Weights) -> str:
    """The message for a weights file without MODEL: what it lacks, and what to name."""
    if weights.whole:
        lacks = "its activation (QuickGELU or GELU) and its preprocessing"
    elif weights.partial:
        lacks = "the parameters that were not trained"
    else:
        lacks = "a text tower and its activation (QuickGELU or GELU)"
    names = similar_architectures(weights.state)
    hint = f"; its image tower has the sizes of {first_few(names)}" if names else ""
    tags = [f"{name}/{tag}" for name in names for tag in open_clip.list_pretrained_tags_by_model(name)]
    return (
        f"{weights.file} lacks {lacks}: name the model that it was finetuned from, as in "
        f"{weights.file}@{next(iter(tags), 'ViT-B-32/openai')}{hint}"
    )


def fill(net: torch.nn.Module, weights: Weights, base: str) -> None:
    """Put the weights into a model, in float32.

    Raises:
        ValueError: If a tensor is missing, left over, of another shape or of whole numbers, or if two have one name.
    """
    own = net.state_dict()
    state = _renamed(weights.state, lambda key: _as_in(own, key), weights.file)
    check_floating(state, own, weights.file)
    expected = [key for key in own if weights.whole or key.startswith("visual.")]
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in own and key.rpartition(".")[2] not in CONSTANTS]
    wrong = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({first_few(keys)})"
        for what, keys in (
            ("missing", [] if weights.partial else missing),
            ("left over", extra),
            ("of another shape", wrong),
        )
        if keys
    ]
    if faults:
        names = similar_architectures(weights.state)
        hint = f"; its image tower has the sizes of {first_few(names)}" if names and wrong else ""
        raise ValueError(f"the tensors of {weights.file} are not those of {base}: {'; '.join(faults)}{hint}")
    net.load_state_dict({key: state[key].to(own[key].dtype) for key in state if key in own}, strict=False)


def _as_in(own: Mapping[str, Tensor], key: str) -> str:
    """The name a tensor has in the model: open_clip keeps some text towers under "text." and others at the top."""
    other = key.removeprefix("text.") if key.startswith("text.") else f"text.{key}"
    return other if key not in own and other in own else key


def first_few(keys: Iterable[str]) -> str:
    """The first names of a list, and that there are more."""
    keys = list(keys)
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
