"""Exports: loaded by those they are for, in a process without this package; nothing is left where they fail."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from advflyp.cli.main import main
from advflyp.errors import RunError
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model
from advflyp.model.interop import export
from advflyp.model.interop.export import TEXTS, export_model
from advflyp.model.load import load_model
from helpers import assert_equal64, siglip_config, small_model

pytest.importorskip("transformers")

# What a user of the formats writes, but for `double`: in float64 what is the same is equal to nine digits.
LONG = pytest.mark.long

LOADERS = {
    "open_clip": """
import open_clip
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
model.double().eval()
tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
images = model.encode_image((pixels - mean) / std, normalize=True)
texts = model.encode_text(tokens, normalize=True)
""",
    "hf": """
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(folder).double().eval()
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
images = model.get_image_features(pixel_values=(pixels - mean) / std).pooler_output
texts = model.get_text_features(**inputs).pooler_output
images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
""",
    "vision": """
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained(folder + "/vision").double().eval()
read = AutoImageProcessor.from_pretrained(folder + "/vision")
assert torch.equal(torch.tensor(read.image_mean), mean.flatten().float())
# As LLaVA takes it: patches of the last layer but one.
found = model(pixel_values=(pixels - mean) / std, output_hidden_states=True)
images, texts = found.hidden_states[-2], None
""",
}
PROGRAM = """
import sys, torch
data = torch.load({file!r}, weights_only=True)
folder, pixels, mean, std, texts = {folder!r}, data["pixels"], data["mean"], data["std"], data["texts"]
with torch.no_grad():
{body}
assert "advflyp" not in sys.modules
torch.save([images, texts], {file!r})
"""


def loaded_elsewhere(kind: str, folder: Path, model: CLIP, tmp_path: Path) -> tuple[Any, Any, torch.Tensor]:
    """Embeddings of pixels and texts by a program that knows only the folder; `model` is one in float64."""
    pixels = torch.rand(3, 3, *model.image_size, dtype=torch.float64)
    file = str(tmp_path / "data.pt")
    torch.save({"pixels": pixels, "mean": model.mean, "std": model.std, "texts": list(TEXTS)}, file)
    body = "".join(f"    {line}\n" for line in LOADERS[kind].strip().splitlines())
    code = PROGRAM.format(file=file, folder=str(folder), body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    images, texts = torch.load(file, weights_only=True)
    return images, texts, pixels


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SigLIP with a tokenizer of transformers, cleaning as SigLIP's, in open_clip's format."""
    folder = tmp_path_factory.mktemp("models") / "siglip"
    write_tokenizer(folder.with_name("tokenizer"))
    config = siglip_config()
    del config["text_cfg"]["tokenizer_kwargs"]
    config["text_cfg"] |= {
        "hf_tokenizer_name": ".",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "vocab_size": 300,
    }
    model = small_model(config)
    model.tokenizer = HFTokenizer(str(folder.with_name("tokenizer")), context_length=16, clean="canonicalize")
    save_model(model, folder, {"name": "small SigLIP"})
    # Known by name, as the real ones are.
    registry = folder.with_name("configs")
    registry.mkdir()
    (registry / "small-siglip.json").write_text(json.dumps(config))
    open_clip.add_model_config(registry)
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(["a photo of a red cat", *TEXTS, "the quick brown fox jumps"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )
    fast.save_pretrained(folder)


def exported(name: str | Path, kind: str, tmp_path: Path) -> tuple[CLIP, Path]:
    """The model, by now in float64, and the folder of what was exported."""
    model = load_model(name)
    folder = export_model(model, "hf" if kind == "vision" else kind, tmp_path / "out").folder
    return model.double(), folder


# timm knows the small SigLIP in this process only.
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("open_clip", "mini-vit"),
        pytest.param("hf", "mini-vit", marks=LONG),
        pytest.param("hf", "siglip", marks=LONG),
    ],
)
def test_loaded_by_others(name: str, kind: str, tmp_path: Path, siglip_folder: Path) -> None:
    model, folder = exported(siglip_folder if name == "siglip" else name, kind, tmp_path)
    images, texts, pixels = loaded_elsewhere(kind, folder, model, tmp_path)
    assert_equal64(images, model.encode_image(pixels))
    assert_equal64(texts, model.encode_text(TEXTS))


