"""Load models by name.

"mini", "mini-vit"          the small CLIPs that come with the package
"ViT-B-32/openai"           an open_clip architecture and its pretrained weights
"ViT-B-32/random"           the same with fresh weights (also "mini/random"), for pretraining
"fare4-vit-l-14"            a published robust CLIP; see `zoo.py`
"hf-hub:org/repo"           a model on the Hugging Face hub, in open_clip's or transformers' format
runs/x                      the best weights of one of our runs
a folder                    as open_clip saves it (open_clip_config.json and weights), or a CLIP or SigLIP that
                            transformers saved
fare.pt@ViT-L-14/openai     a checkpoint file and the model it was finetuned from; see `checkpoints.py`
"hf-hub:org/repo/fare.pt@ViT-L-14/openai"
                            the same for a file on the hub
"hf-hub:org/repo@ViT-L-14/openai", FOLDER@ViT-L-14/openai
                            transformers' weights and config.json; the model after the @ supplies preprocessing
                            and tokenizer where they are missing
"""

import re
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg

from advflyp.config import nearest, nearest_path
from advflyp.data.lineage import united
from advflyp.devices import pick_device as pick_device
from advflyp.model.architectures import ARCHITECTURES, architecture_config, architecture_names
from advflyp.model.build import CONFIG_FILE, build_net
from advflyp.model.clip import CLIP
from advflyp.model.folder import (
    BEST,
    BUNDLED,
    card_of,
    check_finite,
    load_folder,
    read_card,
    with_card,
)
from advflyp.model.from_hub import fetch_model, refuse_classifiers
from advflyp.model.interop.checkpoints import SUFFIXES, fill, lacks_base, read_checkpoint
from advflyp.model.interop.hf_folder import check_complete, lent_tokenizer, load_hf_folder, read_hf_config
from advflyp.model.repository import HF_CONFIG_FILE, HUB_PREFIX, Address, open_repository, read_address
from advflyp.model.tokenizers import load_tokenizer
from advflyp.model.zoo import ZOO, Entry, near_entries

LOCAL_PREFIX = "local-dir:"  # open_clip's
# Keys of an open_clip tag that say how to preprocess images for its weights.
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# open_clip's names of a tag's weights file, if the tag itself names none.
TAG_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# OWNER/NAME, alone, with another tool's prefix, or as a URL.
HUB_NAME = re.compile(r"(?:\w+:/{0,2}|https?://[^/]+/)?([\w.-]+/[\w.-]+)/?")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to start from (recipe table `model`).

    Attributes:
        name: Any name that `load_model` takes.
        text: Take the text tower and the logit scale of this model instead. Its text tower must have the same
            architecture and embedding size.
    """

    name: str = "mini"
    text: str | None = None


def load_model(name: str | Path, *, device: str | torch.device = "auto") -> CLIP:
    """Load a model by its name.

    Args:
        name: A name of the table at the top of this module.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".

    Returns:
        The model in evaluation mode, with float32 weights.

    Raises:
        ValueError: If there is no such model or device, or the weights are not finite.
    """
    if not isinstance(name, str | Path):
        kind = type(name)
        raise ValueError(
            f"a model is an advflyp.CLIP, a name or a path, not {kind.__module__}.{kind.__qualname__}; wrap a model of "
            "open_clip with CLIP.from_open_clip"
        )
    place = pick_device(device)
    # A `Path` is a file or folder, also where a model that comes with the package has its name.
    model = build_model(f"./{name}" if isinstance(name, Path) and len(name.parts) == 1 else str(name))
    check_finite(model, f"{name} cannot be used")
    return model.to(place).eval()


def build_model(name: str, *, weights: bool = True) -> CLIP:
    """Build the model called `name` on the CPU.

    Args:
        name: As for `load_model`.
        weights: False if any weights will do: open_clip's and most of the zoo's are then not downloaded.

    Raises:
        ValueError: If there is no such model.
    """
    model = _build(name.removeprefix(LOCAL_PREFIX), weights)
    model.net.to(memory_format=torch.channels_last)
    return model


def _build(name: str, weights: bool) -> CLIP:
    if "/" not in name and (BUNDLED / name).is_dir():
        return load_folder(BUNDLED / name, name)
    if name in ZOO:
        return _from_zoo(ZOO[name], weights)
    if Path(name).is_dir():
        return with_card(Path(name), lambda: _from_folder(Path(name), name))
    if name.startswith(HUB_PREFIX):
        return _from_hub(read_address(name), name)
    if (found := split_name(name)) is not None:
        path, base = found
        if path.is_dir():
            return _from_transformers(path, name, base)
        return _from_checkpoint(path, base, name)
    return _from_architecture(name, weights)


def _without_weights(name: str) -> CLIP:
    """A model on the meta device, for callers that only need its configuration and its tokenizer."""
    # The meta device takes no memory for a large model; torch warns that weights loaded there go nowhere.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return build_model(name, weights=False)


def start_from(config: ModelConfig, *, device: str | torch.device = "cpu") -> CLIP:
    """Load the model that a recipe's `model` table describes.

    Raises:
        ValueError: If a model is unknown or the text towers differ.
    """
    model = load_model(config.name, device=device)
    if config.text is not None:
        other = load_model(config.text, device=device)
        ours, theirs = _text_state(model), _text_state(other)
        shapes = [{key: value.shape for key, value in state.items()} for state in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"model.text: the text towers of {config.text} and {config.name} have different shapes; name a model "
                "with the same text architecture and embedding size"
            )
        settings = _text_settings(model), _text_settings(other)
        if differing := [key for key in settings[0] if settings[0][key] != settings[1][key]]:
            raise ValueError(
                f"model.text: the text towers of {config.text} and {config.name} differ in {', '.join(differing)}; "
                "name a model with the same text architecture"
            )
        model.card = united(card_of(model), card_of(other))
        model.net.load_state_dict(theirs, strict=False)
        model.tokenizer = lent_tokenizer(other, model.config["model_cfg"])
    return model


def _text_state(model: CLIP) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.net.state_dict().items() if not k.startswith("visual.")}


def _text_settings(model: CLIP) -> dict[str, Any]:
    """What a text's embedding depends on besides weights and tokenizer."""
    config = model.config["model_cfg"]
    given = CLIPTextCfg(**{key: value for key, value in config["text_cfg"].items() if "tokenizer" not in key})
    return {"quick_gelu": bool(config.get("quick_gelu")), **asdict(replace(given, hf_model_pretrained=False))}


