import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch

from advflyp.data.lineage import was_trained_on
from advflyp.evaluation.suite import evaluate
from advflyp.model import load as module
from advflyp.model.clip import CLIP
from advflyp.model.folder import BUNDLED, card_of, read_card, save_model, weights_sha256
from advflyp.model.interop.export import export_model
from advflyp.model.load import ModelConfig, load_model, start_from
from helpers import assert_equal64, make_tiny
from hubserver import NOWHERE, use_hub


def test_save_and_load(any_tiny: CLIP, tmp_path: Path) -> None:
    save_model(any_tiny, tmp_path / "m", {"note": "x"})
    again = load_model(tmp_path / "m")
    assert weights_sha256(again) == weights_sha256(any_tiny)
    images = torch.rand(2, 3, *any_tiny.image_size)
    assert torch.equal(again.encode_image(images), any_tiny.encode_image(images))
    assert torch.equal(again.encode_text(["a cat"]), any_tiny.encode_text(["a cat"]))
    assert again.image_size == any_tiny.image_size
    card = json.loads((tmp_path / "m/card.json").read_text())
    assert card == {"note": "x", "weights_sha256": weights_sha256(any_tiny)}
    assert not again.training


def test_code_that_no_folder_holds(tiny: CLIP, tmp_path: Path) -> None:
    handle = tiny.net.visual.register_forward_hook(lambda module, args, out: out * 2)
    with pytest.warns(
        UserWarning, match=r"m holds .* no code such as net\.visual\._forward_hooks: what is loaded"
    ):
        save_model(tiny, tmp_path / "m", {})
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(tiny, tmp_path / "m", {})


def test_saving_over_an_older_model_replaces_it(tiny: CLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "m", {"n": 1})
    with torch.no_grad():
        tiny.net.logit_scale.fill_(1.5)
    save_model(tiny, tmp_path / "m", {"n": 2})
    assert load_model(tmp_path / "m").net.logit_scale == 1.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_folder_of_others_is_not_replaced(tiny: CLIP, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name in ("thesis.txt", "card.json"):
        (tmp_path / "m" / name).write_text("{}")
        with pytest.raises(
            ValueError, match=f"m holds {name}, which advflyp did not write, so the folder is not replaced"
        ):
            save_model(tiny, tmp_path / "m", {})
        assert [path.name for path in (tmp_path / "m").iterdir()] == [name]
        (tmp_path / "m" / name).unlink()
    save_model(tiny, tmp_path / "m", {})
    (tmp_path / "m/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"m holds notes\.txt"):
        save_model(tiny, tmp_path / "m", {})
    assert (tmp_path / "m/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    tiny: CLIP, tmp_path: Path, value: float
) -> None:
    save_model(tiny, tmp_path / "m", {})
    with torch.no_grad():
        tiny.net.visual.proj[0, 0] = value
    # float16 ends at 65,504.
    with pytest.raises(ValueError, match=r"1 of its tensors is not finite \(visual\.proj\)"):
        save_model(tiny, tmp_path / "new", {}, half=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    file = tmp_path / "m/open_clip_model.safetensors"
    file.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in tiny.net.state_dict().items()}))
    if value == 1e30:
        assert load_model(tmp_path / "m").net.visual.proj[0, 0] == value
        return
    with pytest.raises(
        ValueError, match=r"m cannot be used: 1 of its tensors is not finite \(visual\.proj\), so"
    ):
        load_model(tmp_path / "m")


def test_open_clip_loads_what_we_save(tiny: CLIP, tmp_path: Path) -> None:
    save_model(tiny, tmp_path / "m", {}, half=True)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'm'}")
    tiny.net.half()
    tiny.double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    embeddings = model.double().encode_image((images - tiny.mean) / tiny.std)
    assert_equal64(torch.nn.functional.normalize(embeddings, dim=-1), tiny.encode_image(images))
    assert tuple(preprocess.transforms[-1].mean) == (0.5, 0.4, 0.3)


