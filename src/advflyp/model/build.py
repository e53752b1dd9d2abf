"""open_clip's modules and tokenizers, from its configurations and from folders in its format.

A folder may be a stranger's: its configuration is read by the keys that are known, what it names elsewhere is fetched
as data (`repository.py`), and no code of it is ever run.
"""

import gzip
import textwrap
import warnings
import zlib
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import open_clip
import timm
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import nn

from advflyp.config import convert
from advflyp.documents import read_json, read_json_object
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_DOCUMENT_BYTES, MAX_LIST_BYTES, read_bounded
from advflyp.model.interop.weights_file import read_weights_file
from advflyp.model.repository import open_repository

ARCHITECTURES = Path(__file__).parent / "configs"
CONFIG_FILE = "open_clip_config.json"
HF_CONFIG_FILE = "config.json"
# As open_clip looks for them in a folder.
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
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# What a tokenizer of transformers is stored in.
TOKENIZER_FILES = (
    TOKENIZER_CONFIG_FILE,
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
CLEANING = ("canonicalize", "lower", "whitespace")
# The keys of `tokenizer_kwargs` that are passed on; transformers' `trust_remote_code`, for one, is not.
SIMPLE_OPTIONS = ("bpe_path", "clean", "additional_special_tokens", "reduction_mask")
HF_OPTIONS = ("clean", "strip_sep_token", "language", "padding_side", "truncation_side", "add_prefix_space")
IGNORED_OPTIONS = ("trust_remote_code", "use_fast")
# What a configuration may hold, beside what open_clip's classes check themselves.
PREPROCESSING: dict[str, Any] = {
    "mean": tuple[float, float, float],
    "std": tuple[float, float, float],
    "interpolation": Literal["bicubic", "bilinear", "random"] | None,
    "resize_mode": Literal["shortest", "longest", "squash"] | None,
    "mode": Literal["RGB"],
}
TEXTS: dict[str, Any] = {
    "hf_tokenizer_name": str | None,
    "hf_model_name": str | None,
    "tokenizer_mode": str | None,
    "context_length": int,
}
SIMPLE_TEXTS: dict[str, Any] = {"bpe_path": str | None, "additional_special_tokens": list[str] | None}
LARGEST_SIZE, MOST_LAYERS, LARGEST_IMAGE = 10_000_000, 1_000, 8_192
# Buffers that are not stored, such as attention masks.
SPARE_NUMBERS = 100_000_000
# Keys of "text_cfg" that published models have and open_clip has not.
FOREIGN_KEYS = ("vocab_path",)
UNREADABLE = "{} does not hold a readable open_clip model"
NEEDS_TRANSFORMERS = "needs transformers: pip install transformers"


def build_net(
    model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any], weights: Path | None
) -> nn.Module:
    """The module that a "model_cfg" of open_clip describes.

    preprocess_cfg: how its pixels are prepared, as far as it is not open_clip's default
    weights:        a file; None for random ones
    """
    arguments = deepcopy(dict(model_cfg))
    vision, text = arguments["vision_cfg"], arguments["text_cfg"]
    if "timm_model_name" in vision:
        if not timm.is_model(vision["timm_model_name"]):
            raise ValueError(f"timm has no model '{vision['timm_model_name']}'")
        vision["timm_model_pretrained"] = False
    kind: Any = open_clip.CLIP
    if arguments.pop("custom_text", False) or text.get("hf_model_name"):
        kind = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP
    if text.get("hf_model_name"):
        text["hf_model_name"] = str(_text_tower_folder(text["hf_model_name"]))
        text["hf_model_pretrained"] = False
    if weights is not None and "timm_model_name" not in vision:
        # timm's towers have the sizes of its table, and some cannot be made without memory.
        check_size(kind, arguments, weights.stat().st_size)
    net = kind(**arguments)
    if weights is not None:
        _load_weights(net, weights)
    defaults = asdict(PreprocessCfg()) | {"size": net.visual.image_size}
    given = {key: value for key, value in preprocess_cfg.items() if key != "size"}
    set_model_preprocess_cfg(net, merge_preprocess_dict(defaults, given))
    return net


def check_size(kind: Any, arguments: Mapping[str, Any], most: int) -> None:
    """ValueError for a configuration of a model that is larger than its weights.

    A line of a stranger's JSON would otherwise take all memory for layers that nobody has weights for.

    Args:
        kind: The module's class.
        arguments: Of the class.
        most: Numbers that there are weights for, at most.
    """
    with torch.device("meta"):
        net: nn.Module = kind(**deepcopy(dict(arguments)))
    numbers = sum(tensor.numel() for tensor in (*net.parameters(), *net.buffers()))
    if numbers > most + SPARE_NUMBERS:
        raise ValueError(f"its configuration describes a model of {numbers:,} numbers; its weights are fewer")


