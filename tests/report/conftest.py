"""Cells, a metrics file and two tiny models to report on."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.results import Cell
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.report.figures import examples as examples_module
from helpers import make_tiny
from report.cells import measured


@pytest.fixture
def cells() -> list[Cell]:
    return list(measured())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was resumed once, after its clock had reached 20 s."""
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [
        {"kind": "train", "step": 10, "time": 20.0, "epoch": 0, "seen": 160, "loss": 3.5}
        | {"loss/clip": 3.0, "loss/feature": 0.4, "loss/logit": 0.1, "pairs_per_second": 80.0},
        {
            "kind": "validate",
            "step": 10,
            "time": 20.0,
            "epoch": 0,
            "best": True,
            "clean": 0.5,
            "robust": 0.25,
        },
        {"kind": "train", "step": 20, "time": 15.0, "epoch": 1, "seen": 320, "loss": 2.5}
        | {"loss/clip": 2.25, "loss/feature": 0.2, "loss/logit": 0.05, "pairs_per_second": 90.0},
        {
            "kind": "validate",
            "step": 20,
            "time": 15.5,
            "epoch": 1,
            "best": True,
            "clean": 0.45,
            "robust": 0.375,
        },
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(
        '[attack]\neps = 0.00784313725490196\nsteps = 2\n# <script>alert("no")</script>\n'
        '[method]\nname = "advflyp"\n'
    )
    return folder


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> CLIP:
    """A second tiny model, of another seed than `tiny`."""
    return load_model(make_tiny("vit", tmp_path_factory.mktemp("models") / "other", seed=1))


@pytest.fixture
def sets(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> dict[str, LabelledSet]:
    """Two sets of 40 coloured noise pictures with labels that a random model sometimes hits."""
    made = {}
    for number, name in enumerate(("mini/one", "mini/two")):
        generator = torch.Generator().manual_seed(number)
        arrays = (torch.rand(40, 32, 32, 3, generator=generator) * 255).byte().numpy()
        pictures = [(Image.fromarray(array), index % 4) for index, array in enumerate(arrays)]
        made[name] = LabelledSet(
            pictures, ["cat", "dog & co", "<house>", "sea"], "a {}", name=name, split="test"
        )
    monkeypatch.setattr(examples_module, "load_set", made.__getitem__)
    return made
