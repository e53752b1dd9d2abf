"""Every row of the zoo from a server on this machine, in the row's layout, small and random: the model that comes out
is the one that the files were made from."""

import dataclasses
import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from advflyp.cli.main import main
from advflyp.model.clip import CLIP
from advflyp.model.folder import read_card, save_model
from advflyp.model.load import ModelConfig, load_model, start_from
from advflyp.model.repository import Address, read_address
from advflyp.model.zoo import ENTRIES, ZOO, Entry, find_entry
from advflyp.report.pages.zoo import zoo_card
from helpers import assert_equal64, small_model
from hubserver import NOWHERE, Hub, use_hub

pytest.importorskip("transformers")
from transformers import BertTokenizerFast, CLIPConfig, CLIPModel, CLIPTokenizer

TEXTS = ["a photo of a cat", "two dogs, one bone"]
CONTEXT, VOCABULARY = 20, 49408
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "photo",
    "of",
    "cat",
    "two",
    "dogs",
    "one",
    "bone",
    ",",
]


@dataclasses.dataclass(frozen=True)
class Made:
    """What a row's files were made from.

    Attributes:
        files: The folder that the repository holds.
        base: A small model in place of the row's base; None where the row has none.
        encode: Pixels (N, 3, H, W) → unit-norm embeddings of them and of `TEXTS`, float64, by the model itself.
        pixels: How many a side.
    """

    files: Path
    base: str | None
    encode: Callable[[Tensor], Tensor]
    pixels: int = 32


@pytest.fixture(scope="session")
def clip_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's vocabulary as transformers stores it, made from open_clip's copy."""
    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: Any = {names.get(token, token): number for token, number in own.encoder.items()}
    folder = tmp_path_factory.mktemp("clip-words")
    CLIPTokenizer(vocabulary, [pair for pair in own.bpe_ranks if len(pair) == 2]).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    return tmp_path / "cache"


def small_convnext() -> str:
    def build(pretrained: bool = False, **given: Any) -> torch.nn.Module:
        wanted = {key: value for key, value in given.items() if not key.startswith("pretrained")}
        return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), **wanted)

    build.__name__ = "zoo_convnext"
    if not timm.is_model(build.__name__):
        timm.models.register_model(build)
    return build.__name__


def config_of(entry: Entry) -> dict[str, Any]:
    """The row's architecture in small, with the activation of its base."""
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    text: dict[str, Any] = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": 32,
        "heads": 2,
        "layers": 1,
    }
    if "convnext" in entry.architecture:
        vision = {
            "timm_model_name": small_convnext(),
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        }
    if entry.base is None:
        vision |= {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
        text |= {
            "vocab_size": 64,
            "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last",
            "no_causal_mask": True,
        }
    quick = {"quick_gelu": True} if (entry.base or "").endswith("/openai") else {}
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **quick}


def loud(model: CLIP | torch.nn.Module, seed: int) -> None:
    """Weights under which activations and tokens matter."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)


def encoder(net: Any, tokens: Tensor, mean: Any, std: Any) -> Callable[[Tensor], Tensor]:
    """`Made.encode` by open_clip's own module."""
    net = deepcopy(net).double().eval()
    # A model stores them in float32.
    mean, std = (torch.tensor(x).double().view(1, 3, 1, 1) for x in (mean, std))

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            images = net.encode_image((pixels - mean) / std, normalize=True)
            return torch.cat([images, net.encode_text(tokens, normalize=True)])

    return encode


def write_base(entry: Entry, folder: Path) -> CLIP:
    model = small_model(config_of(entry), name=str(folder))
    loud(model, 7)
    save_model(model, folder, {})
    return model


