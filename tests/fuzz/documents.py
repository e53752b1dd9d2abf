"""JSON of strangers: configurations and tokenizers of models, manifests, class names, captions, results, metrics."""

import dataclasses
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from advflyp.data.sets.labelled import load_set
from advflyp.model.load import load_model
from fuzz.mutate import altered, as_json, text, value
from fuzz.tars import PICTURE, pictures_of
from fuzz.watch import command
from helpers import TEXT, make_tiny, members, pairs, write_tar
from report.cells import measured

Use = Callable[[], object]
# What a stranger's Python would do if it were run.
EVIL = "import os\nos.system('true')\nopen('evil', 'w')\n"


def make(rng: random.Random, folder: Path) -> Use:
    """A file of JSON where the program looks for one, and the command that reads it."""
    return rng.choice(
        (
            config,
            config,
            config,
            tokenizer,
            transformers,
            results,
            results,
            metrics,
            manifest,
            classes,
            captions,
        )
    )(rng, folder / "in", folder / "out")


@cache
def tiny() -> Path:
    """A tiny model of open_clip's, once in a process."""
    return make_tiny("vit", Path(tempfile.mkdtemp()) / "tiny")


@cache
def with_tokenizer() -> Path:
    """The same with a tokenizer of transformers."""
    folder = Path(tempfile.mkdtemp()) / "tiny"
    shutil.copytree(tiny(), folder)
    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "a", "photo", "of", "cat"))}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def config(rng: random.Random, inside: Path, out: Path) -> Use:
    """The configuration of a model of open_clip's."""
    folder = shutil.copytree(rng.choice((tiny(), with_tokenizer())), inside / "model")
    path = folder / rng.choice(("open_clip_config.json",) * 4 + ("card.json",))
    tree = json.loads(path.read_text())
    for _ in range(rng.choice((0, 1, 1, 2))):
        tree = altered(rng, tree)
    if rng.random() < 0.2 and isinstance(tree, dict) and isinstance(tree.get("model_cfg"), dict):
        evil = {"trust_remote_code": True, "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        tree["model_cfg"].setdefault("text_cfg", TEXT)
        if isinstance(tree["model_cfg"]["text_cfg"], dict):
            tree["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = evil
        (folder / "evil.py").write_text(EVIL)
    path.write_bytes(as_json(rng, tree))
    return lambda: encode(folder)


def tokenizer(rng: random.Random, inside: Path, out: Path) -> Use:
    """A tokenizer of transformers."""
    folder = shutil.copytree(with_tokenizer(), inside / "model")
    path = folder / rng.choice(("tokenizer.json", "tokenizer_config.json"))
    tree = json.loads(path.read_text())
    for _ in range(rng.choice((0, 1, 1, 2))):
        tree = altered(rng, tree)
    if rng.random() < 0.3 and isinstance(tree, dict):
        tree |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "trust_remote_code": True}
        tree["tokenizer_class"] = rng.choice(("Evil", "PreTrainedTokenizerFast", "CLIPTokenizer", value(rng)))
        (folder / "evil.py").write_text(EVIL)
    path.write_bytes(as_json(rng, tree))
    return lambda: encode(folder)


@cache
def of_transformers() -> Path:
    """A tiny CLIP as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = Path(tempfile.mkdtemp()) / "tiny"
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    words = {
        **small,
        "num_hidden_layers": 1,
        "max_position_embeddings": 9,
        "vocab_size": 6,
        "eos_token_id": 2,
    }
    image = {**small, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=words, vision_config=image, projection_dim=4)).save_pretrained(folder)
    size: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(with_tokenizer() / name, folder)
    return folder


def transformers(rng: random.Random, inside: Path, out: Path) -> Use:
    """A model in transformers' format."""
    folder = shutil.copytree(of_transformers(), inside / "model")
    path = folder / rng.choice(("config.json", "config.json", "preprocessor_config.json", "tokenizer.json"))
    tree = json.loads(path.read_text())
    for _ in range(rng.choice((0, 1, 1, 2))):
        tree = altered(rng, tree)
    path.write_bytes(as_json(rng, tree))
    return lambda: encode(folder)


def encode(folder: Path) -> None:
    """Load a model and let it look at something."""
    model = load_model(folder)
    with torch.no_grad():
        model.encode_image(torch.zeros(1, 3, *model.image_size))
        model.encode_text(["a photo of a cat", "猫" * 99])


def results(rng: random.Random, inside: Path, out: Path) -> Use:
    """Results, some of which nobody measured."""
    lines = [dataclasses.asdict(cell) for cell in measured()][:: rng.choice((1, 3))]
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(lines))
        lines[place] = altered(rng, lines[place])
    path = inside / "results.jsonl"
    path.write_bytes(b"\n".join(as_json(rng, line) if rng.random() < 0.1 else dumped(line) for line in lines))
    if rng.random() < 0.8:
        return lambda: command("compare", f"{path}::mini", f"{path}::mini + robust", "--out", out / "c.json")
    return lambda: command("report", path, "--out", out / "report")


