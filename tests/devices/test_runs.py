"""Whole runs on a GPU: training with validation, checkpoints, resuming; and what synchronises between the steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from advflyp.data.batch import Batch
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model
from advflyp.training import loop
from advflyp.training.build import TrainingRun
from advflyp.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from advflyp.training.loop import train
from advflyp.training.runlog import read_metrics
from advflyp.training.update import Updated
from devices.conftest import Gpu
from devices.test_steps import ALLOWED

ON_GPU = {
    "train.device": "cuda",
    "train.precision": "bf16",
    "data.batch_size": 8,
    "data.limit": 32,
    "checkpoint.every": 2,
}
# where → why a run may synchronise there
BETWEEN_STEPS = {
    **ALLOWED,
    "attack/victim.py:leave": "validation: images that are fooled leave the attack",
    "attack/victim.py:fooled": "validation: what the search has found is confirmed in float32",
    "attack/base.py:run_stages": "validation: predictions are counted on the host",
    "attack/base.py:_check_found": "validation: images outside the ball are refused, once a batch",
    "evaluation/evaluator.py:all_images": "validation: images come from the host, predictions go there",
    "model/load.py:load_model": "the model is moved to the device",
    "model/folder.py:_write": "the best weights are written",
    "model/folder.py:not_finite": "weights that are saved have to be finite",
    "training/checkpoint.py:save_checkpoint": "a checkpoint is written",
    "training/failures.py:broken": "before weights are saved, the model is tried on noise from the host",
    "training/meter.py:_wait_for": "the first line: the device's rate is measured",
    "training/meter.py:means": "a line: losses are read, and judged before a checkpoint",
    "training/loop.py:_phi": "a line: φ is read",
}


def test_a_run_from_beginning_to_end(gpu: Gpu, recipe: Path, data: Path, tmp_path: Path) -> None:
    keys = {
        **ON_GPU,
        "train.deterministic": False,
        "validate.set": f"folder:{data / 'classes'}",
        "validate.attack": "pgd2",
        "validate.limit": 8,
    }
    with gpu.recording() as syncs:
        result = train(recipe, {**keys, "train.epochs": 1, "log.every": 2}, out=tmp_path / "run")
    assert result.steps == 4 and result.best is not None
    assert not {str(sync) for sync in syncs if sync.where not in BETWEEN_STEPS}
    if gpu.sham:
        assert {sync.where for sync in syncs} == BETWEEN_STEPS.keys(), "the list holds nothing else"
    lines = read_metrics(tmp_path / "run")
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [2, 4]
    assert {"utilisation", "phi", "grad_norm", "memory_gb"} <= trained[0].keys()
    model = load_model(tmp_path / "run", device="cpu")
    assert model.device.type == "cpu"
    assert weights_sha256(load_model(tmp_path / "run", device=gpu.device)) == weights_sha256(model)


def drawing(monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None) -> list[float]:
    """Each step draws from the device's own generator, as dropout does; what it has drawn."""
    drawn: list[float] = []
    real = loop.update

    def step(run: TrainingRun, batch: Batch) -> Updated:
        if run.state.step == dies_at:
            raise KeyboardInterrupt
        drawn.append(torch.rand((), device=run.model.device).item())
        return real(run, batch)

    monkeypatch.setattr(loop, "update", step)
    return drawn


def test_a_resumed_run_is_the_same_run(
    gpu: Gpu, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, random numbers of the device included."""
    keys = {**ON_GPU, "train.max_steps": 4, "train.deterministic": True}
    with monkeypatch.context() as patch:
        whole = drawing(patch)
        train(recipe, keys, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut = drawing(patch, dies_at=3)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, keys, out=tmp_path / "cut")
    torch.manual_seed(999)
    with monkeypatch.context() as patch:
        rest = drawing(patch)
        train(recipe, keys, out=tmp_path / "cut", resume=True)
    assert weights_sha256(load_model(tmp_path / "cut")) == weights_sha256(load_model(tmp_path / "whole"))
    assert cut[:2] + rest == whole and len(set(whole)) == 4


def test_random_states_of_either_device_and_of_old_checkpoints(gpu: Gpu, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = random_state(gpu.device)
    path = save_checkpoint(tmp_path, 0, state, keep=1)
    expected = torch.rand(3, device=gpu.device), torch.rand(3)
    set_random_state(load_checkpoint(path), gpu.device)
    assert torch.equal(torch.rand(3, device=gpu.device), expected[0]) and torch.equal(
        torch.rand(3), expected[1]
    )
    # Of a run on a CPU, or of a version that had the CPU's alone; and a GPU's on a CPU.
    old = {"rng": state["rng"]}
    assert random_state(torch.device("cpu")).keys() == old.keys()
    for saved, device in ((old, gpu.device), (state, torch.device("cpu"))):
        set_random_state(saved, device)
        assert torch.equal(torch.rand(3), expected[1])


def test_a_run_on_a_gpu_goes_on_on_a_cpu(
    gpu: Gpu, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**ON_GPU, "train.max_steps": 3, "train.device": "auto"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        drawing(patch, dies_at=2)
        train(recipe, keys, out=tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert train(recipe, keys, out=tmp_path / "run", resume=True).steps == 3
    assert load_checkpoint(checkpoints(tmp_path / "run/checkpoints")[-1])["processes"][0].keys() == {
        "position",
        "dirt",
        "method",
        "rng",
    }


@pytest.mark.gpu
def test_a_killed_process_resumes(recipe: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a real command, then --resume."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    keys = {**ON_GPU, "checkpoint.every": 1, "train.epochs": 8, "train.deterministic": True}
    options = [word for key, value in keys.items() for word in (f"--{key}", str(value).lower())]
    command = [
        sys.executable,
        "-m",
        "advflyp",
        "train",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        *options,
    ]
    process = subprocess.Popen(command, env={**os.environ})
    while process.poll() is None and len(checkpoints(tmp_path / "run/checkpoints")) < 2:
        pass
    process.kill()
    process.wait()
    train(recipe, keys, out=tmp_path / "run", resume=True)
    train(recipe, keys, out=tmp_path / "whole")
    assert weights_sha256(load_model(tmp_path / "run")) == weights_sha256(load_model(tmp_path / "whole"))
