"""Models on the hub, with its real client and a server on this machine in its place."""

import json
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from advflyp.cli.main import main
from advflyp.evaluation.suite import evaluate
from advflyp.model import repository
from advflyp.model.clip import CLIP
from advflyp.model.folder import CARD_FILE, card_of, read_card, weights_sha256
from advflyp.model.interop.export import export_model
from advflyp.model.load import load_model
from hubserver import NOWHERE, TOKEN, Hub, use_hub

pytest.importorskip("transformers")
TEXTS = ["a photo of a cat", "Two dogs,  one bone!", "naïve café"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """mini-vit, whose vocabulary is its own, in a format; made once."""
    folder = tmp_path_factory.mktemp("exported")

    def export(kind: str) -> Path:
        if not (folder / kind).is_dir():
            export_model("mini-vit", kind, folder / kind)
        return folder / kind

    return export


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the client, which asks `hub`."""
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    return tmp_path / "cache"


def assert_same(model: CLIP, other: CLIP) -> None:
    images = torch.rand(2, 3, *model.image_size)
    torch.testing.assert_close(model.encode_image(images), other.encode_image(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.encode_text(TEXTS), other.encode_text(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_repositories(
    kind: str, hub: Hub, cache: Path, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("some/clip", exported(kind))
    model = load_model("hf-hub:some/clip")
    assert_same(model, load_model("mini-vit"))
    assert model.name == "hf-hub:some/clip"
    assert not [file for file in hub.served if "/vision/" in file], "only what is needed is fetched"
    # Without a network, from the cache; and where it is known that there is none.
    served = len(hub.served)
    for url, offline in ((NOWHERE, False), (hub.url, True)):
        use_hub(monkeypatch, url, cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert weights_sha256(load_model("hf-hub:some/clip")) == weights_sha256(model)
    assert len(hub.served) == served


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_cards(kind: str, hub: Hub, cache: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    """What a model of the hub was trained on is known here too."""
    folder = shutil.copytree(exported(kind), tmp_path / "trained")
    card = {**read_card(folder), "trained_on": ["mini/food"]}
    (folder / CARD_FILE).write_text(json.dumps(card))
    hub.add("some/clip", folder)
    assert card_of(load_model("hf-hub:some/clip")) == card
    (cell,) = evaluate("hf-hub:some/clip", ["mini/food"], ["clean"], limit=2, device="cpu")
    assert cell.seen
    (folder / CARD_FILE).write_text("[]")
    hub.add("other/clip", folder)
    with pytest.raises(ValueError, match="hf-hub:other/clip: .*card.json"):
        load_model("hf-hub:other/clip")


@pytest.mark.parametrize("kind", ["open_clip", "hf"])
def test_weights_of_torch(
    kind: str, hub: Hub, cache: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """Many older repositories hold nothing else."""
    folder = shutil.copytree(exported(kind), tmp_path / "old")
    (weights,) = folder.glob("*.safetensors")
    name = "pytorch_model.bin" if kind == "hf" else "open_clip_pytorch_model.bin"
    torch.save(safetensors.torch.load_file(weights), folder / name)
    weights.unlink()
    hub.add("some/clip", folder)
    assert_same(load_model("hf-hub:some/clip"), load_model("mini-vit"))


def test_one_file_of_weights_is_fetched(
    hub: Hub, cache: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """A repository may hold the model in both formats, and programs."""
    folder = shutil.copytree(exported("hf"), tmp_path / "both")
    shutil.copytree(exported("open_clip"), folder, dirs_exist_ok=True)
    for name in ("pytorch_model.bin", "open_clip_pytorch_model.bin", "tf_model.h5", "modeling.py"):
        (folder / name).write_bytes(b"not to be read")
    hub.add("some/clip", folder)
    assert_same(load_model("hf-hub:some/clip"), load_model("mini-vit"))
    large = [name for name in hub.served if not name.endswith((".json", ".txt"))]
    assert large == ["some/clip/open_clip_model.safetensors"]


def test_weights_in_parts(hub: Hub, cache: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = shutil.copytree(exported("hf"), tmp_path / "parts")
    model = CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8MB")
    (folder / "model-backup.safetensors").write_bytes(b"not to be read")
    assert len(list(folder.glob("model-0*"))) > 1
    hub.add("some/clip", folder)
    assert_same(load_model("hf-hub:some/clip"), load_model("mini-vit"))
    assert "some/clip/model-backup.safetensors" not in hub.served


def test_a_tokenizer_of_another_repository(
    hub: Hub, cache: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    """As of those that name XLM-RoBERTa's or SigLIP's; only data are fetched."""
    folder = shutil.copytree(exported("open_clip"), tmp_path / "model")
    words = tmp_path / "words"
    words.mkdir()
    for path in folder.glob("*token*"):
        path.rename(words / path.name)
    (words / "code.py").write_text("raise SystemExit('run')")
    edit_text_cfg(folder, hf_tokenizer_name="some/words")
    hub.add("some/clip", folder)
    hub.add("some/words", words)
    assert_same(load_model("hf-hub:some/clip"), load_model("mini-vit"))
    assert "some/words/code.py" not in hub.served
    assert_same(load_model(folder), load_model("mini-vit"))


def edit_text_cfg(folder: Path, **entries: object) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"].update(entries)
    path.write_text(json.dumps(config))


def refusal(name: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line, within seconds, and no warning; not the client's progress."""
    capfd.readouterr()
    begun = time.monotonic()
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
        warnings.simplefilter("error")
        main(["eval", name, "--sets", "mini/food", "--attacks", "clean", "--limit", "2"])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and "Fetching" not in line]
    assert time.monotonic() - begun < 45, "without a network its client alone takes more than a minute"
    assert stopped.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_repositories_that_cannot_be_read(
    hub: Hub,
    cache: Path,
    exported: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("some/private", "some/gated"):
        hub.add(name, exported("open_clip"))
    hub.private, hub.gated = {"some/private"}, {"some/gated"}
    hub.repos["some/empty"] = {"README.md": b""}
    hub.repos["some/bert"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 200_000}
    hub.repos["some/bare"] = {
        "config.json": b'{"model_type": "clip", "vision_config": {}, "text_config": {}}'
    }
    missing = "the hub has no repository {}, or it is private: check the name; if it is private, log in with `hf auth"
    for name, message in (
        ("some/clpi", missing.format("some/clpi")),
        ("some/private", missing.format("some/private")),
        ("some/gated", f"some/gated is gated: ask for access at {hub.url}/some/gated, then log in with"),
        ("some/clip!", "'some/clip!' is not a repository name: write hf-hub:OWNER/NAME"),
        (
            "some/empty",
            "hf-hub:some/empty: it holds no model that can be loaded: neither open_clip_config.json",
        ),
        ("some/bert", "holds a model of the type 'bert'; only transformers models of type 'clip'"),
        ("some/bare", "holds no weights: neither model.safetensors nor pytorch_model.bin"),
    ):
        error = refusal(f"hf-hub:{name}", capfd)
        assert message in error, error
    assert "some/bert/model.safetensors" not in hub.served, "what cannot be loaded is not downloaded"

    use_hub(monkeypatch, hub.url, cache, token="hf_wrong")
    assert "no permission to read some/private (the hub answered 401)" in refusal(
        "hf-hub:some/private", capfd
    )
    use_hub(monkeypatch, hub.url, cache, token=TOKEN)
    assert_same(load_model("hf-hub:some/private"), load_model("mini-vit"))
    hub.down = True
    assert "the hub answered 503 for some/gated: try again later" in refusal("hf-hub:some/gated", capfd)


@pytest.mark.parametrize("name", ["hf-hub:some/clip", "ViT-B-32/openai", "ViT-B-16-SigLIP/random"])
def test_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    error = refusal(name, capfd)
    assert f"the hub ({NOWHERE}) cannot be reached and " in error and "is not in its cache" in error
    assert "or name a local folder or checkpoint file instead" in error
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it, or name a local folder" in refusal(name, capfd)


def test_a_hub_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repository, "ANSWER_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_hub(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path / "cache")
        assert "cannot be reached and some/clip is not in its cache" in refusal("hf-hub:some/clip", capfd)


def test_a_cache_that_cannot_be_written(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    exported: Callable[[str], Path],
) -> None:
    hub.add("some/clip", exported("open_clip"))
    (tmp_path / "file").write_text("x")
    use_hub(monkeypatch, hub.url, tmp_path / "file/cache")
    error = refusal("hf-hub:some/clip", capfd)
    assert error == f"advflyp: cannot store some/clip in {tmp_path / 'file/cache'}: Not a directory"


def test_what_is_not_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hub: Hub
) -> None:
    """A proxy's page to log in, say."""
    hub.store["api"] = b"<html>"
    use_hub(monkeypatch, f"{hub.url}/store/api?", tmp_path / "cache")
    assert "is not the hub: check the network and HF_ENDPOINT" in refusal("hf-hub:some/clip", capfd)


def test_a_part_in_the_cache(
    hub: Hub,
    cache: Path,
    exported: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As an interrupted download leaves it."""
    hub.add("some/clip", exported("open_clip"))
    load_model("hf-hub:some/clip")
    (found,) = cache.rglob("snapshots/*/open_clip_model.safetensors")
    found.unlink()
    use_hub(monkeypatch, NOWHERE, cache)
    error = refusal("hf-hub:some/clip", capfd)
    assert (
        "hf-hub:some/clip (the hub did not answer; its cache may lack files): there are no weights" in error
    )