def write_open_clip(entry: Entry, folder: Path, words: Path) -> Made:
    """With the function that open_clip's `push_to_hf_hub` writes its files by."""
    config = config_of(entry)
    model = small_model(config, seed=1)
    loud(model, 1)
    preprocess = model.config["preprocess_cfg"]
    set_model_preprocess_cfg(model.net, {**preprocess, "interpolation": "bicubic", "resize_mode": "shortest"})
    if entry.base is None:
        vocabulary: Any = {word: number for number, word in enumerate(WORDS)}
        BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "words")
        tokenizer = HFTokenizer(str(folder / "words"), CONTEXT, strip_sep_token=True)
        tokens = tokenizer(TEXTS)
        config = deepcopy(config)
        config["text_cfg"]["vocab_path"] = "vocab.txt"
    else:
        tokenizer, tokens = HFTokenizer(str(words), CONTEXT), SimpleTokenizer(context_length=CONTEXT)(TEXTS)
    old = entry.repository.startswith("zw123/") or entry.repository.endswith("-clip")
    state = {key: value.contiguous() for key, value in model.net.state_dict().items()}
    model.net.load_state_dict(state)
    save_for_hf(
        model.net, tokenizer, config, str(folder / "files"), safe_serialization=False if old else "both"
    )
    base = None if entry.base is None else write_base(entry, folder / "base").name
    encode = encoder(model.net, tokens, preprocess["mean"], preprocess["std"])
    return Made(folder / "files", base, encode, model.image_size[0])