def metrics(rng: random.Random, inside: Path, out: Path) -> Use:
    """The files of a run."""
    run = inside / "run"
    run.mkdir()
    train = {
        "kind": "train",
        "step": 10,
        "time": 1.0,
        "of": 20,
        "epoch": 0,
        "seen": 160,
        "lr": 1e-4,
        "loss": 1.5,
    }
    train |= {"loss/clip": 1.0, "loss/feature": 0.5, "pairs_per_second": 16.0, "attack_gain": 1.1, "phi": 0.2}
    lines: list[Any] = [
        train,
        train | {"step": 20, "time": 2.0},
        {"kind": "validate", "step": 20, "time": 3.0, "epoch": 0, "best": True, "clean": 0.5, "robust": 0.3},
        {"kind": "data", "step": 20, "time": 3.0, "epoch": 0, "skipped": {"no image": 3}},
    ]
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(lines))
        lines[place] = altered(rng, lines[place])
    (run / "metrics.jsonl").write_bytes(b"\n".join(map(dumped, lines)) + b"\n")
    (run / "recipe.toml").write_text('[model]\nname = "mini"\n[data]\ntrain = "mini"\n[train]\nepochs = 1\n')
    return lambda: command("watch", run, "--once")


def dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def manifest(rng: random.Random, inside: Path, out: Path) -> Use:
    """What a folder of shards says of itself."""
    write_tar(inside / "0.tar", members(pairs(2)))
    shard = {"name": "0.tar", "pairs": 2, "bytes": 10, "sha256": "0" * 64}
    tree = altered(rng, {"format": 1, "pairs": 2, "shards": [shard], "failures": {}, "source": {"a": 1}})
    (inside / "manifest.json").write_bytes(as_json(rng, tree))
    limit = rng.choice(([], ["--limit", "1"]))
    return lambda: command("data", "check", inside, *limit)


def classes(rng: random.Random, inside: Path, out: Path) -> Use:
    """Names of the classes of a labelled set."""
    folders = (rng.choice(("cat", "0", "class2")), rng.choice(("dog", "1", "class10")))
    for name in folders:
        (inside / "set" / name).mkdir(parents=True)
        (inside / "set" / name / "a.png").write_bytes(PICTURE)
    tree: Any = rng.choice((["cat", "dog"], dict(zip(folders, ("cat", "dog"), strict=True))))
    (inside / "set" / "classnames.json").write_bytes(as_json(rng, altered(rng, tree)))
    if rng.random() < 0.5:
        (inside / "set" / "zeroshot_classification_templates.txt").write_bytes(
            text(rng).encode("utf-8", "surrogatepass")
        )
    return lambda: (load_set(str(inside / "set")).prompt, pictures_of(str(inside / "set")))


def captions(rng: random.Random, inside: Path, out: Path) -> Use:
    """A caption in a file of JSON beside its image."""
    (inside / "a.png").write_bytes(PICTURE)
    (inside / "a.json").write_bytes(as_json(rng, altered(rng, {"caption": ["a cat"], "width": 3})))
    return lambda: command("data", "check", inside)