def _from_folder(folder: Path, name: str) -> CLIP:
    for place in (folder / BEST, folder):
        if (place / CONFIG_FILE).is_file():
            return load_folder(place, name)
    if (folder / HF_CONFIG_FILE).is_file():
        return _from_transformers(folder, name)
    raise ValueError(
        f"{folder} holds no model: neither {CONFIG_FILE} (an open_clip folder) nor {HF_CONFIG_FILE} (transformers') "
        f"nor {BEST}/ (one of our runs; it appears after the first validation)"
    )


def _from_transformers(folder: Path, name: str, base: str | None = None) -> CLIP:
    read_hf_config(folder)
    check_complete(folder, name, base)
    lender = None if base is None else _without_weights(base)
    return load_hf_folder(folder, name, lender)


def _from_hub(address: Address, name: str, entry: Entry | None = None) -> CLIP:
    refuse_classifiers(address.repository)
    pinned = (entry.revision, entry.sha256) if entry else (None, None)
    repository = open_repository(address.repository, *pinned)
    try:
        if address.base is not None:
            _without_weights(address.base)
        path = fetch_model(repository, address, name, alone=entry is not None)
        if address.file is not None:
            return _from_checkpoint(path, address.base, name, Address(repository.name, address.file).name)
        if (path / CONFIG_FILE).is_file():
            model = load_folder(path, name, None if entry else repository.name)
        else:
            model = _from_transformers(path, name, address.base)
        if entry is None:
            model.card = read_card(path)  # the zoo has its own cards
        return model
    except ValueError as error:
        if repository.cached:
            raise ValueError(f"{name} (the hub did not answer; its cache may lack files): {error}") from None
        if repository.name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from None


def _from_zoo(entry: Entry, weights: bool) -> CLIP:
    """A published model; the zoo alone decides what is fetched."""
    if entry.base is not None and not weights:
        # Finetuning left the architecture, the tokenizer and the preprocessing as they were.
        model = build_model(entry.base, weights=False)
        model.name = entry.name
        return model
    model = _from_hub(read_address(entry.address), entry.name, entry)
    if entry.layout == "open_clip" and entry.base is not None:
        found, wanted = (
            "QuickGELU" if config["model_cfg"].get("quick_gelu") else "GELU"
            for config in (model.config, _without_weights(entry.base).config)
        )
        if found != wanted:
            raise ValueError(
                f"{entry.name}: the configuration in {entry.repository} says {found}, but {entry.base}, which it was "
                f"finetuned from, has {wanted}; put the weights into that one: "
                f"hf-hub:{entry.repository}/FILE@{entry.base}"
            )
    return model


