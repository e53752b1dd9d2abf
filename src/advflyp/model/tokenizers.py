"""open_clip's tokenizers, from its configurations and the files of a folder, which may be a stranger's."""

import gzip
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

from advflyp.documents import read_json_object
from advflyp.errors import SkippedSample
from advflyp.limits import MAX_DOCUMENT_BYTES, MAX_LIST_BYTES, read_bounded
from advflyp.model.architectures import ARCHITECTURES, NEEDS_TRANSFORMERS
from advflyp.model.repository import HF_CONFIG_FILE, open_repository

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


def load_tokenizer(text_cfg: Mapping[str, Any], folder: Path, repository: str | None = None) -> Any:
    """Make the tokenizer that a "text_cfg" of open_clip describes.

    Args:
        text_cfg: open_clip's configuration of the text tower.
        folder: Where the tokenizer's files may be.
        repository: The repository on the hub that the folder is from. A folder from elsewhere is taken to hold the
            tokenizer that the configuration names, as open_clip does.

    Raises:
        ValueError: If there is none, or it is a program.
    """
    length = text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    name: str = text_cfg.get("hf_tokenizer_name") or ""
    if not name:
        return _simple_tokenizer(options, folder, length)
    own = name == "." or name == repository or (repository is None and has_tokenizer(folder))
    source = folder if own else _fetch_tokenizer(name)
    return hf_tokenizer(source, length, tokenizer_mode=text_cfg.get("tokenizer_mode"), **options)


def has_tokenizer(folder: Path) -> bool:
    """Whether there are files of a tokenizer of transformers."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def hf_tokenizer(folder: Path, context_length: int, **options: Any) -> HFTokenizer:
    """Load transformers' tokenizer in `folder`.

    Raises:
        ValueError: If there is none, or it is a program.
    """
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
