"""Devices by name: one sentence where there is no such device, from every command and function that takes one."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from advflyp import distributed
from advflyp.cli.main import main
from advflyp.data.tools.caption import Options, caption
from advflyp.devices import available_devices, lowered, pick_device
from advflyp.evaluation.retrieval import retrieval
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.use.attack_image import attack_image
from advflyp.use.demo import serve
from advflyp.use.predict import predict
from helpers import class_folder, picture, write_folder


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with so many GPUs, or a Mac."""

    def make(gpus: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", "12.8" if gpus else None)
        monkeypatch.setattr(torch.version, "hip", None)

    return make


def test_names(machine: Callable[..., None]) -> None:
    machine(0)
    assert available_devices() == ["cpu"]
    assert (
        pick_device("auto") == pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    )
    machine(2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:1") == pick_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    machine(0, mps=True)
    assert available_devices() == ["cpu", "mps:0"]
    assert pick_device("mps") == torch.device("mps")
    assert pick_device("auto") == torch.device("cpu"), "what nobody has tested has to be asked for"


WRONG = [
    (0, "cuda", r"there is no device 'cuda' here \(torch was installed without CUDA\); use cpu or auto"),
    (0, "mps", "there is no device 'mps' here; use cpu or auto"),
    (0, "gpu", "there is no device 'gpu' here; use cpu or auto"),
    (0, "meta", "there is no device 'meta' here; use cpu or auto"),
    (0, "", "there is no device '' here; use cpu or auto"),
    (2, "cuda:7", "there is no device 'cuda:7' here; use cpu, cuda:0, cuda:1 or auto"),
    (1, "cuda:-1", "there is no device 'cuda:-1' here; use cpu, cuda:0 or auto"),
]


@pytest.mark.parametrize(("gpus", "name", "message"), WRONG)
def test_what_is_not_there(machine: Callable[..., None], gpus: int, name: str, message: str) -> None:
    machine(gpus)
    with pytest.raises(ValueError, match=f"^{message}$"):
        pick_device(name)


COMMANDS = {
    "eval": "eval mini --out r.jsonl",
    "eval clean": "eval mini --attacks clean --precision fp32",
    "retrieval": "retrieval mini pairs --out r.jsonl",
    "predict": "predict mini a.png --labels cat,dog",
    "attack": "attack mini a.png --labels cat,dog",
    "demo": "demo mini --port 0",
    "interpolate": "interpolate mini mini --out r.jsonl",
    "caption": "data caption set --out captions --model nothing",
    "overlap": "data overlap pairs --against set",
    "overlap with a model": "data overlap pairs --against set --model mini",
}


@pytest.mark.parametrize(("gpus", "name"), [(0, "mps"), (0, "cuda"), (0, "gpu"), (2, "cuda:7"), (0, "meta")])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    command: str,
    gpus: int,
    name: str,
    machine: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine(gpus)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pairs", 2)
    class_folder(tmp_path / "set", [_red(), _red()])
    _red().save("a.png")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([*COMMANDS[command].split(), "--device", name])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(f"advflyp: there is no device '{name}' here") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["cuda", "mps", "cuda:1", "gpu"])
def test_a_recipe(
    name: str, recipe: Path, machine: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(0)
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(recipe), "--out", str(tmp_path / "run"), "--train.device", name])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert (
        "use cpu or auto" if name == "cuda" else f"cannot be '{name}'; it is one of auto, cpu, cuda"
    ) in error


def test_functions_also_where_the_model_is_given(
    tiny: CLIP, machine: Callable[..., None], tmp_path: Path
) -> None:
    machine(0)
    pairs = write_folder(tmp_path / "pairs", 2)
    where = {"device": "mps"}
    calls: dict[str, Callable[[], object]] = {
        "evaluate": lambda: evaluate(tiny, ["mini/food"], **where),
        "retrieval": lambda: retrieval(tiny, pairs, **where),
        "predict": lambda: predict(tiny, _red(), "cat,dog", **where),
        "attack": lambda: attack_image(tiny, _red(), "cat,dog", eps=4 / 255, **where),
        "serve": lambda: serve("mini", port=0, **where),
        "caption": lambda: caption("mini/food", Options(out=tmp_path / "out", **where)),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="there is no device 'mps' here; use cpu or auto"):
            call()


def test_processes_each_need_a_gpu_of_their_own(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        ValueError, match="local rank 2 has no GPU: this machine has 2; start at most that many ranks"
    ):
        distributed.start("auto")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(ValueError, match="cannot share 'cuda:1'; use cpu, or cuda for one GPU each"),
        distributed.process_group("cuda:1"),
    ):
        pass


def _red() -> Image.Image:
    return picture("red", "circle", random.Random(0))


def test_the_least_of_several_in_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses it there on CUDA; its result depends on no order."""
    seen = []
    real = torch.Tensor.scatter_reduce

    def scatter(*arguments: Any) -> torch.Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(*arguments)

    monkeypatch.setattr(torch.Tensor, "scatter_reduce", scatter)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = lowered(torch.tensor([5, 1, 9]), torch.tensor([0, 0, 1, 2]), torch.tensor([4, 3, 2, 9]))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
    assert found.tolist() == [3, 1, 9] and seen == [False]
