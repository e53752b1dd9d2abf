"""The GPU of the device tests: a sham one, or with `-m gpu` a real one."""

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

from advflyp.method import METHODS
from advflyp.training.build import TrainingRun, build
from advflyp.training.recipe import read_recipe
from data.test_training import class_tree
from devices.pretend import sham_cuda
from devices.sham import CUDA, ShamDevice, Sync, caller
from helpers import RECIPE, write_folder

IS_AVAILABLE = torch.cuda.is_available


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Fixtures end in the reverse order of their beginning, and monkeypatch may have begun before the sham device."""
    yield
    assert torch.cuda.is_available is IS_AVAILABLE, (
        "undo a patch of torch.cuda in the test: monkeypatch.context()"
    )


@dataclass
class Gpu:
    """A GPU as tests use it.

    sham: None for a real one
    """

    sham: ShamDevice | None
    device = CUDA

    @contextmanager
    def recording(self) -> Iterator[list[Sync]]:
        """The synchronisations of the block. A real GPU names most of them, but no copy from pageable memory."""
        if self.sham is not None:
            before, self.sham.syncs = self.sham.syncs, []
            yield self.sham.syncs
            before += self.sham.syncs
            self.sham.syncs = before
            return
        syncs: list[Sync] = []

        def show(message: Warning | str, *_: object) -> None:
            if "synchronizing CUDA operation" in str(message):
                syncs.append(Sync(str(message), *caller()))

        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield syncs
            finally:
                torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture(params=["sham", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    if request.param == "sham":
        with sham_cuda() as sham:
            yield Gpu(sham)
    elif torch.cuda.is_available():
        yield Gpu(None)
    else:
        pytest.skip("torch finds no CUDA device here")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch.use_deterministic_algorithms in the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images with captions in "pairs", as many of four classes in "classes"."""
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder / "pairs", 32)
    class_tree(folder / "classes", 32)
    return folder


@pytest.fixture
def open_trainer(data: Path, tiny_folder: Path, tmp_path: Path) -> Callable[..., TrainingRun]:
    """A `TrainingRun` of a method by name and keys of the recipe: on the GPU, in bf16, in batches of 8."""

    def open_one(method: str = "advflyp", **keys: object) -> TrainingRun:
        kind = "pairs" if METHODS[method][0].trains_on == "pairs" else "classes"
        path = tmp_path / "recipe.toml"
        path.write_text(
            RECIPE.format(model=tiny_folder, data=data / kind).replace('"advflyp"', f'"{method}"')
        )
        if "feature_weight" not in {field.name for field in fields(METHODS[method][1])}:
            path.write_text(path.read_text().replace("feature_weight = 1.0\nlogit_weight = 1.0\n", ""))
        usual = {
            "data.batch_size": 8,
            "train.device": "cuda",
            "train.precision": "bf16",
            "train.deterministic": False,
        }
        return build(read_recipe(path, {**usual, **keys}), tmp_path / "run")

    return open_one
