"""Folders in open_clip's format, a stranger's included: no code of theirs is run; what is wrong is said in one line."""

import builtins
import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from advflyp.cli.main import main
from advflyp.model import tokenizers
from advflyp.model.build import build_net
from advflyp.model.folder import read_card, save_model, weights_sha256
from advflyp.model.load import load_model
from hubserver import Hub, use_hub

CANARY = """
open({mark!r}, "w").write("run")
from transformers import {base}
class Evil({base}):
    model_type = "evil"
"""


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder / "open_clip_config.json", lambda config: change(config["model_cfg"]))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when a stranger's code is run; whoever asks whether it may is told that it may."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return tmp_path / "run"


def plant(folder: Path, mark: Path) -> None:
    """Code that transformers runs where it is trusted: a tokenizer's, and a configuration's."""
    for name, base in (("evil", "PreTrainedTokenizer"), ("evil_config", "PretrainedConfig")):
        (folder / f"{name}.py").write_text(CANARY.format(mark=str(mark), base=base))
    edit(
        folder / "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    )
    edit(folder / "config.json", lambda c: c.update(auto_map={"AutoConfig": "evil_config.Evil"}))


@pytest.mark.parametrize("where", ["folder", "hub"])
@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_a_tokenizer_that_is_a_program(
    where: str, model_type: str, folder: Path, canary: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    plant(folder, canary)
    edit(folder / "config.json", lambda c: c.update(model_type=model_type))
    edit_config(
        folder,
        lambda c: c["text_cfg"].update(
            hf_tokenizer_name=".", tokenizer_kwargs={"trust_remote_code": True, "use_fast": False}
        ),
    )
    hub.add("some/evil", folder)
    use_hub(monkeypatch, hub.url, canary.with_name("cache"))
    with pytest.raises(
        ValueError, match=r"it refers to code \(auto_map\), and code in a model's folder is never run"
    ):
        load_model(folder if where == "folder" else "hf-hub:some/evil")
    assert not canary.exists()
    assert "some/evil/evil.py" not in hub.served


def test_a_tokenizer_of_transformers_that_is_a_program(tmp_path: Path, canary: Path) -> None:
    pytest.importorskip("transformers")
    from advflyp.model.interop.export import export_model

    folder = export_model("mini-vit", "hf", tmp_path / "hf").folder
    plant(folder, canary)
    with pytest.raises(ValueError, match="it refers to code"):
        load_model(folder)
    assert not canary.exists()


def test_a_text_tower_that_is_a_program(
    folder: Path, canary: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    plant(folder, canary)
    edit(folder / "config.json", lambda c: c.update(model_type="evil"))
    hub.add("some/evil", folder)
    use_hub(monkeypatch, hub.url, canary.with_name("cache"))
    edit_config(folder, lambda c: c["text_cfg"].update(hf_model_name="some/evil"))
    with pytest.raises(
        ValueError,
        match="some/evil has a type that transformers does not know, and code that comes with a model is never run",
    ):
        load_model(folder)
    assert not canary.exists()
    assert not [name for name in hub.served if name.endswith((".py", ".safetensors"))]


def test_trust_is_not_passed_on(tmp_path: Path) -> None:
    """A folder with a usable tokenizer loads, whatever it asks for, and what is saved asks for nothing."""
    pytest.importorskip("transformers")
    from advflyp.model.interop.export import export_model

    folder = export_model("mini-vit", "open_clip", tmp_path / "a").folder
    edit_config(folder, lambda c: c["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": True}))
    model = load_model(folder)
    save_model(model, tmp_path / "b", {})
    assert "trust_remote_code" not in (tmp_path / "b/open_clip_config.json").read_text()
    found, expected = (
        load_model(name).encode_text(["a photo of a cat"]) for name in (tmp_path / "b", "mini-vit")
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_text_tower_of_transformers(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """Its configuration is fetched, its weights are the folder's."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    towers = tmp_path / "towers"
    transformers.RobertaConfig(vocab_size=8192, **sizes).save_pretrained(towers)
    hub.add("some/roberta", towers)
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    edit_config(folder, lambda c: c["text_cfg"].update(hf_model_name="some/roberta"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    net = build_net(config["model_cfg"], config["preprocess_cfg"], None)
    assert type(net).__name__ == "CustomTextCLIP"
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "open_clip_pytorch_model.bin")
    model = load_model(folder)
    assert model.encode_text(["a cat"]).shape == (1, 24)
    for name, value in net.state_dict().items():
        assert torch.equal(model.net.state_dict()[name], value), name
    assert hub.served == ["some/roberta/config.json"]


def test_a_text_tower_that_asks_for_a_kernel(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """transformers would fetch it from the hub and run it."""
    transformers = pytest.importorskip("transformers")
    transformers.RobertaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "towers")
    edit(tmp_path / "towers" / "config.json", lambda c: c.update(attn_implementation="evil/kernel"))
    hub.add("some/roberta", tmp_path / "towers")
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    edit_config(folder, lambda c: c["text_cfg"].update(hf_model_name="some/roberta"))
    with pytest.raises(ValueError, match="the text tower some/roberta asks for the attention .* evil/kernel"):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["RN50", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32", "convnext_tiny"]
)
@pytest.mark.slow
def test_the_same_modules_as_open_clip_makes(name: str) -> None:
    config: Any = open_clip.get_model_config(name)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name)
    torch.manual_seed(0)
    ours = build_net(config, {}, None)
    assert type(ours) is type(theirs)
    assert open_clip.get_model_preprocess_cfg(ours) == open_clip.get_model_preprocess_cfg(theirs)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for key, value in ours.state_dict().items():
        assert value.shape == state[key].shape, key
        if key != "text_decoder.text_projection":  # CoCa's: open_clip leaves in it what the memory held
            assert torch.equal(value, state[key]), key


def test_a_huge_tower_of_timm_is_refused_before_memory_is_taken(folder: Path) -> None:
    """A name of timm's is a size, too."""
    edit_config(folder, lambda c: c["vision_cfg"].update(timm_model_name="vit_pe_core_gigantic_patch14_448"))
    with pytest.raises(
        ValueError,
        match=r"describes a model of 1,8\d\d,\d{3},\d{3} parameters, more than its weights file holds",
    ):
        load_model(folder)


def test_weights_that_unpack_to_far_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's own loader does not see them."""
    (folder / "open_clip_model.safetensors").unlink()
    with zipfile.ZipFile(folder / "open_clip_pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", bytes(90 << 20))
    monkeypatch.setattr(open_clip, "load_checkpoint", None)
    with pytest.raises(ValueError, match="times as large when it is unpacked"):
        load_model(folder)


@pytest.mark.parametrize("key", ["std", "mean"])
def test_null_is_open_clips_default(key: str, folder: Path) -> None:
    edit(
        folder / "open_clip_config.json",
        lambda config: config.setdefault("preprocess_cfg", {}).update({key: None}),
    )
    assert getattr(load_model(folder), key).numel() == 3


def test_weights_by_any_name(folder: Path) -> None:
    before = weights_sha256(load_model(folder))
    (folder / "open_clip_model.safetensors").rename(folder / "robust.safetensors")
    assert weights_sha256(load_model(folder)) == before


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (
        lambda folder: (folder / "open_clip_model.safetensors").unlink(),
        "there are no weights beside open_clip_config.json",
    ),
    "a pointer": (
        lambda folder: (folder / "open_clip_model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "is a pointer of Git LFS and not the file itself",
    ),
    "cut off": (
        lambda folder: (folder / "open_clip_model.safetensors").write_bytes(
            (folder / "open_clip_model.safetensors").read_bytes()[:5000]
        ),
        "is damaged or truncated",
    ),
    "another width": (
        lambda folder: edit_config(folder, lambda c: c.update(embed_dim=23)),
        "are not those of this model: Error(s) in loading state_dict for CLIP: size mismatch for text_projection",
    ),
    "wider than its file": (
        lambda folder: edit_config(folder, lambda c: c["vision_cfg"].update(width=1 << 16)),
        "does not hold a readable open_clip model: its configuration describes a model of 103,",
    ),
    "a side of a million pixels": (
        lambda folder: edit_config(folder, lambda c: c["vision_cfg"].update(image_size=[32, 1 << 20])),
        "image_size must be at most 8,192, not 1048576",
    ),
    "an image of three sides": (
        lambda folder: edit_config(folder, lambda c: c["vision_cfg"].update(image_size=[8, 8, 8])),
        "does not hold a readable open_clip model: too many values to unpack",
    ),
    "an unknown key": (
        lambda folder: edit_config(folder, lambda c: c["vision_cfg"].update(depth=3)),
        "does not hold a readable open_clip model: CLIPVisionCfg.__init__() got an unexpected keyword argument 'depth'",
    ),
    "no towers": (
        lambda folder: edit_config(folder, lambda c: c.pop("text_cfg")),
        "does not hold a readable open_clip model: open_clip_config.json lacks model_cfg, with vision_cfg and text_cfg",
    ),
    "a list": (
        lambda folder: (folder / "open_clip_config.json").write_text("[]"),
        "open_clip_config.json lacks model_cfg",
    ),
    "a tower elsewhere": (
        lambda folder: edit_config(
            folder, lambda c: c["vision_cfg"].update(timm_model_name="hf-hub:some/evil")
        ),
        "timm has no model 'hf-hub:some/evil'",
    ),
    "an unknown option": (
        lambda folder: edit_config(folder, lambda c: c["text_cfg"]["tokenizer_kwargs"].update(cache_dir="/")),
        "tokenizer_kwargs.cache_dir is not supported",
    ),
    "an unknown cleaning": (
        lambda folder: edit_config(folder, lambda c: c["text_cfg"]["tokenizer_kwargs"].update(clean="hard")),
        "tokenizer_kwargs.clean must be one of canonicalize, lower, whitespace",
    ),
    "a special token that is an expression": (
        lambda folder: edit_config(
            folder,
            lambda c: c["text_cfg"]["tokenizer_kwargs"].update(additional_special_tokens=["(?:a|a)+#"]),
        ),
        "the special token '(?:a|a)+#', which is not plain text",
    ),
    "no vocabulary": (
        lambda folder: edit_config(
            folder, lambda c: c["text_cfg"]["tokenizer_kwargs"].update(bpe_path="/x.gz")
        ),
        "lacks the vocabulary of its tokenizer, /x.gz",
    ),
    "a vocabulary of nothing but zeros": (
        lambda folder: (
            (folder / "x.gz").write_bytes(100 * gzip.compress(bytes(1 << 20))),
            edit_config(folder, lambda c: c["text_cfg"]["tokenizer_kwargs"].update(bpe_path="x.gz")),
        ),
        "cannot be read: is larger than 64 MB",
    ),
    "a vocabulary that is damaged": (
        lambda folder: (
            (folder / "x.gz").write_bytes(gzip.compress(b"a b\n" * 99)[:12] + b"\xff" * 30),
            edit_config(folder, lambda c: c["text_cfg"]["tokenizer_kwargs"].update(bpe_path="x.gz")),
        ),
        "the tokenizer of ",
    ),
    "no tokenizer": (
        lambda folder: edit_config(
            folder, lambda c: c["text_cfg"].update(hf_tokenizer_name=".", tokenizer_kwargs={})
        ),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_folders(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = WRONG[what]
    spoil(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["eval", str(folder), "--sets", "mini/food", "--limit", "2", "--attacks", "clean"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error


WRONG_VALUES = {
    "vision_cfg": {
        "layers": 10**9,
        "width": 10**8,
        "image_size": 10**6,
        "patch_size": "x",
        "head_width": None,
    },
    "text_cfg": {
        "layers": 5_000,
        "context_length": "x",
        "vocab_size": 10,
        "width": [],
        "hf_tokenizer_name": ["x"],
        "hf_model_name": 1,
        "tokenizer_mode": {},
        "tokenizer_kwargs": {"bpe_path": {}},
    },
    "preprocess_cfg": {
        "mean": [0.5, None, 0.5],
        "std": [0.5, 0.5],
        "interpolation": "none",
        "resize_mode": [],
        "mode": "L",
    },
}


@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table, keys in WRONG_VALUES.items() for key in keys]
)
def test_wrong_values(table: str, key: str, folder: Path) -> None:
    """Each is one sentence, and found before memory is taken for what it describes."""

    def change(config: dict[str, Any]) -> None:
        place = config if table == "preprocess_cfg" else config["model_cfg"]
        place.setdefault(table, {})[key] = WRONG_VALUES[table][key]

    edit(folder / "open_clip_config.json", change)
    with pytest.raises(
        ValueError, match="does not hold a readable open_clip model|cannot be read|are not those"
    ):
        load_model(folder)


@pytest.mark.parametrize("std", [[0.5, 0.5, 0.0], [1, 1, -1]])
def test_a_deviation_that_divides_by_nothing(std: list[float], folder: Path) -> None:
    edit(
        folder / "open_clip_config.json",
        lambda config: config.setdefault("preprocess_cfg", {}).update(std=std),
    )
    with pytest.raises(ValueError, match="std must be above 0"):
        load_model(folder)


@pytest.mark.parametrize(
    "card", ['{"trained_on": "mini"}', '{"recipe": []}', '{"recipe": {"a": 1}}', "[]", "[" * 9999]
)
def test_cards_of_anybody(card: str, folder: Path) -> None:
    (folder / "card.json").write_text(card)
    with pytest.raises(ValueError, match=r"trained_on must be|recipe.* must be|card\.json is damaged"):
        read_card(folder)


def test_a_tokenizer_that_cannot_pad(tmp_path: Path, folder: Path) -> None:
    """What a tokenizer lacks shows when the model is loaded, not after an hour."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"[UNK]": 0, "cat": 9_000_000}, unk_token="[UNK]")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    edit(folder / "tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit_config(folder, lambda c: c["text_cfg"].update(hf_tokenizer_name=".", tokenizer_kwargs={}))
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be read: Asking to pad"):
        load_model(folder)
    edit(folder / "tokenizer_config.json", lambda c: c.update(pad_token="[UNK]"))
    model = load_model(folder)
    with pytest.raises(ValueError, match="it produced token 9000000, and their vocabulary has 8192"):
        model.encode_text(["cat"])


def test_a_vocabulary_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of gzip are gigabytes."""
    monkeypatch.setattr(tokenizers, "MAX_LIST_BYTES", 1 << 20)
    (folder / "bpe.txt.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    edit_config(folder, lambda c: c["text_cfg"].update(tokenizer_kwargs={"bpe_path": "bpe.txt.gz"}))
    with pytest.raises(ValueError, match=r"the tokenizer of .* cannot be read: is larger than 1 MB"):
        load_model(folder)


def test_a_tokenizer_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "MAX_DOCUMENT_BYTES", 1000)
    (folder / "tokenizer.json").write_text(" " * 1001)
    edit_config(folder, lambda c: c["text_cfg"].update(hf_tokenizer_name="x", tokenizer_kwargs={}))
    with pytest.raises(ValueError, match=r"cannot be read: tokenizer\.json is larger than"):
        load_model(folder)
