"""What a step costs: counted operations, and the rate of the device that they are held against."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from advflyp.model.clip import CLIP
from advflyp.training import meter
from advflyp.training.build import build
from advflyp.training.meter import Flops, Meter, matrix_rate
from advflyp.training.recipe import read_recipe
from advflyp.training.update import update

META = torch.device("meta")


@pytest.mark.parametrize("rate", [1e8, 6e8, 1e10, 1e11, 2e12, 5e13, 8e14])
@pytest.mark.parametrize("start", [0.0, 2e-5])
def test_a_rate_is_found_in_time_on_any_device(
    rate: float, start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that needs `start` seconds to begin anything, and computes at `rate`."""
    now = 0.0

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += start + 2 * len(a) ** 3 / rate
        return a

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr(meter, "perf_counter", lambda: now)
    found = matrix_rate(META, "bf16")
    assert now < 0.2
    # At the largest rate the start takes as long as a product of 4096 rows.
    assert 0.97 * rate < found <= 1.0001 * rate


def test_what_happens_once_is_no_part_of_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is loaded when it is first needed: 5 ms for each size."""
    now, seen = 0.0, set()

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 2 * len(a) ** 3 / 1e14 + (0.005 if len(a) not in seen else 0)
        seen.add(len(a))
        return a

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr(meter, "perf_counter", lambda: now)
    assert matrix_rate(META, "fp32") == pytest.approx(1e14)
    assert now < 0.2


def test_the_rate_of_this_processor_is_that_of_a_product() -> None:
    a = torch.ones(512, 512)
    a @ a
    seconds = min(meter._seconds_of_product(a) for _ in range(5))
    # Within a factor that other work on the machine may make; it may also stop one measurement early.
    rate = max(matrix_rate(torch.device("cpu"), "fp32") for _ in range(5))
    assert 0.1 < rate / (2 * 512**3 / seconds) < 10


def test_operations_are_those_of_the_equations() -> None:
    """2·m·k·n a product; its backward pass has one for each factor that needs a gradient."""
    x, w = torch.ones(5, 7), torch.ones(3, 7, requires_grad=True)
    product = 2 * 5 * 7 * 3
    with Flops() as flops:
        y = F.linear(x, w)
    assert flops.total == product
    with Flops() as flops:
        y.sum().backward()
    assert flops.total == product
    with Flops() as flops:
        F.linear(x.requires_grad_(), w).sum().backward()
    assert flops.total == 3 * product
    with Flops() as flops:
        F.conv2d(torch.ones(2, 3, 8, 8), torch.ones(4, 3, 2, 2), stride=2)
    assert flops.total == 2 * (2 * 4 * 4 * 4) * (3 * 2 * 2)
    with Flops() as flops:
        F.scaled_dot_product_attention(*(torch.ones(2, 4, 6, 8) for _ in range(3)))
    assert flops.total == 2 * (2 * 2 * 4 * 6 * 6 * 8)


def forward_operations(model: CLIP, images: int) -> int:
    """Of a plain ViT: patches, then for each block 12 products of width², and attention; then the projection.

    In the last block only keys and values are computed for all places, and the rest for the class token.
    """
    (rows, columns), tower = model.patch_grid, model.net.visual
    width, layers = tower.conv1.out_channels, len(tower.transformer.resblocks)
    places = rows * columns + 1
    patches = rows * columns * 3 * 8 * 8 * width
    blocks = (layers - 1) * places * (12 * width**2 + 2 * places * width)
    last = places * 2 * width**2 + 10 * width**2 + 2 * places * width
    return 2 * images * (patches + blocks + last + width * tower.proj.shape[1])


def test_a_step_is_counted_once_and_held_against_the_rate(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(read_recipe(recipe), tmp_path / "run")
    for batch in run.pairs.epoch(0):
        run.meter.add(update(run, batch).metrics, 16)
    (counted,) = run.meter.flops_per_step.values()
    # Two steps of the attack forward and backward to the pixels (2 · 2), the clean and adversarial images forward and
    # backward to weights and activations (2 · 3), the original (1): 11 forward passes, less what the first layer's
    # backward pass to its weights does without the pixels' (and then some for the 16 × 16 similarities).
    whole = 11 * forward_operations(run.model, 16)
    assert 0.97 * whole < counted < 1.01 * whole

    monkeypatch.setattr(meter, "matrix_rate", lambda device, precision: 1e9)
    monkeypatch.setattr(meter, "perf_counter", lambda: run.meter.started + 2.0)
    line = run.meter.line(run.meter.means(), torch.device("cpu"), "fp32")
    assert line["utilisation"] == pytest.approx(4 * counted / 2.0 / 1e9, abs=1e-4)
    assert line["pairs_per_second"] == 4 * 16 / 2.0


def test_a_trained_text_tower_is_counted(recipe: Path, tmp_path: Path) -> None:
    """Its forward pass, as its backward pass."""
    run = build(read_recipe(recipe, {"train.unfreeze": "vision+text"}), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    with Flops() as flops:
        update(run, batch)
    # But for the norm of the gradient and the like, which are no products.
    assert run.meter.flops_of_last == flops.total


def test_a_compiled_step_has_no_utilisation() -> None:
    meter = Meter()
    with meter.counting(compiled=True):
        torch.ones(2, 2) @ torch.ones(2, 2)
    meter.add({"loss": torch.tensor(1.0)}, 2)
    assert "utilisation" not in meter.line(meter.means(), torch.device("cpu"), "fp32")
