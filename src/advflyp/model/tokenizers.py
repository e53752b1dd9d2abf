"""open_clip's tokenizers, built from its configurations and the files of a folder, which may be untrusted."""

import gzip
import re
import textwrap
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

from advflyp.documents import read_json_object
from advflyp.errors import SkippedSample
from advflyp.limits import (
    MAX_DOCUMENT_BYTES,
    MAX_LIST_BYTES,
    MAX_TEXT_GROWTH,
    TOKENIZER_SECONDS,
    TOKENIZER_SECONDS_A_TEXT,
    read_bounded,
)
from advflyp.model.architectures import ARCHITECTURES, NEEDS_TRANSFORMERS
from advflyp.model.repository import HF_CONFIG_FILE, open_repository
from advflyp.wording import counted

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Files in which transformers stores a tokenizer.
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
# Expressions that take linear time: alternatives of characters and character classes; only the last of each may repeat.
_SIGN = r"(?:\\[pP]\{\^?\w+\}|\\[^\w]|\\[sSdDwWnrt]|\[\^?(?:\\.|[^\[\]\\])+\]|[^\\\[\](){}|*+?^$])"
_BRANCH = rf"{_SIGN}{{1,64}}(?:[*+?]|\{{\d{{1,3}},?(?:\d{{1,3}})?\}})?"
_LINEAR = re.compile(rf"{_BRANCH}(?:\|{_BRANCH}){{0,15}}", re.DOTALL)


class BoundedTokenizer(HFTokenizer):
    """open_clip's `HFTokenizer` with a time limit on each call, as its files may hold untrusted regular expressions.

    The tokenizers library releases the GIL while it matches them, so that another thread can stop waiting for it.

    Raises:
        ValueError: A call takes too long, or the expressions fail.
    """

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Any:
        call = super().__call__
        return read_in_time(lambda: call(texts, context_length), 1 if isinstance(texts, str) else len(texts))


def load_tokenizer(text_cfg: Mapping[str, Any], folder: Path, repository: str | None = None) -> Any:
    """Make the tokenizer that a "text_cfg" of open_clip describes.

    Args:
        text_cfg: open_clip's configuration of the text tower.
        folder: Where the tokenizer's files may be.
        repository: The hub repository that the folder is from. A folder from elsewhere is assumed to hold the tokenizer
            that the configuration names, as in open_clip.

    Raises:
        ValueError: If there is none, or it would run code.
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
    """Whether `folder` holds files of a transformers tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def hf_tokenizer(folder: Path, context_length: int, **options: Any) -> HFTokenizer:
    """Load the transformers tokenizer in `folder`.

    Raises:
        ValueError: If there is none, or it would run code.
    """
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ValueError(f"the tokenizer in {folder} {NEEDS_TRANSFORMERS}") from None
    try:
        check_tokenizer(folder)
        made = BoundedTokenizer(str(folder), context_length, trust_remote_code=False, **options)
        made(["a photo"])  # missing parts may show only now
        return made
    except Exception as error:  # transformers may raise anything for a damaged one
        raise ValueError(f"the tokenizer in {folder} cannot be read: {shortened(error)}") from None


def check_tokenizer(folder: Path) -> None:
    """ValueError if loading the transformers tokenizer in `folder` would run code, or take very long or much memory."""
    import transformers

    config = folder / TOKENIZER_CONFIG_FILE
    for path in (folder / name for name in TOKENIZER_FILES):
        if path.exists() and not path.is_file():
            raise ValueError(f"{path.name} is not a regular file")
        if path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_DOCUMENT_BYTES >> 20} MB")
    settings = read_json_object(config) if config.is_file() else {}
    if "auto_map" in settings and not hasattr(transformers, str(settings.get("tokenizer_class"))):
        raise ValueError("it refers to code (auto_map), and code in a model's folder is never run")
    for name in {"tokenizer.json", *_versions(settings)}:
        if (folder / name).is_file():
            _check_normalizer(read_json_object(folder / name).get("normalizer"))


def _versions(settings: Mapping[str, Any]) -> list[str]:
    """Files that some versions of transformers read in place of tokenizer.json."""
    named = settings.get("fast_tokenizer_files")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _check_normalizer(tree: Any) -> None:
    """Refuse a normalizer that may take too long or make texts too long.

    It also rewrites the added tokens while the file is being read, where no time limit applies.

    Raises:
        ValueError: An expression could take more than linear time, or a text could grow too much.
    """
    growth = 1
    for step in _steps(tree):
        pattern = step.get("pattern")
        expression = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
        if expression and not (isinstance(expression, str) and _LINEAR.fullmatch(expression)):
            raise ValueError(
                f"its normalizer uses the pattern '{str(expression)[:60]}'; only patterns of single characters, which "
                "may repeat, are accepted"
            )
        growth *= max(1, *(len(str(step.get(key, ""))) for key in ("content", "prepend")))
    if growth > MAX_TEXT_GROWTH:
        raise ValueError(f"its normalizer makes a text up to {growth} times as long")


def _steps(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for inner in tree.get("normalizers") or []:
            yield from _steps(inner)


def read_in_time(call: Callable[[], Any], count: int) -> Any:
    """What `call`, a tokenizer's call on `count` texts, returns.

    ValueError if it takes too long; its thread is then left running until the process ends.
    """
    seconds = TOKENIZER_SECONDS + count * TOKENIZER_SECONDS_A_TEXT
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:  # a panic of Rust is no Exception
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    begun, worked = time.monotonic(), time.process_time()
    thread.start()
    thread.join(seconds)
    while thread.is_alive():
        # Both clocks must agree: suspending the process inflates elapsed time, many threads inflate CPU time.
        if min(time.monotonic() - begun, time.process_time() - worked) > seconds:
            raise ValueError(
                f"the tokenizer has not read {counted(count, 'text')} within {seconds:.0f} seconds; its regular "
                "expressions take too long"
            )
        thread.join(1)
    if failed and isinstance(failed[0], Exception):
        raise failed[0]
    if failed:
        raise ValueError(f"the tokenizer failed: {failed[0]}") from None
    return found[0]


def _fetch_tokenizer(name: str) -> Path:
    repository = open_repository(name)
    files = repository.files & {*TOKENIZER_FILES}
    if not files:
        raise ValueError(f"{name} holds no tokenizer")
    # transformers infers the class from the model's type if the tokenizer's own configuration does not state it.
    return repository.fetch([*files, *({HF_CONFIG_FILE} & repository.files)])


def _simple_tokenizer(options: dict[str, Any], folder: Path, context_length: int) -> SimpleTokenizer:
    if bpe := options.pop("bpe_path", None):
        places = [place / Path(bpe).name for place in (folder, ARCHITECTURES)]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise ValueError(f"{folder} lacks the vocabulary of its tokenizer, {bpe}")
        options["bpe_path"] = str(found)
    for token in options.get("additional_special_tokens") or ():
        # open_clip makes them part of a regular expression.
        if not _LINEAR.fullmatch(token):
            raise ValueError(
                f"the tokenizer of {folder} has the special token '{token[:40]}', which is not plain text"
            )
    try:
        if bpe:
            with gzip.open(options["bpe_path"]) as file:
                read_bounded(cast(BinaryIO, file), MAX_LIST_BYTES)
        return SimpleTokenizer(context_length=context_length, **options)
    except (SkippedSample, OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise ValueError(f"the tokenizer of {folder} cannot be read: {shortened(error)}") from None


def shortened(error: Exception) -> str:
    """An error on one short line: torch, for one, lists every tensor that does not fit."""
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")
