"""`advflyp export`: save a model in other libraries' formats, verified by loading it with those libraries.

    open_clip    a folder for open_clip.create_model_and_transforms("local-dir:DIR") and get_tokenizer
    hf           a folder for transformers' AutoModel and AutoProcessor; vision/ is the image tower alone
    onnx         the image tower: pixels in [0, 1] → unit-norm embeddings

An export is kept only if its largest difference from the source, over real images and texts, is within `TOLERANCE`.
"""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from advflyp.config import nearest
from advflyp.data.sets.labelled import load_set
from advflyp.errors import RunError
from advflyp.files import draft_folder, publish_folder, recover_folder, write_text
from advflyp.model.build import CONFIG_FILE
from advflyp.model.clip import CLIP
from advflyp.model.folder import CARD_FILE, card_of, check_finite, save_model, weights_sha256
from advflyp.model.interop.hf import processor_of, quiet, to_transformers, tokenizer_of
from advflyp.model.load import load_model

# Largest accepted difference between entries of unit-norm embeddings.
TOLERANCE = 1e-5
# Largest difference of pixels that counts as rounding.
SAME_PIXELS = 2 / 255
DATASET = "mini/animals"
SIZES = (*8 * ((150, 100),), (500, 375), (640, 427))
TEXTS = ("a photo of a cat", "This is a photo of a red bicycle.", "two dogs on the beach at sunset", "food")
ONNX_FILE, PREPROCESSING_FILE = "image_tower.onnx", "preprocessing.json"


@dataclass(frozen=True)
class Exported:
    """What was written, and its largest differences from the source.

    Attributes:
        images, texts: Difference between entries of embeddings; None for a tower that is not exported.
        pixels: Difference between our preprocessing and the exported one, in 1/255; None if it was not compared.
        cosine: Lowest cosine between an image's embeddings after the two.
        shifted: Whether the exported crop of some image is one pixel beside ours, as that of transformers, which rounds
            down half a pixel where torchvision rounds to an even number.
        also: Folders with parts of the model.
    """

    folder: Path
    images: float
    texts: float | None = None
    pixels: float | None = None
    cosine: float | None = None
    shifted: bool = False
    also: list[Path] = field(default_factory=list)


def export_model(model: str | Path | CLIP, format: str, out: str | Path) -> Exported:
    """Export `model` (a name, or an object, which is not modified) to the new folder `out`, and verify the result.

    Args:
        format: "open_clip", "hf", "onnx".

    ValueError for an unknown format, a model that the format has no class for, or a folder that is not empty or cannot
    be written; RunError if the result computes something else. Neither leaves anything behind.
    """
    if format not in FORMATS:
        raise ValueError(
            f"there is no format '{format}': {', '.join(FORMATS)}{nearest(format, list(FORMATS))}"
        )
    for package in NEEDED.get(format, ()):
        _need(package, format)
    out = Path(out)
    recover_folder(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} already exists; name a new folder")
    # A copy of the caller's model: the exported one computes on the CPU, in float32, a whole batch at a time.
    model = (deepcopy(model) if isinstance(model, CLIP) else load_model(model)).cpu().eval()
    model.precision, model.micro_batch = "fp32", None
    check_finite(model, f"{model.name} is not exported")
    try:
        with draft_folder(out) as draft:
            with torch.no_grad():
                found = FORMATS[format](model, draft, _example_images(model.image_size))
            for what, value in (("images", found.images), ("texts", found.texts)):
                if value is not None and not value <= TOLERANCE:
                    raise RunError(
                        f"the exported model is not the same: embeddings of {what} differ by {value:.1e}, more than "
                        f"{TOLERANCE:.0e}; nothing was written"
                    )
            publish_folder(draft, out)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise ValueError(f"cannot write {out}: {error}") from None
    return replace(found, folder=out, also=[out / path.name for path in found.also])


def _open_clip(model: CLIP, folder: Path, images: Sequence[Image.Image]) -> Exported:
    save_model(model, folder, _card(model))
    if has_vocabulary_file(model):
        # open_clip finds a tokenizer beside the weights, whatever its name.
        config = store_tokenizer(model, folder, ".")
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    net: Any
    read: Any
    net, _, read = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    net.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    pixels = _ours(model, images)
    return Exported(
        folder,
        images=_difference(
            model.encode_image(pixels), net.encode_image(model.normalised(pixels), normalize=True)
        ),
        texts=_difference(model.encode_text(TEXTS), net.encode_text(tokenizer(list(TEXTS)), normalize=True)),
        **_compared(model, pixels, torch.stack([read(image) for image in images])),
    )


@quiet()
def _hf(model: CLIP, folder: Path, images: Sequence[Image.Image]) -> Exported:
    from transformers import AutoModel, AutoProcessor, CLIPVisionModelWithProjection, SiglipVisionModel

    net = to_transformers(model)
    processor: Any = processor_of(model, net)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    if net.config.model_type == "siglip":
        # SigLIP's text tower attends to padding, too, so there is no attention mask.
        path = folder / "tokenizer_config.json"
        settings = {**json.loads(path.read_text(encoding="utf-8")), "model_input_names": ["input_ids"]}
        write_text(path, json.dumps(settings, indent=2))
    # Where versions of transformers before 5 look for it.
    processor.image_processor.save_pretrained(folder)
    kind: Any = SiglipVisionModel if net.config.model_type == "siglip" else CLIPVisionModelWithProjection
    alone = folder / "vision"
    kind.from_pretrained(folder).save_pretrained(alone)
    processor.image_processor.save_pretrained(alone)
    write_text(folder / CARD_FILE, json.dumps(_card(model), indent=2) + "\n")

    loaded: Any = AutoModel.from_pretrained(folder).eval()
    reader: Any = AutoProcessor.from_pretrained(folder)
    pixels = _ours(model, images)
    inputs = model.normalised(pixels)
    embeddings = model.encode_image(pixels)
    tower = kind.from_pretrained(alone).eval()(pixel_values=inputs)
    tokens = reader(text=list(TEXTS), padding="max_length", truncation=True, return_tensors="pt")
    return Exported(
        folder,
        images=max(
            _difference(embeddings, loaded.get_image_features(pixel_values=inputs).pooler_output),
            _difference(
                embeddings, tower.image_embeds if hasattr(tower, "image_embeds") else tower.pooler_output
            ),
        ),
        texts=_difference(model.encode_text(TEXTS), loaded.get_text_features(**tokens).pooler_output),
        **_compared(model, pixels, reader(images=list(images), return_tensors="pt")["pixel_values"]),
        also=[alone],
    )


