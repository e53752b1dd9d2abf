"""A tiny CLIP and small real data, made on the fly; the fixtures are in conftest.py."""

import io
import json
import random
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageDraw
from torch import Tensor

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model
from advflyp.model.load import load_model

TEXT = {
    "context_length": 16,
    "vocab_size": 8192,
    "width": 32,
    "heads": 2,
    "layers": 1,
    "tokenizer_kwargs": {"bpe_path": "bpe_8k.txt.gz"},
}
# Of any vocabulary: loading replaces it.
TOKENIZER = SimpleTokenizer()
VISION = {
    "vit": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
}
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle", "bar")


def assert_equal64(
    found: Tensor | Mapping[str, Tensor], expected: Tensor | Mapping[str, Tensor], scale: float | None = None
) -> None:
    """The same float64 values up to the order in which terms are added: to 1e-9 of the largest, or of `scale`.

    A thousand terms in another order differ by some 1000·2⁻⁵³ = 1e-13, on every processor; anything that passed
    through float32 differs by 1e-8. Of tensors by name, all have one scale: a gradient that is zero is rounding.
    """
    found, expected = (dict(x) if isinstance(x, Mapping) else {"value": x} for x in (found, expected))
    assert found.keys() == expected.keys()
    assert {x.dtype for x in (*found.values(), *expected.values())} == {torch.float64}
    if scale is None:
        scale = max(float(x.detach().abs().max()) for x in expected.values())
    for name, x in expected.items():
        torch.testing.assert_close(
            found[name], x, rtol=0, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@contextmanager
def models_in_float64() -> Iterator[None]:
    """Runs that are set up within train in float64: model, pixels, losses and optimiser."""
    from advflyp.training import objects

    start_from = objects.start_from
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "start_from", lambda *model, **how: start_from(*model, **how).double())
        yield


def small_timm(name: str, like: str, **arguments: Any) -> str:
    """Register a small timm ViT of the family of `like`, for "timm_model_name": open_clip passes no sizes on."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, **arguments}

    def build(pretrained: bool = False, **given: Any) -> torch.nn.Module:
        wanted = {key: value for key, value in given.items() if not key.startswith("pretrained")}
        return timm.create_model(like, **{**small, **wanted})

    build.__name__ = name
    if not timm.is_model(name):
        timm.models.register_model(build)
    return name


def siglip_config() -> dict[str, Any]:
    """SigLIP in small: attention pooling, no projection, a text tower of its own, a logit bias."""
    vision = {
        "image_size": 32,
        "timm_model_name": small_timm("small_square_siglip", "vit_base_patch16_siglip_224"),
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    return {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def small_model(config: dict[str, Any], seed: int = 0, name: str = "small") -> CLIP:
    """A random model of an open_clip configuration; its tokenizer comes with saving and loading."""
    torch.manual_seed(seed)
    arguments = json.loads(json.dumps(config))
    kind: Any = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    net = (open_clip.CoCa if "multimodal_cfg" in config else kind)(**arguments)
    size = config["vision_cfg"]["image_size"]
    preprocess = {"size": size, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.3, 0.2)}
    return CLIP(net, TOKENIZER, {"model_cfg": config, "preprocess_cfg": preprocess}, name)


def loaded_vit(folder: Path, width: int = 32, layers: int = 3, size: int = 24) -> CLIP:
    """A random ViT with a tokenizer, which comes with loading."""
    vision = {"image_size": size, "layers": layers, "width": width, "head_width": 8, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, "quick_gelu": True}
    save_model(small_model(config, 1), folder / "clip", {})
    model = load_model(folder / "clip")
    model.name = "robust"
    return model


def make_tiny(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random tiny CLIP as an open_clip folder."""
    config = {"embed_dim": 24, "vision_cfg": VISION[kind], "text_cfg": TEXT}
    save_model(small_model(config, seed, kind), folder, {})
    return folder


def picture(colour: str, shape: str, rng: random.Random, size: int = 48) -> Image.Image:
    image = Image.new("RGB", (size, size), (rng.randint(200, 255),) * 3)
    draw = ImageDraw.Draw(image)
    r, x, y = (
        rng.randint(size // 5, size // 3),
        size // 2 + rng.randint(-4, 4),
        size // 2 + rng.randint(-4, 4),
    )
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], fill=COLOURS[colour])
    elif shape == "bar":
        draw.rectangle([x - r, y - r // 3, x + r, y + r // 3], fill=COLOURS[colour])
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    return image


def pairs(n: int, seed: int = 0) -> list[tuple[bytes, str]]:
    """(PNG bytes, caption), 16 different captions."""
    rng = random.Random(seed)
    result = []
    for index in range(n):
        colour, shape = list(COLOURS)[index % 4], SHAPES[index // 4 % 4]
        stream = io.BytesIO()
        picture(colour, shape, rng).save(stream, "png")
        result.append((stream.getvalue(), f"a {colour} {shape}"))
    return result


def write_folder(folder: Path, n: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, caption) in enumerate(pairs(n, seed)):
        (folder / f"{index:04d}.png").write_bytes(image)
        (folder / f"{index:04d}.txt").write_text(caption)
    return folder


def encoded_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def class_folder(folder: Path, images: list[Image.Image]) -> Path:
    """Pictures NN.png in two class folders, in turn."""
    for index, image in enumerate(images):
        place = folder / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:02d}.png").write_bytes(encoded_png(image))
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def members(some: list[tuple[bytes, str]], first: int = 0) -> list[tuple[str, bytes]]:
    """Pairs as the members of a webdataset tar."""
    result = []
    for index, (image, caption) in enumerate(some, first):
        result += [(f"{index:04d}.png", image), (f"{index:04d}.txt", caption.encode())]
    return result


def write_shards(folder: Path, n: int, per_shard: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    every = pairs(n)
    for shard, start in enumerate(range(0, n, per_shard)):
        write_tar(folder / f"{shard:03d}.tar", members(every[start : start + per_shard], start))
    return folder


def labelled_by(
    model: CLIP, n: int, seed: int = 0, classes: tuple[str, ...] = ("cat", "dog", "house")
) -> LabelledSet:
    """`n` pictures of noise labelled with the model's own answer, so that it is right on every one of them."""
    random = torch.Generator().manual_seed(seed)
    arrays = (torch.rand(n, 32, 32, 3, generator=random) * 255).byte().numpy()
    images = [(Image.fromarray(array), 0) for array in arrays]
    labelled = LabelledSet(images, classes, ["a {}", "the {}"], name="mini/noise", split="test")
    evaluator = Evaluator(model, labelled)
    pixels = torch.cat([images for _, images, _ in labelled.batches(model.preprocess, n)])
    answers = evaluator.logits_fp32(pixels).argmax(1).tolist()
    answered = [(image, answer) for (image, _), answer in zip(images, answers, strict=True)]
    return replace(labelled, dataset=answered)


RECIPE = """
[model]
name = "{model}"
[data]
train = "{data}"
batch_size = 16
workers = 2
[method]
name = "advflyp"
feature_weight = 1.0
logit_weight = 1.0
[attack]
eps = "4/255"
steps = 2
step_size = "4/255"
[optim]
name = "adamw"
lr = 1e-3
warmup_steps = 2
[train]
device = "cpu"
precision = "fp32"
deterministic = true
epochs = 2
[checkpoint]
every = 3
"""


class Unreadable(list):
    """Images of which some cannot be decoded."""

    bad: tuple[int, ...] = ()
    targets: list[int]

    def __getitem__(self, place):
        if place in self.bad:
            raise OSError("truncated")
        return super().__getitem__(place)