def _load_weights(net: nn.Module, path: Path) -> None:
    try:
        open_clip.load_checkpoint(net, str(path), weights_only=True)  # type: ignore[arg-type]
    except Exception as error:  # a damaged file may raise anything
        # What is wrong with the file itself says more.
        read_weights_file(path)
        raise ValueError(f"the weights in {path} are not those of this model: {shortened(error)}") from None


def _text_tower_folder(name: str) -> Path:
    """The configuration of a text tower of transformers, fetched: open_clip makes the tower by it."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise ValueError(f"the text tower {name} {NEEDS_TRANSFORMERS}") from None
    folder = open_repository(name).fetch([HF_CONFIG_FILE])
    try:
        # open_clip leaves the question open, and transformers then asks on the terminal whether to run code.
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception:  # transformers may raise anything for a wrong one
        wrong = f"the text tower {name} is of no type that transformers has, and no code of it is run"
        raise ValueError(wrong) from None
    return folder


def load_open_clip_folder(
    folder: Path, repository: str | None = None
) -> tuple[nn.Module, dict[str, Any], Any]:
    """An open_clip module with the weights in `folder`, its configuration as `CLIP` takes it, its tokenizer.

    repository: where the folder is from on the hub, if it is
    ValueError where it is incomplete, damaged, or needs code of its own.
    """
    config = read_open_clip_config(folder)
    model_cfg = config["model_cfg"]
    weights = folder / open_clip_weights({path.name for path in folder.iterdir()})
    try:
        net = build_net(model_cfg, config["preprocess_cfg"], weights)
    except Exception as error:  # a wrong configuration may raise anything
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        raise ValueError(f"{UNREADABLE.format(folder)}: {shortened(error)}") from None
    tokenizer = load_tokenizer(model_cfg["text_cfg"], folder, repository)
    _check_vocabulary(net, tokenizer, folder)
    preprocess = dict(open_clip.get_model_preprocess_cfg(net))
    return net, {"model_cfg": model_cfg, "preprocess_cfg": preprocess}, tokenizer


def _check_vocabulary(net: nn.Module, tokenizer: Any, folder: Path) -> None:
    """ValueError for a tokenizer with tokens that the text tower does not know."""
    embedding = getattr(getattr(net, "text", net), "token_embedding", None)
    tokens = 1 + max(tokenizer.encoder.values()) if isinstance(tokenizer, SimpleTokenizer) else 0
    if isinstance(embedding, nn.Embedding) and tokens > embedding.num_embeddings:
        raise ValueError(
            f"{UNREADABLE.format(folder)}: its tokenizer has {tokens:,} tokens and its text tower "
            f"{embedding.num_embeddings:,}"
        )


def read_open_clip_config(folder: Path) -> dict[str, Any]:
    """{"model_cfg": …, "preprocess_cfg": …} of a folder, without options that are not passed on.

    ValueError where it cannot be read or asks for what is not known.
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
    for key in FOREIGN_KEYS:
        if key in text:
            warnings.warn(
                f"{folder}: text_cfg.{key} is no key of open_clip's and is ignored, so that the texts may be cut into "
                "other tokens than in its training; compare the clean accuracy with the published one",
                stacklevel=1,
            )
            del text[key]
    options = text.get("tokenizer_kwargs") or {}
    known = HF_OPTIONS if text.get("hf_tokenizer_name") else SIMPLE_OPTIONS
    if not isinstance(options, dict):
        raise ValueError(f"{unreadable}: tokenizer_kwargs is no table")
    if unknown := sorted(set(options) - {*known, *IGNORED_OPTIONS}):
        raise ValueError(f"{unreadable}: tokenizer_kwargs.{unknown[0]} is not supported")
    if "tokenizer_kwargs" in text:
        text["tokenizer_kwargs"] = {key: value for key, value in options.items() if key in known}
    if text.get("tokenizer_kwargs", {}).get("clean", "lower") not in CLEANING:
        raise ValueError(f"{unreadable}: tokenizer_kwargs.clean is none of {', '.join(CLEANING)}")
    for table, hints in ((preprocess, PREPROCESSING), (text, TEXTS), (options, SIMPLE_TEXTS)):
        _convert_known(table, hints, unreadable)
    if not all(value > 0 for value in preprocess.get("std", ())):
        raise ValueError(f"{unreadable}: std must be above 0")
    for tower in (model_cfg, model_cfg["vision_cfg"], text, model_cfg.get("multimodal_cfg")):
        check_sizes(tower, unreadable)
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess}


