"""open_clip's configurations: read from a folder, checked, and built.

A folder may be untrusted: only known keys of its configuration are used, whatever it refers to is fetched as data
(`repository.py`), and none of its code is ever run.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import open_clip
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import nn

from advflyp.config import convert
from advflyp.documents import read_json
from advflyp.model.architectures import check_size, new_net
from advflyp.model.tokenizers import has_tokenizer, shortened
from advflyp.model.weights_file import check_floating, read_weights_file

CONFIG_FILE = "open_clip_config.json"
# In the order in which open_clip looks for them in a folder.
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
CLEANING = ("canonicalize", "lower", "whitespace")
# The keys of `tokenizer_kwargs` that are passed on; transformers' `trust_remote_code`, for one, is not.
SIMPLE_OPTIONS = ("bpe_path", "clean", "additional_special_tokens", "reduction_mask")
HF_OPTIONS = ("clean", "strip_sep_token", "language", "padding_side", "truncation_side", "add_prefix_space")
IGNORED_OPTIONS = ("trust_remote_code", "use_fast")
# Types of the values that open_clip's own classes do not check.
PREPROCESSING: dict[str, Any] = {
    "mean": tuple[float, float, float],
    "std": tuple[float, float, float],
    "interpolation": Literal["bicubic", "bilinear", "random"],
    "resize_mode": Literal["shortest", "longest", "squash"],
    "mode": Literal["RGB"],
}
TEXTS: dict[str, Any] = {
    "hf_tokenizer_name": str,
    "hf_model_name": str,
    "tokenizer_mode": str,
    "tokenizer_kwargs": dict[str, Any],
    "context_length": int,
}
SIMPLE_TEXTS: dict[str, Any] = {"bpe_path": str, "additional_special_tokens": list[str]}
LARGEST_SIZE, MOST_LAYERS, LARGEST_IMAGE = 10_000_000, 1_000, 8_192
# A key of "text_cfg" that published models have but open_clip does not know.
FOREIGN_KEY = "vocab_path"
UNREADABLE = "{} does not hold a readable open_clip model"


def build_net(
    model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], weights: Path | None
) -> nn.Module:
    """Build the module that a "model_cfg" of open_clip describes.

    Args:
        model_cfg: open_clip's configuration.
        preprocess_cfg: Preprocessing settings that differ from open_clip's defaults.
        weights: The weights file; None for random weights.

    Raises:
        ValueError: If the configuration or the file is wrong.
    """
    if weights is not None:
        check_size(model_cfg, weights.stat().st_size)
    net: Any = new_net(model_cfg)
    if weights is not None:
        _load_weights(net, weights)
    defaults = asdict(PreprocessCfg()) | {"size": net.visual.image_size}
    given = {key: value for key, value in preprocess_cfg.items() if key != "size"}
    set_model_preprocess_cfg(net, merge_preprocess_dict(defaults, given))
    return net


def _load_weights(net: nn.Module, path: Path) -> None:
    stored = read_weights_file(path)  # memory-mapped by all but the oldest formats
    try:
        # It reads the file again, and converts what other projects have saved.
        open_clip.load_checkpoint(net, str(path), weights_only=True)  # type: ignore[arg-type]
    except Exception as error:  # a file with other contents may raise anything
        raise ValueError(f"the weights in {path} are not those of this model: {shortened(error)}") from None
    check_floating(stored.get("state_dict", stored), net.state_dict(), path)


def read_open_clip_config(folder: Path) -> dict[str, Any]:
    """Read {"model_cfg": …, "preprocess_cfg": …} from a folder, without options that are not passed on.

    Raises:
        ValueError: If it cannot be read, or holds an unsupported option or value.
    """
    path = folder / CONFIG_FILE
    unreadable = UNREADABLE.format(folder)
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{unreadable}: {shortened(error)}") from None
    model_cfg = _table(config, "model_cfg")
    preprocess = _table(config, "preprocess_cfg") or {}
    if not model_cfg or not _table(model_cfg, "vision_cfg") or not _table(model_cfg, "text_cfg"):
        raise ValueError(f"{unreadable}: {CONFIG_FILE} lacks model_cfg, with vision_cfg and text_cfg")
    text = model_cfg["text_cfg"]
    if FOREIGN_KEY in text:
        warnings.warn(
            f"{folder}: text_cfg.{FOREIGN_KEY} is not an open_clip key and is ignored, so texts may be tokenized "
            "differently than in its training; compare the clean accuracy with the published one",
            stacklevel=1,
        )
        del text[FOREIGN_KEY]
    for table, hints in ((preprocess, PREPROCESSING), (text, TEXTS)):
        _convert_known(table, hints, unreadable)
    options = text.get("tokenizer_kwargs") or {}
    known = HF_OPTIONS if text.get("hf_tokenizer_name") else SIMPLE_OPTIONS
    if unknown := sorted(set(options) - {*known, *IGNORED_OPTIONS}):
        raise ValueError(f"{unreadable}: tokenizer_kwargs.{unknown[0]} is not supported")
    if options.get("clean", "lower") not in CLEANING:
        raise ValueError(f"{unreadable}: tokenizer_kwargs.clean must be one of {', '.join(CLEANING)}")
    _convert_known(options, SIMPLE_TEXTS, unreadable)
    if "tokenizer_kwargs" in text:
        text["tokenizer_kwargs"] = {key: value for key, value in options.items() if key in known}
    if not all(value > 0 for value in preprocess.get("std") or ()):
        raise ValueError(f"{unreadable}: std must be above 0")
    for tower in (model_cfg, model_cfg["vision_cfg"], text, model_cfg.get("multimodal_cfg")):
        check_sizes(tower, unreadable)
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _convert_known(table: dict[str, Any], hints: Mapping[str, Any], unreadable: str) -> None:
    """Check the values of these keys; null is open_clip's default for each."""
    for key in table.keys() & hints.keys():
        try:
            if table[key] is not None:
                convert(table[key], hints[key], key)
        except ValueError as error:
            raise ValueError(f"{unreadable}: {error}") from None