def test_a_crop_one_pixel_beside_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoProcessor

    main(["export", "mini-vit", "--format", "hf", "--out", str(tmp_path / "hf")])
    assert "transformers crops some images one pixel beside torchvision's crop" in capsys.readouterr().out
    model, reader = load_model("mini-vit"), AutoProcessor.from_pretrained(tmp_path / "hf")
    images = export._example_images(model.image_size)
    sizes = [image.size for image in images]
    ours = [model.preprocess(image) for image in images]
    found: list[torch.Tensor] = [
        reader(images=image, return_tensors="pt")["pixel_values"] for image in images
    ]
    theirs = [(pixels * model.std + model.mean)[0] for pixels in found]
    shifted = [size for size, *pair in zip(sizes, ours, theirs, strict=True) if export._is_shifted(*pair)]
    assert shifted == [(640, 427), (134, 128), (128, 134)]
    differences = [float((one - other).abs().max()) * 255 for one, other in zip(ours, theirs, strict=True)]
    assert all((value > 50) is (size in shifted) for size, value in zip(sizes, differences, strict=True))
    again = export_model("mini-vit", "hf", tmp_path / "again")
    assert again.shifted and again.pixels == pytest.approx(max(differences), abs=0.1)
    assert again.cosine is not None and 0.9 < again.cosine < 0.999
    same = export_model("mini-vit", "open_clip", tmp_path / "open_clip")
    assert not same.shifted and same.pixels == pytest.approx(0, abs=0.01) and same.cosine == pytest.approx(1)


@pytest.mark.long
def test_the_image_tower_alone(tmp_path: Path) -> None:
    model, folder = exported("mini-vit", "vision", tmp_path)
    found, _, pixels = loaded_elsewhere("vision", folder, model, tmp_path)
    layers: list[torch.Tensor] = []
    blocks = model.visual.get_submodule("transformer.resblocks")
    blocks[-2].register_forward_hook(lambda module, inputs, output: layers.append(output))  # type: ignore[index]
    model.encode_image(pixels)
    assert_equal64(found, layers[0])