def _convert_known(table: dict[str, Any], hints: Mapping[str, Any], unreadable: str) -> None:
    for key in table.keys() & hints.keys():
        try:
            convert(table[key], hints[key], key)
        except ValueError as error:
            raise ValueError(f"{unreadable}: {error}") from None


def check_sizes(tower: Any, unreadable: str) -> None:
    """ValueError, which begins with `unreadable`, for a number of a configuration that no model has."""
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
    """Which of these files holds the weights. ValueError where none does."""
    others = sorted(name for name in names if name.endswith(WEIGHTS_SUFFIXES))
    found = next((name for name in (*WEIGHTS, *others) if name in names), None)
    if found is None:
        raise ValueError(f"there are no weights beside {CONFIG_FILE}, for example {WEIGHTS[0]}")
    return found


def load_tokenizer(text_cfg: Mapping[str, Any], folder: Path, repository: str | None = None) -> Any:
    """The tokenizer that a "text_cfg" of open_clip describes.

    folder:     where its files may lie
    repository: where the folder is from on the hub, if it is; a folder elsewhere is taken to hold the tokenizer that
                the configuration names, as open_clip does
    ValueError where there is none, or where it is a program.
    """
    length = text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    name: str = text_cfg.get("hf_tokenizer_name") or ""
    if not name:
        return _simple_tokenizer(options, folder, length)
    own = name == "." or name == repository or (repository is None and has_tokenizer(folder))
    source = folder if own else _fetch_tokenizer(name)
    return hf_tokenizer(source, length, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options)


def check_alone(text_cfg: Mapping[str, Any], folder: Path, repository: str) -> None:
    """Refuse a configuration by which more than `repository` would be fetched.

    Args:
        text_cfg: Of open_clip's configuration.
        folder: Its small files.
        repository: OWNER/NAME.

    Raises:
        ValueError: If the tokenizer or the text tower is another repository's.
    """
    tokenizer = text_cfg.get("hf_tokenizer_name") or ""
    elsewhere = [text_cfg.get("hf_model_name"), None if has_tokenizer(folder) else tokenizer]
    if named := next((name for name in elsewhere if name and name != repository), None):
        raise ValueError(f"its {CONFIG_FILE} names {named}, which is not fetched: the zoo does not list it")


def has_tokenizer(folder: Path) -> bool:
    """There are files of a tokenizer of transformers."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def hf_tokenizer(folder: Path, context_length: int, **options: Any) -> HFTokenizer:
    """transformers' tokenizer in `folder`. ValueError where there is none, or where it is a program."""
    try:
        import transformers
    except ImportError:
        raise ValueError(f"the tokenizer in {folder} {NEEDS_TRANSFORMERS}") from None
    config = folder / TOKENIZER_CONFIG_FILE
    try:
        for path in (folder / name for name in TOKENIZER_FILES):
            if path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{path.name} is larger than {MAX_DOCUMENT_BYTES >> 20} MB")
        settings = read_json_object(config) if config.is_file() else {}
        if "auto_map" in settings and not hasattr(transformers, str(settings.get("tokenizer_class"))):
            raise ValueError("it is a program (auto_map), and no code of a model's folder is run")
        made = HFTokenizer(str(folder), context_length, trust_remote_code=False, **options)
        made(["a photo"])  # what it lacks may show only now
        return made
    except Exception as error:  # transformers may raise anything for a damaged one
        raise ValueError(f"the tokenizer in {folder} cannot be read: {shortened(error)}") from None


def _fetch_tokenizer(name: str) -> Path:
    repository = open_repository(name)
    files = repository.files & {*TOKENIZER_FILES}
    if not files:
        raise ValueError(f"{name} holds no tokenizer")
    # By its type transformers knows the class, where the tokenizer's own configuration does not say it.
    return repository.fetch([*files, *({HF_CONFIG_FILE} & repository.files)])


def _simple_tokenizer(options: dict[str, Any], folder: Path, context_length: int) -> SimpleTokenizer:
    if bpe := options.pop("bpe_path", None):
        places = [place / Path(bpe).name for place in (folder, ARCHITECTURES)]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise ValueError(f"{folder} lacks the vocabulary of its tokenizer, {bpe}")
        options["bpe_path"] = str(found)
    try:
        if bpe:
            with gzip.open(options["bpe_path"]) as file:
                read_bounded(cast(BinaryIO, file), MAX_LIST_BYTES)
        return SimpleTokenizer(context_length=context_length, **options)
    except (SkippedSample, OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise ValueError(f"the tokenizer of {folder} cannot be read: {shortened(error)}") from None


def shortened(error: Exception) -> str:
    """An error on one line: of tensors that do not fit, torch lists all."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