def check_sizes(tower: Any, unreadable: str) -> None:
    """Raise a ValueError that begins with `unreadable` for a number too large for any real model."""
    for key, value in tower.items() if isinstance(tower, dict) else ():
        most = (
            MOST_LAYERS if key.endswith("layers") else LARGEST_IMAGE if key == "image_size" else LARGEST_SIZE
        )
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int | float) and not abs(one) <= most:
                raise ValueError(f"{unreadable}: {key} must be at most {most:,}, not {one}")


def _table(config: Any, key: str) -> dict[str, Any] | None:
    found = config.get(key) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else None


def open_clip_weights(names: Collection[str]) -> str:
    """The file that holds the weights; ValueError if none does."""
    others = sorted(name for name in names if name.endswith(WEIGHTS_SUFFIXES))
    found = next((name for name in (*WEIGHTS, *others) if name in names), None)
    if found is None:
        raise ValueError(f"there are no weights beside {CONFIG_FILE}, for example {WEIGHTS[0]}")
    return found


def check_alone(text_cfg: Mapping[str, Any], folder: Path, repository: str) -> None:
    """Refuse a configuration that would fetch files from any repository but `repository`.

    Args:
        text_cfg: The "text_cfg" of open_clip's configuration.
        folder: Folder with the repository's small files.
        repository: OWNER/NAME.

    Raises:
        ValueError: If the tokenizer or the text tower comes from another repository.
    """
    tokenizer = text_cfg.get("hf_tokenizer_name") or ""
    elsewhere = [text_cfg.get("hf_model_name"), None if has_tokenizer(folder) else tokenizer]
    if named := next((name for name in elsewhere if name and name != repository), None):
        raise ValueError(f"its {CONFIG_FILE} names {named}, which is not fetched: the zoo does not list it")