@pytest.mark.parametrize("name", ["mini-vit", "siglip", "mini"])
def test_there_and_back(name: str, tmp_path: Path, siglip_folder: Path) -> None:
    """Source → open_clip → transformers → ours; a ResNet skips transformers, which has no class for it."""
    source = load_model(siglip_folder if name == "siglip" else name)
    first = export_model(source, "open_clip", tmp_path / "a").folder
    second = first if name == "mini" else export_model(str(first), "hf", tmp_path / "b").folder
    last = load_model(export_model(str(second), "open_clip", tmp_path / "c").folder).double()
    source, pixels = source.double(), torch.rand(2, 3, *source.image_size, dtype=torch.float64)
    assert_equal64(last.encode_image(pixels), source.encode_image(pixels))
    texts = [*TEXTS, "A cat,  a DOG; it's 3 o'clock!", "é ü 猫", " ".join(["word"] * 40)]
    assert_equal64(last.encode_text(texts), source.encode_text(texts))
    assert_equal64(last.logit_scale, source.logit_scale)
    assert (last.logit_bias is None) == (source.logit_bias is None)
    before, after = (model.config["preprocess_cfg"] for model in (source, last))
    assert {**before, "mean": list(before["mean"]), "std": list(before["std"])} == {
        **after, "mean": list(after["mean"]), "std": list(after["std"]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mini-vit", "mini"])
def test_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = load_model(name)
    found = export_model(model, "onnx", tmp_path / "out")
    assert found.images <= 1e-5 and found.texts is None
    session = onnxruntime.InferenceSession(tmp_path / "out/image_tower.onnx")
    for number in (1, 5):
        pixels = torch.rand(number, 3, *model.image_size)
        (embedding,) = session.run(["embedding"], {"pixels": pixels.numpy()})
        # Float32 in either: some 100 operations one after the other, each in error by up to 2⁻²⁴ of a number.
        torch.testing.assert_close(torch.from_numpy(embedding), model.encode_image(pixels), rtol=0, atol=1e-5)
    settings = json.loads((tmp_path / "out/preprocessing.json").read_text())
    assert (
        settings["size"] == [64, 64]
        and settings["interpolation"] == "bicubic"
        and "[0, 1]" in settings["input"]
    )


@pytest.mark.slow
def test_a_real_siglip(tmp_path: Path, siglip_folder: Path) -> None:
    config: Any = deepcopy(open_clip.get_model_config("ViT-B-16-SigLIP"))
    source = small_model(config)
    source.tokenizer = HFTokenizer(str(siglip_folder), context_length=64, clean="canonicalize")
    for kind in ("open_clip", "hf"):
        found = export_model(source, kind, tmp_path / kind)
        assert found.images <= 1e-5 and found.texts is not None and found.texts <= 1e-5
        exact = deepcopy(source).double()
        images, texts, pixels = loaded_elsewhere(kind, found.folder, exact, tmp_path)
        for one, other in ((images, exact.encode_image(pixels)), (texts, exact.encode_text(TEXTS))):
            assert_equal64(one, other)
        back = load_model(found.folder).double()
        assert_equal64(back.encode_image(pixels), exact.encode_image(pixels))
        assert_equal64(back.encode_text(TEXTS), exact.encode_text(TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("ViT-B-32/random", ("open_clip", "hf", "onnx")),
        ("ViT-B-32-quickgelu/random", ("open_clip", "hf")),
        ("RN50/random", ("open_clip", "onnx")),
        ("convnext_base_w/random", ("open_clip", "onnx")),
    ],
)
def test_real_sizes(name: str, formats: tuple[str, ...], tmp_path: Path) -> None:
    source = load_model(name)
    for kind in formats:
        found = export_model(source, kind, tmp_path / kind)
        assert found.images <= 1e-5 and (found.texts or 0) <= 1e-5
        if kind == "onnx":
            continue
        exact, back = deepcopy(source).double(), load_model(found.folder).double()
        images, _, pixels = loaded_elsewhere(kind, found.folder, exact, tmp_path)
        assert_equal64(images, exact.encode_image(pixels))
        assert_equal64(back.encode_image(pixels), exact.encode_image(pixels))
        assert_equal64(back.encode_text(TEXTS), exact.encode_text(TEXTS))


@pytest.mark.parametrize("kind", ["open_clip", "hf", "onnx"])
def test_what_computes_something_else_is_not_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = export._difference
    monkeypatch.setattr(export, "_difference", lambda *a, **k: real(*a, **k) + 2e-5)
    with pytest.raises(RunError, match=r"embeddings of images differ by 2\.\de-05, more than 1e-05"):
        export_model("mini-vit", kind, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["export", "mini-vit", "--format", kind, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1 and capsys.readouterr().err.count("\n") == 1


def test_a_changed_weight_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from advflyp.model.interop import hf

    real = hf.convert

    def wrong(*arguments: Any, **how: Any) -> dict[str, torch.Tensor]:
        state = real(*arguments, **how)
        state["vision_model.encoder.layers.0.mlp.fc1.bias"][0] += 0.01
        return state

    monkeypatch.setattr(hf, "convert", wrong)
    with pytest.raises(RunError, match="embeddings of images differ"):
        export_model("mini-vit", "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_rn_folder: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("all of it")
    (tmp_path / "file").write_text("x")
    for arguments, message in (
        (["mini", "--format", "hff"], "there is no format 'hff': open_clip, hf, onnx; did you mean 'hf'?"),
        (["mini", "--out", str(full)], f"{full} already exists; name a new folder"),
        (["mini", "--out", str(tmp_path / "file")], "file is a file; name a folder with --out"),
        (
            ["mini", "--out", str(tmp_path / "file/out")],
            f"{tmp_path / 'file'} is not a folder; name another folder with --out",
        ),
        (["nothing", "--out", str(tmp_path / "out")], "there is no model 'nothing'"),
        ([str(tiny_rn_folder), "--format", "hf"], "transformers has no class for the image tower of"),
    ):
        if "--out" not in arguments:
            arguments = [*arguments, "--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as stopped:
            main(["export", *arguments])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "kind", ["open_clip", pytest.param("hf", marks=LONG), pytest.param("onnx", marks=LONG)]
)
def test_no_room(kind: str, tmp_path: Path) -> None:
    """Files may not grow beyond 4 MB: writing ends as on a full disk."""
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)); "
        f"from advflyp.cli.main import main; main(['export', 'mini-vit', '--format', '{kind}', '--out', 'out'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("advflyp: ") and done.stderr.count("\n") == 1, done.stderr
    assert "File too large" in done.stderr and "/out" in done.stderr.replace(" out", "/out")
    assert not list(tmp_path.iterdir())


def test_two_exports_to_one_folder(tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one is there, whole; the other says so and leaves nothing."""
    drafts: list[Path] = []

    def write(model: CLIP, folder: Path, images: object) -> export.Exported:
        drafts.append(folder)
        (folder / "model").write_text(str(len(drafts)))
        if len(drafts) == 1:
            export_model(tiny, "open_clip", tmp_path / "out")
        return export.Exported(folder, 0.0)

    monkeypatch.setitem(export.FORMATS, "open_clip", write)
    with pytest.raises(ValueError, match="out already exists; name a new folder"):
        export_model(tiny, "open_clip", tmp_path / "out")
    assert (tmp_path / "out" / "model").read_text() == "2" and len(set(drafts)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
