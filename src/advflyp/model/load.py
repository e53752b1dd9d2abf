"""Models by name: load and save.

    "mini", "mini-vit"          the small CLIPs that come with the package
    "ViT-B-32/openai"           an open_clip architecture and its pretrained weights
    "ViT-B-32/random"           the same with fresh weights (also "mini/random"), to pretrain
    "fare4-vit-l-14"            a published robust CLIP; see `zoo.py`
    "hf-hub:org/repo"           a model on the Hugging Face hub, open_clip's or transformers'
    runs/x                      a run of ours: its best weights
    a folder                    with open_clip_config.json and weights beside it, as open_clip saves them, or of a CLIP
                                or SigLIP that transformers saved
    fare.pt@ViT-L-14/openai     a checkpoint file and the model it was finetuned from; see `checkpoints.py`
    "hf-hub:org/repo/fare.pt@ViT-L-14/openai"
                                the same of a file on the hub
    "hf-hub:org/repo@ViT-L-14/openai", FOLDER@ViT-L-14/openai
                                weights and config.json of transformers; the model named last gives what lacks:
                                preprocessing and tokenizer

What we save is such a folder, so open_clip loads it too (`local-dir:FOLDER`).
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.tokenizer import HFTokenizer

from advflyp.config import convert, nearest, nearest_path
from advflyp.devices import pick_device as pick_device
from advflyp.documents import read_json_object
from advflyp.files import draft_folder, names_in, publish_folder, write_atomically, write_text
from advflyp.model.build import (
    ARCHITECTURES,
    CONFIG_FILE,
    HF_CONFIG_FILE,
    TOKENIZER_FILES,
    build_net,
    load_open_clip_folder,
    load_tokenizer,
)
from advflyp.model.clip import CLIP
from advflyp.model.repository import HUB_PREFIX, open_repository, read_address
from advflyp.model.zoo import ZOO, Entry, load_entry

# As open_clip writes them.
LOCAL_PREFIX = "local-dir:"
BUNDLED = Path(__file__).parent / "weights"
WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "card.json"
CARD_KEYS: dict[str, Any] = {
    "recipe": dict[str, dict[str, Any]],
    "trained_on": list[str],
    "pairs_seen": int,
    "pflops": float,
    "weights_sha256": str,
}
BEST = "best"
# What a tag of open_clip says of the pixels that its weights expect.
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# How open_clip names the weights that a tag stands for, where the tag names no file.
TAG_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# OWNER/NAME as users write it, and as others do.
HUB_NAME = re.compile(r"(?:\w+:/{0,2}|https?://[^/]+/)?([\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to start from (recipe table `model`).

    name: any name that `load_model` takes
    text: take the text tower and the logit scale of this model instead, which must have the same ones
    """

    name: str = "mini"
    text: str | None = None


def load_model(name: str | Path, *, device: str | torch.device = "cpu") -> CLIP:
    """The model called `name` in evaluation mode, float32; see this module for what names there are.

    ValueError where there is no such model, or its weights are not finite.
    """
    model = build_model(str(name))
    check_finite(model, f"{name} cannot be used", "use an earlier checkpoint")
    return model.to(device).eval()


def build_model(name: str, *, weights: bool = True) -> CLIP:
    """The model called `name`, on the CPU.

    weights: False for any weights at all, where the right ones would have to be downloaded
    ValueError where there is no such model.
    """
    from advflyp.model.from_hub import load_address
    from advflyp.model.interop.checkpoints import load_checkpoint_file, split_name

    name = name.removeprefix(LOCAL_PREFIX)
    if "/" not in name and (BUNDLED / name).is_dir():
        return from_folder(BUNDLED / name, name)
    if name in ZOO:
        return _from_zoo(ZOO[name], weights)
    if Path(name).is_dir():
        if (Path(name) / HF_CONFIG_FILE).is_file() and not (Path(name) / CONFIG_FILE).is_file():
            return from_transformers(Path(name), name)
        return from_folder(_weights_folder(Path(name)), name)
    if name.startswith(HUB_PREFIX):
        return load_address(read_address(name), name)
    if (found := split_name(name)) is not None:
        path, base = found
        if path.is_dir():
            return from_transformers(path, name, base)
        return load_checkpoint_file(path, base, name)
    return _from_architecture(name, weights)


def describe(name: str) -> tuple[dict[str, Any], Any]:
    """The configuration and the tokenizer of a model that is not needed itself.

    Raises:
        ValueError: If there is no such model.
    """
    # No memory for a large one; weights that are at hand go nowhere, of which torch warns.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = build_model(name, weights=False)
    return model.config, model.tokenizer


