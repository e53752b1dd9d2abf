"""Fixtures that many tests share; what they are made of is in helpers.py."""

import os
import re
import signal
from pathlib import Path

# What a user, a launcher or a scheduler has set is no part of a test. Before the imports below, some of which read it,
# and so for processes that tests start, too.
FOREIGN = re.compile(
    r"(HF|HUGGING_?FACE|TRANSFORMERS|XDG|LC|ACCELERATE|TORCHELASTIC|SLURM|OMPI|PMI|WANDB|TRACKIO|MAKE)_.*"
    r"|.*_PROXY|(GROUP_|LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES|LANG(UAGE)?|MAKEFLAGS"
    r"|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|TTY_\w+|MPL\w+|MATPLOTLIBRC|TORCH_HOME|\w+_TF32_\w*OVERRIDE"
    r"|(ONEDNN|DNNL)_DEFAULT_FPMATH_MODE",
    re.IGNORECASE,
)
for name in filter(FOREIGN.fullmatch, list(os.environ)):
    del os.environ[name]

# A shell turns Ctrl-C off for what runs in the background, and what is started there inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny models gain nothing from threads, and threads that wait for a busy processor cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from advflyp.model import precision
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from browser import Browser
from devices.recording import Recordings
from helpers import RECIPE, make_tiny, write_folder
from hubserver import Hub, running_hub


def pytest_make_parametrize_id(val: object) -> str | None:
    """Short and the same in every process: not the bytes of a file, nor a whole message."""
    if isinstance(val, bytes):
        return f"{len(val)} bytes"
    return val[:40] if isinstance(val, str) else None


@pytest.fixture(autouse=True)
def auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """precision = "auto" means the same on every processor that runs the tests; those about bf16 ask for it by name."""
    monkeypatch.setattr(precision, "_cpu_multiplies_bf16", lambda: (False, "tests compute in float32"))


@pytest.fixture(scope="session")
def reproduce_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of docs/reproduction.md, with its results."""
    from outputs import committed_study  # slow to import

    return committed_study("reproduce-mini", tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("vit", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_rn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("rn", tmp_path_factory.mktemp("models") / "tiny-rn")


@pytest.fixture
def tiny(tiny_folder: Path) -> CLIP:
    return load_model(tiny_folder)


@pytest.fixture(params=["vit", "rn"])
def any_tiny(request: pytest.FixtureRequest, tiny_folder: Path, tiny_rn_folder: Path) -> CLIP:
    return load_model(tiny_folder if request.param == "vit" else tiny_rn_folder)


@pytest.fixture
def recordings_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """Stand-ins for CUDA graphs, on the CPU."""
    found = Recordings()
    found.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr("advflyp.training.build.check_device", lambda *_: None)
    return found


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Path) -> Path:
    """AdvFLYP_full on a tiny CLIP and 64 pairs in a folder: 2 epochs of 4 steps."""
    data = write_folder(tmp_path / "pairs", 64)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_folder, data=data))
    return path


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server in place of the Hugging Face hub; `use_hub` points the client at it."""
    with running_hub() as server:
        yield server


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A tab of a real browser, for tests that are marked `needs_browser`."""
    found = Browser(tmp_path / "profile")
    yield found
    found.close()
