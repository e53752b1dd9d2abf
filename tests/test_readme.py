"""Every command and every program in the README runs, as written but for size and for what has to be downloaded."""

import json
import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import Dataset

from advflyp.cli.main import main
from helpers import pairs, write_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


# Not on every machine: OpenAI's weights (a tiny random model stands in), hours (two steps do).
STAND_INS = {"ViT-B-32/openai": "tiny"}
SMALLER = {
    "advflyp train": [
        "--train.max_steps",
        "2",
        "--optim.warmup_steps",
        "0",
        "--train.device",
        "cpu",
        "--validate.limit",
        "4",
    ],
    "advflyp eval": ["--limit", "4", "--device", "cpu"],
}


@pytest.fixture
def workplace(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with what a reader has: a model, pairs of their own."""
    (tmp_path / "tiny").symlink_to(tiny_folder)
    write_folder(tmp_path / "my-pairs", 48)
    (tmp_path / "photo.png").write_bytes(pairs(1)[0][0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test() -> None:
    assert {"make quickstart", "make test"} <= set(commands())
    assert sum(c.startswith("advflyp train") for c in commands()) >= 1
    assert sum(c.startswith("advflyp eval") for c in commands()) >= 1
    assert len(blocks("python")) >= 1


def test_commands(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands():
        for real, stand_in in STAND_INS.items():
            command = command.replace(real, stand_in)
        words = shlex.split(command)
        if words[0] == "make":
            environment = {**os.environ, "MAKEFLAGS": ""}
            subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True, env=environment
            )
            continue
        if words[0] == "source":
            continue  # what `make` has made
        assert words[0] == "advflyp", f"the README has a command this test cannot run: {command}"
        if words[1] in ("quickstart", "demo"):
            continue  # tests/use/test_quickstart.py, tests/use/test_demo.py
        main([*words[1:], *SMALLER.get(" ".join(words[:2]), [])])


SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


class Pets(Dataset):
    """Stands in for `torchvision.datasets.OxfordIIITPet`."""

    classes = ("Abyssinian", "Beagle", "Samoyed")

    def __init__(self, root: str, split: str, download: bool) -> None:
        assert (root, split, download) == ("data", "test", True)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= len(self):
            raise IndexError
        return Image.new("RGB", (40, 50), (40 * index, 90, 10)), index % 3


def test_programs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip
    import timm
    import torchvision

    import advflyp

    real_train, real_evaluate, real_timm = advflyp.train, advflyp.evaluate, timm.create_model
    (workplace / "architectures").mkdir()
    (workplace / "architectures" / "small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(workplace / "architectures")
    made, tokenizer = open_clip.create_model_and_transforms("small"), open_clip.get_tokenizer("small")
    small = {"train.max_steps": 1, "optim.warmup_steps": 0, "train.device": "cpu", "data.batch_size": 8}
    monkeypatch.setattr(advflyp, "train", lambda r, o, **k: real_train(r, {**o, **small}, **k), raising=False)
    monkeypatch.setattr(advflyp, "evaluate", lambda *a, **k: real_evaluate(*a, **k, limit=3), raising=False)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *a: made)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *a: tokenizer)
    monkeypatch.setattr(timm, "create_model", lambda name, **k: real_timm(name))
    monkeypatch.setattr(torchvision.datasets, "OxfordIIITPet", Pets)
    for number, program in enumerate(blocks("python")):
        path = workplace / f"program{number}.py"
        path.write_text(program.replace("224, 224", "32, 32"))
        runpy.run_path(str(path))


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 120


def test_images_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    for target in targets:
        assert target.startswith("http") or (ROOT / target).exists(), f"README.md points to {target}"
