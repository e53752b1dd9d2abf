"""Tokenizers of strangers: their regular expressions take no hours, and their texts do not grow."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advflyp.limits import MAX_TEXT_GROWTH
from advflyp.model.tokenizers import hf_tokenizer

pytest.importorskip("transformers")

# It takes a time that doubles with every "a", as long as oniguruma does not give up.
EXPONENTIAL = "(a|a)*$"
# Patient enough for a loaded machine; without a bound it would be days.
PATIENCE = 500
Step = dict[str, Any]


def replace(pattern: str, content: str = " ") -> Step:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a tokenizer that has these steps."""

    def made(
        *, normalizers: list[Step] | None = None, split: str | None = None, name: str = "tokenizer.json"
    ) -> Path:
        tree = {
            "version": "1.0", "truncation": None, "padding": None, "post_processor": None, "decoder": None,
            "added_tokens": [{"id": 2, "content": "<end>", "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": True, "special": False}],
            "normalizer": normalizers and {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": split
            and {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
        }  # fmt: skip
        (tmp_path / name).write_text(json.dumps(tree))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[UNK]"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path

    return made


def test_usual_expressions(make: Callable[..., Path]) -> None:
    usual = [r"\s+", " {2,}", r"[!\"\#\(\)\[\\\]\^_`]", "\r\n|\n", r"\p{Lu}", r"[^\S\n]+", "▁+"]
    folder = make(
        normalizers=[*map(replace, usual), {"type": "Prepend", "prepend": "▁"}], split=r"\p{L}+| ?\S+"
    )
    tokens = hf_tokenizer(folder, 4)(["a a", "a"])
    assert tokens.shape == (2, 4)


@pytest.mark.parametrize("pattern", ["(a+)+$", "a*a*b", r"\s+$", "(?=a)", "[[a]b]+", "a++b"])
def test_a_normalizer_that_could_take_hours(make: Callable[..., Path], pattern: str) -> None:
    folder = make(normalizers=[{"type": "Lowercase"}, replace(pattern)])
    with pytest.raises(
        ValueError,
        match="cannot be read: its normalizer uses the pattern '.*'; only patterns of single characters",
    ):
        hf_tokenizer(folder, 4)


def test_a_normalizer_in_a_file_of_another_name(make: Callable[..., Path]) -> None:
    folder = make(normalizers=[replace("a*a*b")], name="tokenizer.4.0.0.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["fast_tokenizer_files"] = ["tokenizer.json", "tokenizer.4.0.0.json"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="its normalizer uses"):
        hf_tokenizer(folder, 4)


def test_a_normalizer_that_lengthens_texts(make: Callable[..., Path]) -> None:
    doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    steps = MAX_TEXT_GROWTH.bit_length() - 1
    assert hf_tokenizer(make(normalizers=[doubled] * steps), 4)(["a"]).shape == (1, 4)
    with pytest.raises(ValueError, match=f"makes a text up to {2 * MAX_TEXT_GROWTH} times as long"):
        hf_tokenizer(make(normalizers=[doubled] * (steps + 1)), 4)


def test_expressions_that_give_up(make: Callable[..., Path]) -> None:
    """Rust panics, which is no Exception in Python."""
    tokenizer = hf_tokenizer(make(split=EXPONENTIAL), 4)
    with pytest.raises(ValueError, match="the tokenizer failed: Onig"):
        tokenizer(["a" * 100 + "!"])


@pytest.mark.long
def test_expressions_that_do_not_end(make: Callable[..., Path]) -> None:
    """In a process of its own, which ends although the search goes on."""
    program = (
        "import sys; from advflyp.model import tokenizers; from pathlib import Path\n"
        "made = tokenizers.hf_tokenizer(Path(sys.argv[1]), 4)\n"
        "tokenizers.TOKENIZER_SECONDS = 0.5\n"
        "try: made([('a' * 18 + '!') * 1_000_000] * 3)\n"
        "except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", program, str(make(split=EXPONENTIAL))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert "has not read 3 texts within" in done.stdout, done.stderr