def split_name(name: str) -> tuple[Path, str | None] | None:
    """Split "FILE@MODEL" or "FILE" into the file and the model; None if `name` names no file.

    A folder that transformers saved may also precede the @.

    Raises:
        ValueError: If the checkpoint does not exist, no MODEL follows the @, or MODEL follows a folder that needs none.
    """
    if Path(name).is_file():
        return Path(name), None
    # Split at the first "@" that follows an existing path: there may be others in FILE and in MODEL.
    places = [index for index, letter in enumerate(name) if letter == "@"]
    for index in places:
        path, base = Path(name[:index]), name[index + 1 :]
        if (path / CONFIG_FILE).is_file() or (path / BEST / CONFIG_FILE).is_file():
            raise ValueError(f"{path} is a folder that describes its model completely; leave out @{base}")
        if path.is_file() or (path / HF_CONFIG_FILE).is_file():
            if not base:
                raise ValueError(f"{name}: name a model after the @, as in {path}@ViT-B-32/openai")
            return path, base
    for path in [name, *(name[:index] for index in places)]:
        if path.endswith(SUFFIXES):
            what = f"{path} is a folder" if Path(path).is_dir() else f"there is no file {path}"
            raise ValueError(f"{what}; name a checkpoint as FILE@MODEL")
    return None


def _from_checkpoint(path: Path, base: str | None, name: str, shown: str | None = None) -> CLIP:
    """The model in a checkpoint file; `shown` is the file's name in messages, if its path would mean nothing."""
    weights = read_checkpoint(path, shown or str(path))
    if base is not None:
        model = build_model(base, weights=not weights.whole)
    elif weights.start is not None:
        base = str(weights.start["name"])
        model = _started_from(ModelConfig(**weights.start), weights.file)
    elif (path.parent / CONFIG_FILE).is_file():
        raise ValueError(
            f"{path} belongs to {path.parent}; name that folder, whose {CONFIG_FILE} says the rest"
        )
    else:
        raise ValueError(lacks_base(weights))
    fill(model.net, weights, base)
    # Its own data are not known, but those of the model it was finetuned from are.
    model.card = united(card_of(model))
    model.name = name
    return model


def _started_from(start: ModelConfig, file: str) -> CLIP:
    """The model that one of our runs started from, for its architecture and tokenizer."""
    if named := next((one for one in (start.name, start.text) if one and _is_fetched(one)), None):
        # Otherwise whoever made the file would decide what is fetched.
        raise ValueError(
            f"{file} comes from a run that started from {named}; name that model, so that it is fetched: "
            f"{file}@{start.name}"
        )
    try:
        model = build_model(start.name, weights=False)
        if start.text is not None:
            other = build_model(start.text, weights=False)
            model.tokenizer = lent_tokenizer(other, model.config["model_cfg"])
        return model
    except ValueError as error:
        raise ValueError(
            f"{file} comes from a run that started from {start.name}, which cannot be loaded ({error}); "
            f"name a model of the same architecture: {file}@MODEL"
        ) from None


def _is_fetched(name: str) -> bool:
    """Whether building a model would ask the hub for a repository, even without its weights."""
    name = name.removeprefix(LOCAL_PREFIX)
    if name in ZOO:
        return ZOO[name].base is None
    return HUB_PREFIX in name or any(part in ZOO for part in name.split("@"))


def _from_architecture(given: str, weights: bool) -> CLIP:
    known = architecture_names()
    name = _open_clip_name(given, known)
    architecture, _, tag = name.rpartition("/")
    _check_known(given, name, known)
    model_cfg = architecture_config(architecture)
    # The tag says with which activation and preprocessing its weights were trained.
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
    return CLIP(net, tokenizer, config, name)


def _check_known(given: str, name: str, known: list[str]) -> None:
    """ValueError unless `name`, open_clip's spelling of `given`, is an architecture with one of its tags."""
    architecture, slash, tag = name.rpartition("/")
    if not slash:
        if name in known:
            raise ValueError(f"say which weights of {name}: {_choices(name)}")
        bundled = sorted(path.name for path in BUNDLED.iterdir())
        raise ValueError(
            f"there is no model '{name}': it is neither {' nor '.join(bundled)} nor one of `advflyp models` nor a "
            f"folder, and open_clip's are written as ViT-B-32/openai"
            f"{nearest_path(given) or nearest(name, [*known, *bundled, *ZOO]) or near_entries(name)}"
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


def _open_clip_name(name: str, known: list[str]) -> str:
    """ARCHITECTURE/TAG for one of OpenAI's own names, such as ViT-L/14@336px, with or without a tag; else `name`."""
    for theirs, tag in ((name, "openai"), name.rpartition("/")[::2]):
        architecture = theirs.replace("/", "-").replace("@336px", "-336")
        if "/" in theirs and architecture in known:
            return f"{architecture}/{tag}"
    return name


def _tag_weights(address: str) -> Path:
    """Fetch the weights file at OWNER/NAME/FILE on the hub, or, for OWNER/NAME/, under open_clip's usual names."""
    name, _, file = address.rpartition("/")
    repository = open_repository(name)
    wanted = [f"{Path(file).stem}.safetensors", file] if file else TAG_WEIGHTS
    file = next((one for one in wanted if one in repository.files), wanted[-1])
    return repository.fetch([file]) / file


def _choices(architecture: str) -> str:
    tags = [*open_clip.list_pretrained_tags_by_model(architecture), "random"]
    return ", ".join(f"{architecture}/{tag}" for tag in tags)