def test_every_weight_counts_in_the_hash(tiny: CLIP) -> None:
    before = weights_sha256(tiny)
    with torch.no_grad():
        tiny.net.visual.proj[0, 0] += 1e-3
    assert weights_sha256(tiny) != before


def test_random_weights_of_an_architecture() -> None:
    torch.manual_seed(0)
    one = load_model("mini/random")
    torch.manual_seed(0)
    assert weights_sha256(load_model("mini/random")) == weights_sha256(one)
    assert weights_sha256(load_model("mini/random")) != weights_sha256(one)
    assert one.image_size == (64, 64)
    assert one.encode_text(["a cat"]).shape == (1, 192)
    assert int(one.tokenizer(["a photograph of a cat"]).max()) == 8191


@pytest.mark.parametrize("name", sorted(p.name for p in BUNDLED.iterdir()) if BUNDLED.is_dir() else [])
def test_bundled_models(name: str) -> None:
    model = load_model(name)
    card = json.loads((BUNDLED / name / "card.json").read_text())
    assert card["pairs_seen"] > 0
    assert sum(f.stat().st_size for f in (BUNDLED / name).iterdir()) < 20e6
    assert model.encode_image(torch.rand(2, 3, 64, 64)).shape == (2, 192)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minni", "did you mean 'mini'"),
        ("ViT-B-32", "say which weights of ViT-B-32: .*ViT-B-32/openai"),
        ("ViT-B-32/opena", "no weights 'opena', only .*ViT-B-32/random; did you mean 'openai'"),
        (
            torch.nn.Linear(2, 2),
            r"not torch\.nn\.modules\.linear\.Linear; wrap a model of open_clip with CLIP\.from",
        ),
        (None, "a model is an advflyp.CLIP, a name or a path, not builtins.NoneType"),
        ("no such thing", "there is no model 'no such thing': it is neither mini"),
        ("ViT-B-33/openai", "did you mean 'ViT-B-32'"),
        ("runs/nothing-here", "neither a folder runs/nothing-here"),
        (
            "openai/clip-vit-base-patch32",
            "on the Hugging Face hub is written as hf-hub:openai/clip-vit-base-patch32",
        ),
        ("https://huggingface.co/openai/clip-vit-base-patch32/", "as hf-hub:openai/clip-vit-base-patch32$"),
        (
            "hf:laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
            "as hf-hub:laion/CLIP-ViT-B-32-256x256-DataComp-s34B",
        ),
        ("ViT-H/14", "ViT-H-14 has no weights 'openai', only ViT-H-14/laion2b_s32b_b79k"),
        ("ViT-B/32/opena", "ViT-B-32 has no weights 'opena', only .*; did you mean 'openai'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ViT-L/14@336px", "ViT-L-14-336/openai"),
        ("ViT-B/32", "ViT-B-32/openai"),
        ("ViT-B/16/laion2b_s34b_b88k", "ViT-B-16/laion2b_s34b_b88k"),
        ("ViT-L/14@336px/openai", "ViT-L-14-336/openai"),
        ("hf-hub:some/clip", "hf-hub:some/clip"),
    ],
)
def test_openais_own_names(name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked for, where nothing can be fetched; also as the base of a checkpoint."""
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    torch.save({"visual.proj": torch.ones(1)}, tmp_path / "x.pt")
    message = "" if name.startswith("hf-hub:") else f"{found} could not be fetched: "
    for given in (name, f"{tmp_path / 'x.pt'}@{name}"):
        with pytest.raises(ValueError, match=f"^{message}the hub .* cannot be reached"):
            load_model(given)


def test_open_clips_prefix_of_folders(tiny_folder: Path) -> None:
    assert weights_sha256(load_model(f"local-dir:{tiny_folder}")) == weights_sha256(load_model(tiny_folder))


def test_a_path_is_a_folder(tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is called what a bundled model is called."""
    monkeypatch.chdir(tmp_path)
    save_model(tiny, Path("mini-vit"), {"pairs_seen": 7})
    assert weights_sha256(load_model(Path("mini-vit"))) == weights_sha256(tiny)
    assert read_card(Path("mini-vit"))["pairs_seen"] == 7
    assert card_of(load_model(Path("mini-vit")))["pairs_seen"] == 7
    assert weights_sha256(load_model("mini-vit")) != weights_sha256(tiny)
    with pytest.raises(ValueError):
        load_model(Path("mini"))


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="readable open_clip model"):
        load_model(tmp_path)