def _onnx(model: CLIP, folder: Path, images: Sequence[Image.Image]) -> Exported:
    path = folder / ONNX_FILE
    _write_onnx(model, path)
    settings = {
        **model.config["preprocess_cfg"],
        "size": list(model.image_size),
        "input": "pixels (N, 3, H, W), float32 in [0, 1], not normalised",
    }
    write_text(folder / PREPROCESSING_FILE, json.dumps(settings, indent=2) + "\n")
    write_text(folder / CARD_FILE, json.dumps(_card(model), indent=2) + "\n")
    pixels = _ours(model, images)
    expected = model.encode_image(pixels)
    # Several batch sizes, to catch one that the export fixed by mistake.
    parts = (pixels[:1], pixels[1:4], pixels[4:])
    return Exported(
        folder, images=_difference(expected, torch.cat([_run_onnx(path, part) for part in parts]))
    )


class _ImageTower(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


def _write_onnx(model: CLIP, path: Path) -> None:
    """(N, 3, H, W) float32 "pixels" in [0, 1] → (N, d) float32 unit-norm "embedding", for any N."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _ImageTower(model).eval(),
                (torch.rand(2, 3, *model.image_size),),
                path,
                dynamo=True,
                opset_version=18,
                input_names=["pixels"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                verbose=False,
                external_data=False,
            )
    finally:
        logger.setLevel(level)


def _run_onnx(path: Path, pixels: Tensor) -> Tensor:
    """(N, d) embeddings, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    return torch.from_numpy(found)


# Format → the packages that its export needs.
NEEDED = {"hf": ("transformers",), "onnx": ("onnxruntime", "onnxscript")}
FORMATS: dict[str, Callable[[CLIP, Path, Sequence[Image.Image]], Exported]] = {
    "open_clip": _open_clip,
    "hf": _hf,
    "onnx": _onnx,
}


def _example_images(size: tuple[int, int]) -> list[Image.Image]:
    # Neither square nor of the model's size, so that there is something to resize and to crop; of the last two, three
    # columns or rows, half of which libraries round differently.
    height, width = size
    odd = ((2 * (width + 3), 2 * height), (2 * width, 2 * (height + 3)))
    labelled = load_set(DATASET)
    return [labelled.image(index).resize(one) for index, one in enumerate((*SIZES, *odd))]


def _ours(model: CLIP, images: Sequence[Image.Image]) -> Tensor:
    """(N, 3, H, W) in [0, 1]."""
    return torch.stack([model.preprocess(image) for image in images])


def _compared(model: CLIP, ours: Tensor, normalised: Tensor) -> dict[str, Any]:
    """How much two preprocessings of the same images differ; the other one also normalises."""
    theirs = normalised * model.std + model.mean
    cosines = F.cosine_similarity(model.encode_image(ours), model.encode_image(theirs))
    return {
        "pixels": _difference(ours, theirs) * 255,
        "cosine": float(cosines.min()),
        "shifted": any(map(_is_shifted, ours, theirs)),
    }


def _is_shifted(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two crops (3, H, W) of an image are the same, up to rounding, only if one is moved by a row or column."""
    moved = (
        _difference(ours[:, :-1], theirs[:, 1:]),
        _difference(ours[:, :, :-1], theirs[:, :, 1:]),
    )
    return _difference(ours, theirs) > SAME_PIXELS >= min(moved)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of any entry; `theirs` need not be unit-norm if it holds embeddings."""
    if ours.dim() == 2:
        theirs = F.normalize(theirs.float(), dim=-1)
    return float((ours - theirs).abs().max())


def _card(model: CLIP) -> dict[str, Any]:
    known = card_of(model)
    known = known or {"name": Path(model.name).name if Path(model.name).is_absolute() else model.name}
    return {**known, "weights_sha256": weights_sha256(model)}


def has_vocabulary_file(model: CLIP) -> bool:
    """Whether the configuration names a vocabulary file, which open_clip looks for in the working directory."""
    return bool(model.config["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {}).get("bpe_path"))


def store_tokenizer(model: CLIP, folder: Path, name: str) -> dict[str, Any]:
    """Write the tokenizer into `folder` in transformers' format; returns a configuration that refers to it.

    Args:
        name: What the configuration calls it: on the hub, the repository that holds it.
    """
    _need("transformers", "open_clip, for the tokenizer of this model,")
    tokenizer_of(model).save_pretrained(folder)
    config = deepcopy(model.config)
    text = config["model_cfg"]["text_cfg"]
    text["tokenizer_kwargs"].pop("bpe_path", None)
    return {**config, "model_cfg": {**config["model_cfg"], "text_cfg": {**text, "hf_tokenizer_name": name}}}


def _need(package: str, what: str) -> None:
    if find_spec(package) is None:
        raise ValueError(
            f"exporting as {what} needs {package}: pip install transformers onnx onnxruntime onnxscript"
        )
