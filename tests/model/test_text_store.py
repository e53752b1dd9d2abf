"""Embeddings of captions on disk."""

import resource
import signal
import tracemalloc
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256
from advflyp.model.load import load_model
from advflyp.model.text_store import TextStore, text_key
from helpers import assert_equal64, make_tiny

TEXTS = ["a red square", "a blue circle", "a red square", "Ü"]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that models encode from now on. A method replaced on one model would make it another model."""
    seen: list[str] = []
    encode = CLIP.encode_text
    monkeypatch.setattr(
        CLIP,
        "encode_text",
        lambda self, texts, *tokens, **how: seen.extend(texts) or encode(self, texts, *tokens, **how),
    )
    return seen


def test_embeddings_are_the_models(tiny: CLIP, tmp_path: Path) -> None:
    store = TextStore(tiny.double(), tmp_path)
    with torch.no_grad():
        expected = tiny.encode_text(TEXTS)
    assert_equal64(store(TEXTS), expected)
    assert torch.equal(store(TEXTS[::-1]), store(TEXTS).flip(0))
    assert not store(TEXTS).requires_grad and len(store) == 3


def test_another_run_encodes_nothing_again(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextStore(tiny, tmp_path)
    kept = first(TEXTS)
    first.file.close()
    again = TextStore(tiny, tmp_path)
    seen = counted(monkeypatch)
    assert torch.equal(again(TEXTS), kept) and not seen
    again(["new", *TEXTS])
    assert seen == ["new"]


def test_a_record_that_was_cut_off_is_made_again(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TextStore(tiny.double(), tmp_path)
    kept = store(TEXTS)
    store.file.close()
    (path,) = tmp_path.glob("*/*.bin")
    path.write_bytes(path.read_bytes()[:-5])
    for _ in range(2):
        store = TextStore(tiny, tmp_path)
        seen = counted(monkeypatch)
        assert_equal64(store(TEXTS), kept)
        store.file.close()
    assert seen == []


def test_two_processes_at_once_do_not_share_a_file(tiny: CLIP, tmp_path: Path) -> None:
    one, other = TextStore(tiny, tmp_path), TextStore(tiny, tmp_path)
    assert one.file.name != other.file.name
    assert torch.equal(one(TEXTS), other(TEXTS)), "the same texts at once, in the same order"
    one.file.close(), other.file.close()
    assert len(TextStore(tiny, tmp_path)) == 3


def test_another_text_tower_has_another_folder(tiny: CLIP, tmp_path: Path) -> None:
    other = load_model(make_tiny("vit", tmp_path / "other", seed=1))
    assert text_key(tiny) != text_key(other)
    with tiny.computing_in("bf16"):
        bf16 = text_key(tiny)
    key = text_key(tiny)
    assert bf16 != key != text_key(deepcopy(tiny).double())
    with torch.no_grad():
        next(tiny.visual.parameters()).add_(1)
        tiny.net.logit_scale.add_(1)
    assert text_key(tiny) == key
    with torch.no_grad():
        tiny.net.token_embedding.weight[5, 3] += 1e-3
    assert text_key(tiny) != key


def test_another_configuration_has_another_folder(tiny: CLIP) -> None:
    """The same weights, with another activation, with another number of heads, or without the causal mask."""
    config = deepcopy(tiny.config["model_cfg"])
    changes: list[dict[str, Any]] = [
        {"quick_gelu": True},
        {"text_cfg": config["text_cfg"] | {"heads": 1}},
        {"text_cfg": config["text_cfg"] | {"no_causal_mask": True}},
    ]
    models = [tiny]
    for change in changes:
        net = open_clip.CLIP(**config | change).eval()
        net.load_state_dict(tiny.net.state_dict())
        models.append(CLIP(net, tiny.tokenizer, tiny.config, "other"))
    assert len({text_key(model) for model in models}) == 4 == len({config_sha256(model) for model in models})
    texts = torch.stack([model.encode_text(TEXTS[:1]) for model in models])
    assert len(texts.detach().unique(dim=0)) == 4


def test_a_folder_that_cannot_be_written(tiny: CLIP, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write to data\.text_cache"):
        TextStore(tiny, tmp_path / "file")


def test_memory_holds_places_and_not_embeddings(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TextStore(tiny, tmp_path, capacity=3000)
    width = store.record["embedding"].shape[0]
    # Longer than a real model's, so that what is kept of them would show.
    wide = 64 * width
    monkeypatch.setattr(store, "record", np.dtype([("digest", "V16"), ("embedding", np.float32, wide)]))
    monkeypatch.setattr(
        tiny,
        "encode_text",
        lambda texts, *_, **how: torch.tensor([[float(t)] for t in texts]).repeat(1, wide),
    )
    tracemalloc.start()
    for first in range(0, 4000, 100):
        texts = [str(number) for number in range(first, first + 100)]
        assert store(texts)[:, -1].tolist() == [float(text) for text in texts]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(store) == 3000 and held < 3000 * 500 < 3000 * 4 * wide / 2
    assert Path(store.file.name).stat().st_size == 3000 * store.record.itemsize
    assert store(["2999", "3999", "7"])[:, 0].tolist() == [2999, 3999, 7]
    store.file.close()


def test_a_full_disk_spoils_no_record(tiny: CLIP, tmp_path: Path) -> None:
    """The real system call fails: no file may grow beyond what is allowed to a process."""
    store = TextStore(tiny.double(), tmp_path)
    kept = store(TEXTS)
    size = Path(store.file.name).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*\.bin'"):
            store(["new"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert Path(store.file.name).stat().st_size == size and len(store) == 3
    new = store(["new"])
    store.file.close()
    again = TextStore(tiny, tmp_path)
    assert_equal64(again(TEXTS), kept)
    assert_equal64(again(["new"]), new)
    assert len(again) == 4


def test_another_tokenizer_has_another_folder(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    before, original = text_key(tiny), tiny.tokenizer
    monkeypatch.setattr(tiny, "tokenizer", lambda texts: original([f"{text}!" for text in texts]))
    assert text_key(tiny) != before