def test_a_text_tower_from_another_model(tiny_folder: Path, tmp_path: Path) -> None:
    other = make_tiny("vit", tmp_path / "other", seed=5)
    path = other / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["clean"] = "whitespace"  # and not in lower case
    path.write_text(json.dumps(config))
    mixed = start_from(ModelConfig(name=str(tiny_folder), text=str(other)))
    texts, images = ["A cat", "Two DOGS"], torch.rand(2, 3, 32, 32)
    assert torch.equal(mixed.encode_text(texts), load_model(other).encode_text(texts))
    assert torch.equal(mixed.encode_image(images), load_model(tiny_folder).encode_image(images))
    assert torch.equal(mixed.logit_scale, load_model(other).logit_scale)
    save_model(mixed, tmp_path / "mixed", {})
    assert torch.equal(load_model(tmp_path / "mixed").encode_text(texts), mixed.encode_text(texts))


def test_a_text_tower_that_computes_otherwise(tiny_folder: Path, tmp_path: Path) -> None:
    """The same shapes, and another activation or another token that stands for the text."""
    for key, value in (("quick_gelu", True), ("pool_type", "last")):
        other = make_tiny("vit", tmp_path / key, seed=5)
        path = other / "open_clip_config.json"
        config = json.loads(path.read_text())
        where = config["model_cfg"] if key == "quick_gelu" else config["model_cfg"]["text_cfg"]
        where[key] = value
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"the text towers of .* differ in {key};"):
            start_from(ModelConfig(name=str(tiny_folder), text=str(other)))


def test_a_text_tower_that_does_not_fit(tiny_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"model\.text: the text towers of mini and .* have different shapes"
    ):
        start_from(ModelConfig(name=str(tiny_folder), text="mini"))


def test_a_checkpoint_knows_what_its_model_was_trained_on(tiny: CLIP, tmp_path: Path) -> None:
    """Its own data are not known, those of the model that it was finetuned from are."""
    save_model(tiny, tmp_path / "base", {"trained_on": ["mini/food"], "step": 3})
    torch.save(tiny.net.state_dict(), tmp_path / "x.pt")
    torch.save(tiny.visual.state_dict(), tmp_path / "y.pt")
    for file in ("x.pt", "y.pt"):
        model = load_model(f"{tmp_path / file}@{tmp_path / 'base'}")
        assert card_of(model) == {"trained_on": ["mini/food"]}
        assert was_trained_on(card_of(model), "mini/food")


def test_a_folder_that_a_run_replaces(tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and exports of the weights that were loaded take nothing from the card of later ones."""
    later = deepcopy(tiny)
    later.net.logit_scale.data += 1
    folder = tmp_path / "run" / "best"
    save_model(tiny, folder, {"pflops": 1.0})
    model = load_model(folder.parent)
    save_model(later, folder, {"pflops": 2.0})
    (cell,) = evaluate(model, ["mini/food"], ["clean"], limit=5)
    assert (cell.checkpoint_sha256, cell.pflops) == (weights_sha256(tiny), 1.0)
    export_model(model, "open_clip", tmp_path / "exported")
    assert read_card(tmp_path / "exported") == {"pflops": 1.0, "weights_sha256": weights_sha256(tiny)}

    real = module.load_folder

    def meanwhile(*arguments: Any) -> CLIP:
        found = real(*arguments)
        save_model(tiny, folder, {"pflops": 1.0})
        monkeypatch.setattr(module, "load_folder", real)
        return found

    monkeypatch.setattr(module, "load_folder", meanwhile)
    model = load_model(folder.parent)
    assert (weights_sha256(model), card_of(model)["pflops"]) == (weights_sha256(tiny), 1.0)