def write_transformers(entry: Entry, folder: Path, words: Path, seed: int = 1) -> Made:
    """Weights and config.json alone, as `save_pretrained` of the model writes them."""
    small = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "projection_dim": 24}
    small |= {"hidden_act": "quick_gelu" if (entry.base or "").endswith("/openai") else "gelu"}
    text = {**small, "num_hidden_layers": 1, "max_position_embeddings": CONTEXT, "vocab_size": VOCABULARY}
    vision = {**small, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    loud(model, seed)
    model.save_pretrained(folder / "files", max_shard_size="3MB" if "-g-" in entry.repository else "50GB")
    base = write_base(entry, folder / "base")
    ours = model.double()
    inputs = CLIPTokenizer.from_pretrained(words)(TEXTS, padding=True, return_tensors="pt")

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            normal = (pixels - base.mean.double()) / base.std.double()
            images = ours.get_image_features(pixel_values=normal).pooler_output
            found = torch.cat([images, ours.get_text_features(**inputs).pooler_output])
            return found / found.norm(dim=-1, keepdim=True)

    return Made(folder / "files", base.name, encode)


def write_tower(entry: Entry, folder: Path, words: Path) -> Made:
    base = write_base(entry, folder / "base")
    robust = deepcopy(base)
    loud(robust.visual, 2)
    state = OrderedDict((key, value.clone()) for key, value in robust.visual.state_dict().items())
    content: dict[str, Any] = state
    if entry.method == "QT-AFT":
        optimizer = torch.optim.SGD(robust.visual.parameters(), lr=0.1, momentum=0.9)
        content = {
            "epoch": 2,
            "step": 100,
            "state_dict": OrderedDict(),
            "add_prompter": OrderedDict({"module.prompt": torch.zeros(1, 0, 32)}),
            "vision_encoder_state_dict": state,
            "best_acc1": 31.5,
            "optimizer": optimizer.state_dict(),
        }
    assert entry.file is not None
    (folder / "files").mkdir()
    torch.save(content, folder / "files" / entry.file)
    (folder / "files/README.md").write_text("A card.")
    tokens = SimpleTokenizer(context_length=CONTEXT)(TEXTS)
    settings = base.config["preprocess_cfg"]
    return Made(folder / "files", base.name, encoder(robust.net, tokens, settings["mean"], settings["std"]))


WRITERS = {"open_clip": write_open_clip, "transformers": write_transformers, "tower": write_tower}


def serve(
    hub: Hub, entry: Entry, folder: Path, words: Path, patch: pytest.MonkeyPatch, **changed: Any
) -> Made:
    """Put a row's files on the server, and the small base into the row."""
    folder.mkdir(exist_ok=True)
    made = WRITERS[entry.layout](entry, folder, words)
    hub.add(entry.repository, made.files)
    hub.commits_of[entry.repository] = {entry.revision} if entry.revision else set()
    patch.setitem(ZOO, entry.name, dataclasses.replace(entry, base=made.base, **changed))
    return made


def assert_is(model: CLIP, made: Made) -> None:
    pixels = torch.rand(2, 3, made.pixels, made.pixels, dtype=torch.float64)
    model = deepcopy(model).double()
    with torch.no_grad():
        found = torch.cat([model.encode_image(pixels), model.encode_text(TEXTS)])
    assert_equal64(found, made.encode(pixels))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore:.*vocab_path is not an open_clip key")
def test_every_row(
    name: str, hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, from its repository, at its revision; nothing else is asked for."""
    entry = ZOO[name]
    made = serve(hub, entry, tmp_path / "row", clip_words, monkeypatch)
    model = load_model(name)
    assert model.name == name
    assert_is(model, made)
    assert hub.served and all(served.startswith(f"{entry.repository}/") for served in hub.served)


@pytest.mark.parametrize(
    "name", ["fare4-vit-l-14", "leaf-vit-g-14", "delta-clip-vit-l-14", "qt-aft4-vit-b-16"]
)
@pytest.mark.filterwarnings("ignore:.*vocab_path is not an open_clip key")
def test_kept(
    name: str, hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network from the cache; saved, without the base."""
    made = serve(hub, ZOO[name], tmp_path / "row", clip_words, monkeypatch)
    model = load_model(name)
    use_hub(monkeypatch, NOWHERE, cache)
    assert_is(load_model(name), made)
    save_model(model, tmp_path / "saved", {})
    assert_is(load_model(tmp_path / "saved"), made)


def test_the_table() -> None:
    """Names, and what they stand for, are unique; bases are open_clip's; a commit is named in full."""
    assert len(ZOO) == len(ENTRIES) == len({entry.address for entry in ENTRIES}) == 23
    for entry in ENTRIES:
        assert entry.name == entry.name.lower() and "/" not in entry.name
        assert (entry.file is not None) == (entry.layout == "tower")
        assert entry.revision is None or len(entry.revision) == 40
        assert (entry.licence is None) == (f"{entry.licence}" not in ("mit", "cc-by-4.0"))
        if entry.base is not None:
            architecture, tag = entry.base.split("/")
            assert entry.architecture == architecture
            assert tag in open_clip.list_pretrained_tags_by_model(architecture)
        for published in entry.published:
            values = [published.clean, *published.robust.values()]
            assert values == sorted(values, reverse=True), "more perturbation, less accuracy"


def test_a_robust_text_tower_beside_another_image_tower(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    robust = serve(hub, ZOO["sim-clip4-vit-l-14"], tmp_path / "image", clip_words, monkeypatch)
    text = serve(hub, ZOO["leaf-vit-l-14"], tmp_path / "text", clip_words, monkeypatch)
    model = start_from(ModelConfig(name="sim-clip4-vit-l-14", text="leaf-vit-l-14")).double()
    pixels = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert_equal64(model.encode_image(pixels), robust.encode(pixels)[:2])
        assert_equal64(model.encode_text(TEXTS), text.encode(pixels)[2:])


def refusal(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says: one line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("error")
        main(words)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "Fetching" not in line]
    assert stopped.value.code == 2 and len(lines) == 1, lines
    return lines[0]


EVAL = ["--sets", "mini/food", "--attacks", "clean", "--limit", "2"]


def test_unknown_names(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'fare4-vit-l-14'?" in refusal(["eval", "fare4-vit-l14", *EVAL], capfd)
    assert "the zoo has no model 'sim-clip4'; did you mean 'sim-clip4-vit-l-14'?" in refusal(
        ["models", "sim-clip4"], capfd
    )
    assert "no model 'FARE4-clip'; there are fare4-vit-l-14, fare4-" in refusal(
        ["models", "FARE4-clip"], capfd
    )
    assert "the zoo has no model 'x'; `advflyp models` lists them" in refusal(["models", "x"], capfd)
    with pytest.raises(ValueError, match="did you mean 'fare4-vit-l-14'"):
        find_entry("fare4-vit-l14")


def test_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    for name in ("fare4-vit-l-14", "leaf-vit-l-14", "sim-clip2-vit-l-14"):
        error = refusal(["eval", name, *EVAL], capfd)
        assert (
            f"the hub ({NOWHERE}) cannot be reached and {ZOO[name].repository} is not in its cache" in error
        )


def test_hashes_and_revisions(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, file = ZOO["fare4-vit-l-14"], "open_clip_pytorch_model.bin"
    made = serve(hub, entry, tmp_path / "row", clip_words, monkeypatch)
    right = hashlib.sha256((made.files / file).read_bytes()).hexdigest()
    pinned = ZOO[entry.name]
    monkeypatch.setitem(ZOO, entry.name, dataclasses.replace(pinned, sha256={file: right}))
    assert_is(load_model(entry.name), made)
    monkeypatch.setitem(ZOO, entry.name, dataclasses.replace(pinned, sha256={file: "0" * 64}))
    with pytest.raises(
        ValueError,
        match=rf"{file} of {entry.repository} has the SHA-256 {right[:16]}… instead of the expected 0000",
    ):
        load_model(entry.name)
    monkeypatch.setitem(ZOO, entry.name, dataclasses.replace(pinned, revision="f" * 40))
    with pytest.raises(ValueError, match=f"{entry.repository} no longer has the requested revision; hf-hub:"):
        load_model(entry.name)


def test_repositories_without_weights(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, message in (
        ("fare4-vit-l-14", "there are no weights beside open_clip_config.json"),
        ("fare2-vit-l-14-leaf", "holds no weights: neither model.safetensors nor pytorch_model.bin"),
        ("sim-clip2-vit-l-14", "hossainzarif19/SimCLIP holds no file simclip2.pt, and no file of weights"),
    ):
        entry = ZOO[name]
        serve(hub, entry, tmp_path / name, clip_words, monkeypatch)
        small = {
            file: data
            for file, data in hub.repos[entry.repository].items()
            if file.endswith((".json", ".md"))
        }
        hub.repos[entry.repository] = small
        with pytest.raises(ValueError, match=message):
            load_model(name)
    hub.repos["some/other"] = {"README.md": b"", "a.pt": b"", "b/c.safetensors": b""}
    with pytest.raises(
        ValueError,
        match="holds no model that can be loaded: .*; it holds a.pt, b/c.safetensors: name the file and the model that "
        "it was finetuned from, as in hf-hub:some/other/a.pt@ViT-L-14/openai",
    ):
        load_model("hf-hub:some/other")


def test_addresses() -> None:
    for name, address in (
        ("hf-hub:a/b", Address("a/b")),
        ("hf-hub:a/b@mini", Address("a/b", None, "mini")),
        ("hf-hub:a/b/c/d.pt@ViT-L/14@336px", Address("a/b", "c/d.pt", "ViT-L/14@336px")),
        ("hf-hub:a", Address("a")),
    ):
        assert read_address(name) == address and address.name == name
    with pytest.raises(
        ValueError, match="hf-hub:a/b@: name a model after the @, as in hf-hub:a/b@ViT-B-32/openai"
    ):
        read_address("hf-hub:a/b@")
    for entry in ENTRIES:
        assert read_address(entry.address).repository == entry.repository


def test_a_file_in_a_repository(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """hf-hub:REPO/FILE@MODEL, of any repository, also in a folder of it."""
    made = write_tower(ZOO["sim-clip4-vit-l-14"], tmp_path, clip_words)
    data = (made.files / "simclip4.pt").read_bytes()
    hub.repos["some/towers"] = {"weights/robust.pt": data, "README.md": b""}
    name = f"hf-hub:some/towers/weights/robust.pt@{made.base}"
    model = load_model(name)
    assert model.name == name
    assert_is(model, made)
    assert hub.served == ["some/towers/weights/robust.pt"]
    assert_is(load_model(f"hf-hub:some/towers/weights/robust.pt@{name}"), made)

    del hub.served[:]
    file = "hf-hub:some/towers/weights/robust.pt"
    error = refusal(["eval", f"{file}@ViT-L-14/opneai", *EVAL], capfd)
    assert "ViT-L-14 has no weights 'opneai'" in error and not hub.served
    error = refusal(["eval", f"{file}@", *EVAL], capfd)
    assert f"name a model after the @, as in {file}@ViT-B-32/openai" in error
    error = refusal(["eval", "hf-hub:some/towers/robust.pt@mini", *EVAL], capfd)
    assert "some/towers holds no file robust.pt; did you mean 'weights/robust.pt'?" in error
    error = refusal(["eval", file, *EVAL], capfd)
    assert f"{file} lacks a text tower and its activation (QuickGELU or GELU)" in error
    assert f"name the model that it was finetuned from, as in {file}@" in error
    error = refusal(["eval", f"{file}@mini-vit", *EVAL], capfd)
    assert f"the tensors of {file} are not those of mini-vit: " in error


def test_what_transformers_folders_lack(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.json and weights alone: a base is needed, and it must be the right one."""
    entry = ZOO["leaf-vit-l-14"]
    made = write_transformers(entry, tmp_path, clip_words)
    hub.add("some/bare", made.files)
    lacks = "holds neither preprocessor_config.json nor processor_config.json and no tokenizer: name the model that it "
    for name in ("hf-hub:some/bare", str(made.files)):
        with pytest.raises(ValueError, match=f"{lacks}.*as in {name}@ViT-L-14/openai"):
            load_model(name)
        assert_is(load_model(f"{name}@{made.base}"), made)
    assert not [name for name in hub.served if name.endswith("safetensors")][1:], (
        "fetched once, when it can be loaded"
    )

    config = config_of(entry)
    for number, (changes, message) in enumerate(
        (
            ({"quick_gelu": False}, "QuickGELU False instead of True"),
            ({"vision_cfg": {**config["vision_cfg"], "image_size": 64}}, "pixels a side 64 instead of 32"),
            ({"text_cfg": {**config["text_cfg"], "context_length": 21}}, "tokens of a text 21 instead of 20"),
        )
    ):
        wrong = tmp_path / f"wrong{number}"
        save_model(small_model({**config, **changes}), wrong, {})
        with pytest.raises(ValueError, match=f"{wrong} is not what .* was finetuned from: {message}"):
            load_model(f"hf-hub:some/bare@{wrong}")

    # A tokenizer of its own and no processor, and the other way round.
    half = tmp_path / "half"
    half.mkdir()
    for path in (*made.files.iterdir(), *clip_words.iterdir()):
        (half / path.name).write_bytes(path.read_bytes())
    assert_is(load_model(f"{half}@{made.base}"), made)
    base = load_model(made.base or "")
    size = {"shortest_edge": 32}
    settings = {"size": size, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    settings |= {"image_mean": base.mean.flatten().tolist(), "image_std": base.std.flatten().tolist()}
    (half / "preprocessor_config.json").write_text(json.dumps(settings))
    assert_is(load_model(half), made)
    other = tmp_path / "other"
    save_model(small_model({**config, "quick_gelu": True}, name="other"), other, {})
    assert_is(load_model(f"{half}@{other}"), made)
    with pytest.raises(
        ValueError, match=f"{made.base} is a folder that describes its model completely; leave out @mini"
    ):
        load_model(f"{made.base}@mini")


def test_what_a_configuration_may_not_decide(
    hub: Hub, cache: Path, tmp_path: Path, clip_words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row's repository: the activation against its base; what else is fetched."""
    entry = ZOO["tecoa4-vit-l-14"]
    serve(hub, entry, tmp_path / "row", clip_words, monkeypatch)
    files = hub.repos[entry.repository]
    config = json.loads(files["open_clip_config.json"])
    del config["model_cfg"]["quick_gelu"]
    files["open_clip_config.json"] = json.dumps(config).encode()
    with pytest.raises(
        ValueError, match="says GELU, but .* has QuickGELU; put the weights into that one: hf-hub:"
    ):
        load_model(entry.name)

    del hub.served[:]
    hub.repos["some/words"] = {"tokenizer.json": b"{}", "config.json": b"{}"}
    for key, kept in (("hf_tokenizer_name", ("open_clip_config.json",)), ("hf_model_name", tuple(files))):
        changed = json.loads(files["open_clip_config.json"])
        changed["model_cfg"]["text_cfg"][key] = "some/words"
        hub.repos[entry.repository] = {file: files[file] for file in (*kept, "open_clip_pytorch_model.bin")}
        hub.repos[entry.repository]["open_clip_config.json"] = json.dumps(changed).encode()
        use_hub(monkeypatch, hub.url, tmp_path / key)
        with pytest.raises(
            ValueError, match="names some/words, which is not fetched: the zoo does not list it"
        ):
            load_model(entry.name)
    assert not [name for name in hub.served if name.startswith("some/") or name.endswith(".bin")]


def test_a_recipe_in_a_checkpoint_fetches_nothing(
    tmp_path: Path, clip_words: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that started from a model of the zoo: its checkpoint holds all weights, and the base says the rest."""
    entry = ZOO["fare2-vit-l-14"]
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    made = serve(hub, entry, tmp_path / "row", clip_words, monkeypatch)
    state = torch.load(made.files / "open_clip_pytorch_model.bin")
    for name in (entry.name, "delta-clip-vit-l-14", f"x.pt@{entry.name}"):
        torch.save({"model": state, "recipe": f'[model]\nname = "{name}"'}, tmp_path / "step.pt")
        if name == entry.name:
            assert_is(load_model(tmp_path / "step.pt"), made)
        else:
            with pytest.raises(
                ValueError, match=f"comes from a run that started from {name}; name that model"
            ):
                load_model(tmp_path / "step.pt")


def test_classifiers_are_refused(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        {"patch_embed.proj.weight": torch.ones(2), "head.weight": torch.ones(1000, 2)}, tmp_path / "vit.pth"
    )
    hub.repos["some/vit"] = {"vit.pth": (tmp_path / "vit.pth").read_bytes()}
    with pytest.raises(
        ValueError, match=r"hf-hub:some/vit/vit.pth holds an image classifier with 1000 fixed classes"
    ):
        load_model("hf-hub:some/vit/vit.pth@mini-vit")
    use_hub(monkeypatch, NOWHERE, cache)
    for name in (
        "hf-hub:UCSC-VLAA/AdvXL-ViT-H14",
        "hf-hub:UCSC-VLAA/AdvXL-ViT-g14/advxl_vit_g14.pth@ViT-g-14/openai",
    ):
        assert "holds an image classifier with fixed classes, not a CLIP" in refusal(
            ["eval", name, *EVAL], capfd
        )


def test_the_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["models"])
    table = capsys.readouterr().out
    assert all(len(line) <= 80 for line in table.splitlines())
    for entry in ENTRIES:
        assert any(
            line.split()[0] == entry.name and "…" not in line for line in table.splitlines() if line.strip()
        )
    main(["models", "fare4-vit-l-14"])
    card = capsys.readouterr().out
    assert "clean 61.1 %; robust 45.9 at 2/255, 32.4 at 4/255" in card and "arXiv 2402.12336" in card
    for entry in ENTRIES:
        lines = zoo_card(entry)
        assert all(len(line) <= 80 or " " not in line[12:] for line in lines), "only addresses are longer"
        assert (entry.revision or "nothing: the newest commit") in "\n".join(lines)


def test_what_a_model_was_trained_on() -> None:
    """A result on the same data is not zero-shot."""
    assert read_card("fare4-vit-l-14")["trained_on"] == ["imagenet@train"]
    assert read_card("no-such-model") == {}