def start_from(config: ModelConfig, *, device: str | torch.device = "cpu") -> CLIP:
    """The model that a recipe's `model` table describes.

    ValueError where a model is unknown or the two text towers differ.
    """
    model = load_model(config.name, device=device)
    if config.text is not None:
        other = load_model(config.text, device=device)
        mine, theirs = _text_state(model), _text_state(other)
        shapes = [{key: value.shape for key, value in state.items()} for state in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"model.text: the text tower of {config.text} has not the shape of that of {config.name}; "
                "name a model with the same text architecture and embedding size"
            )
        model.net.load_state_dict(theirs, strict=False)
        model.tokenizer = other.tokenizer
    return model


def _text_state(model: CLIP) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.net.state_dict().items() if not k.startswith("visual.")}


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    checked = {name: value.isfinite().all() for name, value in state.items() if value.is_floating_point()}
    # Read at once: each reading waits for the device.
    finite = torch.stack([*checked.values()]).tolist() if checked else []
    return [name for name, fine in zip(checked, finite, strict=True) if not fine]


def check_finite(model: CLIP, refused: str, advice: str) -> None:
    """Refuse weights that are not finite.

    Args:
        model: The model.
        refused: How the message begins.
        advice: How it ends.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    if wrong := not_finite(model.net.state_dict()):
        raise ValueError(
            f"{refused}: {broken_weights(wrong)}, so its training diverged or a file is damaged; {advice}"
        )


def broken_weights(names: Sequence[str]) -> str:
    """ "3 of its tensors are not finite (visual.proj, …)"."""
    noun = f"{len(names)} of its tensors {'is' if len(names) == 1 else 'are'}"
    return f"{noun} not finite ({names[0]}{', …' if len(names) > 1 else ''})"


def save_model(model: CLIP, folder: Path, card: dict[str, Any], *, half: bool = False) -> None:
    """Write weights, configuration and card into `folder`, which appears only when it is complete.

    card: what a reader should know of these weights (data, recipe, results); JSON
    half: store float16, half the size
    ValueError where a weight is not finite, or `folder` holds anything but a model that was written like this;
    nothing is written then.
    """
    check_replaceable(folder)
    with draft_folder(folder) as draft:
        _write(model, draft, card, half)
        publish_folder(draft, folder, replace=True)


def check_replaceable(folder: Path) -> None:
    """ValueError unless `folder` is new, empty, or what `save_model` wrote and nothing else."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    names = names_in(folder)
    known = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, *TOKENIZER_FILES}
    if names and (names - known or "weights_sha256" not in read_card(folder.absolute())):
        foreign = min(names - known or names)
        raise ValueError(
            f"{folder} holds {foreign}, which advflyp did not write, and is not replaced; move it away, or name "
            "another folder"
        )


