"""Several processes compute what one does: perturbations, losses, gradients and weights of the same global batches.

In float64: sums over a batch are added in another order, and a pixel of δ moves by the sign of a gradient. In float32
that sign is rounding in one of thousands, and what follows differs by whole steps.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from advflyp.method import METHODS
from advflyp.model.folder import save_model
from data.test_training import class_tree
from helpers import RECIPE, assert_equal64, make_tiny, siglip_config, small_model, write_folder
from training.processes import run
from training.worker import record

STEPS = 3
SGD = {"optim.name": "sgd", "optim.lr": "0.05", "optim.warmup_steps": "0"}
BOTH = {"method.feature_weight": "1", "method.logit_weight": "1"}
# name → method, what else
RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "advflyp_full": ("advflyp", BOTH),
    "advflyp_as_printed": (
        "advflyp",
        {**BOTH, "method.feature_norm": "frobenius", "method.logit_temperature": "1"},
    ),
    "advflyp_masked": ("advflyp", {"method.mask_same_caption": "true"}),
    "advflyp_soft": ("advflyp", {**BOTH, "method.soft_targets": "0.4", "method.mask_same_caption": "true"}),
    "advflyp_both_towers": ("advflyp", {**BOTH, "train.unfreeze": "all"}),
    "advflyp_sigmoid": ("advflyp", {"train.unfreeze": "all"}),
    "advflyp_in_parts": ("advflyp", {**BOTH, "train.micro_batch": "3"}),
    "advflyp_split": (
        "advflyp",
        {**BOTH, "train.parallel": "fsdp", "train.activation_checkpointing": "true"},
    ),
    "tga_zsr_split": ("tga_zsr", {"train.parallel": "fsdp", "optim.max_grad_norm": "0.01"}),
    "advflyp_unfrozen": ("advflyp", {**BOTH, "train.unfreeze": "all", "method.logit_gradients": "all"}),
    "advflyp_last": ("advflyp", {**BOTH, "data.limit": "41", "data.drop_last": "false"}),
    "advflyp_clipped": ("advflyp", {"optim.max_grad_norm": "0.01"}),
    "tecoa_full": ("tecoa", BOTH),
    "pmg_aft": ("pmg_aft", {}),
    "pmg_aft_released": ("pmg_aft", {"method.logit_temperature": "1", "method.divergence": "sum"}),
    "tga_zsr": ("tga_zsr", {}),
    "tga_zsr_released": ("tga_zsr", {"method.attention_norm": "dim"}),
    "fare": ("fare", {}),
    "agft": ("agft", {}),
    "flyp": ("flyp", {**BOTH, "train.unfreeze": "vision+text"}),
    "flyp_drawn": ("flyp", {"train.unfreeze": "all", "data.templates": "a {} | the {} | one {}"}),
}
# processes → pictures of a batch; of four, two processes have one more than the others
BATCHES = {2: 16, 4: 18}
CASES = [(2, name) for name in RUNS] + [
    (4, name) for name in ("advflyp_full", "advflyp_both_towers", "advflyp_last", "tga_zsr")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    class_tree(folder / "classes", 64)
    write_folder(folder / "pairs", 64)
    make_tiny("vit", folder / "tiny")
    save_model(small_model(siglip_config()), folder / "siglip", {})
    for name, (method, _) in RUNS.items():
        data = folder / ("pairs" if METHODS[method][0].trains_on == "pairs" else "classes")
        model = folder / ("siglip" if "sigmoid" in name else "tiny")
        text = RECIPE.format(model=model, data=data).replace('"advflyp"', f'"{method}"')
        (folder / f"{name}.toml").write_text(text.replace("feature_weight = 1.0\nlogit_weight = 1.0\n", ""))
    return folder


def described(folder: Path, name: str, batch: int, out: str) -> dict[str, Any]:
    overrides = {**SGD, **RUNS[name][1], "data.batch_size": str(batch)}
    recipe = str(folder / f"{name}.toml")
    return {"recipe": recipe, "overrides": overrides, "out": str(folder / out / name), "steps": STEPS}


@pytest.fixture(scope="module")
def several(folder: Path) -> dict[int, Path]:
    """The folder of the records of two and of four processes."""
    for count, batch in BATCHES.items():
        runs = [described(folder, name, batch, f"several-{count}") for n, name in CASES if n == count]
        (folder / f"{count}.json").write_text(json.dumps(runs))
        run(count, ["worker", str(folder / f"{count}.json")])
    return {count: folder / f"several-{count}" for count in BATCHES}


@pytest.mark.long
@pytest.mark.parametrize(("count", "name"), CASES)
def test_several_processes_are_one(name: str, count: int, folder: Path, several: dict[int, Path]) -> None:
    described_alone = described(folder, name, BATCHES[count], f"alone-{count}")
    described_alone["overrides"].pop("train.parallel", None)
    alone = record(described_alone)
    parts = [torch.load(several[count] / name / f"{rank}.pt") for rank in range(count)]
    for number, expected in enumerate(alone["steps"]):
        rows = [part["steps"][number]["rows"] for part in parts]
        assert rows[0][0] == 0 and rows[-1][1] == BATCHES[count]
        delta = torch.cat([part["steps"][number]["delta"] for part in parts])
        assert_equal64(delta, expected["delta"])
        for part in parts:
            found = part["steps"][number]
            assert found["metrics"].keys() == expected["metrics"].keys()
            for key, value in expected["metrics"].items():
                assert_equal64({key: found["metrics"][key]}, {key: value})
            assert_equal64(found["gradients"], expected["gradients"])
    for part in parts:
        assert_equal64(part["weights"], alone["weights"])