def _write(model: CLIP, folder: Path, card: dict[str, Any], half: bool) -> None:
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if wrong := not_finite(state):
        raise ValueError(f"{model.name} is not saved to {folder}: {broken_weights(wrong)}")
    # Not save_file: it makes files that only their owner can read.
    with write_atomically(folder / WEIGHTS_FILE) as file:
        file.write(safetensors.torch.save(state))
    write_text(folder / CONFIG_FILE, json.dumps(model.config, indent=2) + "\n")
    if isinstance(model.tokenizer, HFTokenizer):
        # open_clip looks for it beside the configuration.
        model.tokenizer.tokenizer.save_pretrained(folder)
    card = {**card, "weights_sha256": state_sha256(state)}
    write_text(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")


def read_card(name: str | Path) -> dict[str, Any]:
    """What is known of the model called `name`, if it is in a folder that says so; {} for others.

    ValueError for a damaged card.
    """
    for folder in (BUNDLED / name, Path(name) / BEST, Path(name)):
        path = folder / CARD_FILE
        if path.is_file():
            card = read_json_object(path)
            # Of a model of anybody's: what is there has to be what it is taken for.
            known = {key: convert(card[key], hint, key) for key, hint in CARD_KEYS.items() if key in card}
            return card | known
    return ZOO[str(name)].card() if str(name) in ZOO else {}


def weights_sha256(model: CLIP) -> str:
    """A hash of every tensor of the model, whatever file it came from."""
    return state_sha256(model.net.state_dict())


def state_sha256(state: dict[str, torch.Tensor]) -> str:
    """`weights_sha256` of a state dict."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        tensor = state[key].detach().cpu().contiguous()
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def from_folder(folder: Path, name: str, repository: str | None = None) -> CLIP:
    """A folder in open_clip's format. repository: where it is from on the hub, if it is."""
    net, config, tokenizer = load_open_clip_folder(folder, repository)
    return CLIP(_channels_last(net), tokenizer, config, name)


def from_transformers(folder: Path, name: str, base: str | None = None) -> CLIP:
    """A folder of transformers'. base: the model that gives what it lacks."""
    from advflyp.model.interop.hf_folder import Lender, check_complete, load_hf_folder, read_hf_config

    read_hf_config(folder)
    check_complete(folder, name, base)
    lender = None if base is None else Lender(base, *describe(base))
    net, config, tokenizer = load_hf_folder(folder, lender)
    return CLIP(_channels_last(net), tokenizer, config, name)


def _from_zoo(entry: Entry, weights: bool) -> CLIP:
    if weights or entry.base is None:
        return load_entry(entry)
    # Finetuning left the architecture, the tokenizer and the preprocessing as they were.
    model = build_model(entry.base, weights=False)
    model.name = entry.name
    return model


def _channels_last(net: torch.nn.Module) -> torch.nn.Module:
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _weights_folder(path: Path) -> Path:
    for folder in (path / BEST, path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise ValueError(
        f"{path} holds no model: neither {CONFIG_FILE} (an open_clip folder) nor {HF_CONFIG_FILE} (transformers') nor "
        f"{BEST}/ (one of our runs; it appears after the first validation)"
    )


def _from_architecture(given: str, weights: bool) -> CLIP:
    open_clip.add_model_config(ARCHITECTURES)
    known = open_clip.list_models()
    name = _open_clip_name(given, known)
    architecture, slash, tag = name.rpartition("/")
    if not slash:
        if name in known:
            raise ValueError(f"say which weights of {name}: {_choices(name)}")
        bundled = sorted(path.name for path in BUNDLED.iterdir())
        raise ValueError(
            f"there is no model '{name}': it is neither {' nor '.join(bundled)} nor one of `advflyp models` nor a "
            f"folder, and open_clip's are written as ViT-B-32/openai"
            f"{nearest_path(given) or nearest(name, [*known, *bundled, *ZOO])}"
        )
    if architecture not in known:
        hint = nearest_path(given) or nearest(architecture, known)
        if not hint and (repository := HUB_NAME.fullmatch(name)):
            hint = f"; a model on the Hugging Face hub is written as {HUB_PREFIX}{repository[1]}"
        raise ValueError(
            f"there is neither a folder {name} nor an open_clip architecture '{architecture}'{hint}"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag != "random" and tag not in tags:
        raise ValueError(
            f"{architecture} has no weights '{tag}', only {_choices(architecture)}{nearest(tag, tags)}"
        )
    model_cfg: dict[str, Any] = deepcopy(open_clip.get_model_config(architecture) or {})
    # The tag says which activation its weights were trained with, and which pixels.
    pretrained = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if pretrained.get("quick_gelu", False):
        model_cfg["quick_gelu"] = True
    preprocess = {key: pretrained[key] for key in PREPROCESSING if key in pretrained}
    try:
        tokenizer = load_tokenizer(model_cfg["text_cfg"], ARCHITECTURES)
        file = _tag_weights(pretrained["hf_hub"]) if pretrained and weights else None
        net = build_net(model_cfg, preprocess, file)
    except ValueError as error:
        raise ValueError(f"{name} could not be fetched: {error}") from None
    config = {"model_cfg": model_cfg, "preprocess_cfg": dict(open_clip.get_model_preprocess_cfg(net))}
    return CLIP(_channels_last(net), tokenizer, config, name)


def _open_clip_name(name: str, known: list[str]) -> str:
    """ARCHITECTURE/TAG for one of OpenAI's own names, such as ViT-L/14@336px, with or without a tag; else `name`."""
    for theirs, tag in ((name, "openai"), name.rpartition("/")[::2]):
        architecture = theirs.replace("/", "-").replace("@336px", "-336")
        if "/" in theirs and architecture in known:
            return f"{architecture}/{tag}"
    return name


def _tag_weights(address: str) -> Path:
    """The file of weights at OWNER/NAME/FILE on the hub, or OWNER/NAME/ for open_clip's usual names."""
    name, _, file = address.rpartition("/")
    repository = open_repository(name)
    wanted = [f"{Path(file).stem}.safetensors", file] if file else TAG_WEIGHTS
    file = next((one for one in wanted if one in repository.files), wanted[-1])
    return repository.fetch([file]) / file


def _choices(architecture: str) -> str:
    tags = [*open_clip.list_pretrained_tags_by_model(architecture), "random"]
    return ", ".join(f"{architecture}/{tag}" for tag in tags)
