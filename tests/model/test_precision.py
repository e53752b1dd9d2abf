"""What "auto" means: bf16 exactly where the device multiplies bf16 matrices faster."""

from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from advflyp.cli.main import main
from advflyp.model import precision
from advflyp.model.precision import choose_precision, resolve
from advflyp.training.loop import train
from advflyp.training.recipe import read_recipe

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def auto_is_float32() -> None:
    """Not here."""


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be a processor: what torch says of it, how wide its kernels may be, how long a product takes."""

    def pretend(
        capabilities: dict[str, object], width: str = "AVX512", seconds: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        for cached in (precision._cpu_multiplies_bf16, precision._time_ratio):
            cached.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
        timed = {torch.bfloat16: seconds[0], torch.float32: seconds[1]}
        monkeypatch.setattr(precision, "_seconds", lambda dtype: timed[dtype])

    yield pretend
    for cached in (precision._cpu_multiplies_bf16, precision._time_ratio):
        cached.cache_clear()


X86 = {"architecture": "x86_64", "avx2": True}


@pytest.mark.parametrize(
    ("capabilities", "width", "expected"),
    [
        (X86, "AVX2", "fp32"),
        (X86 | {"avx512_f": True}, "AVX512", "fp32"),
        (X86 | {"avx512_bf16": True}, "AVX512", "bf16"),
        (X86 | {"amx_bf16": True}, "AVX512", "bf16"),
        (X86 | {"amx_bf16": True, "avx512_bf16": True}, "AVX2", "fp32"),
        (X86 | {"amx_bf16": True, "avx512_bf16": True}, "DEFAULT", "fp32"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "DEFAULT", "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, "DEFAULT", "fp32"),
    ],
)
def test_a_known_processor_decides_by_its_instructions(processor, capabilities, width, expected) -> None:
    # The timing says the opposite, and isn't asked.
    processor(capabilities, width, (1.0, 100.0) if expected == "fp32" else (100.0, 1.0))
    choice = choose_precision("auto", CPU)
    assert choice.precision == expected
    assert "instructions" in choice.reason


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.9, "fp32"), (1.0, "fp32"), (24.0, "fp32")])
def test_an_unknown_processor_is_timed(processor, bf16: float, expected: str) -> None:
    processor({}, "DEFAULT", (bf16, 1.0))
    assert choose_precision("auto", CPU).precision == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_decides_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    # A device of capability 7.5 emulates bf16, and says that it is supported.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    assert choose_precision("auto", "cuda:0").precision == expected


def test_other_devices_compute_in_float32() -> None:
    assert choose_precision("auto", "mps").precision == "fp32"


def test_a_name_is_kept_and_says_how_slow_it_is(processor) -> None:
    processor(X86, "AVX2", (24.0, 1.0))
    slow = choose_precision("bf16", CPU)
    assert slow.precision == "bf16" and "24.0 times as long" in slow.reason
    assert choose_precision("fp32", CPU).precision == "fp32"
    processor(X86 | {"amx_bf16": True})
    assert choose_precision("bf16", CPU).reason == "asked for"
    assert resolve("auto", CPU) == "bf16" and resolve("fp32", CPU) == "fp32"


def test_the_real_processor_is_timed_in_a_moment() -> None:
    assert precision._seconds(torch.float32) < 0.05
    assert precision._time_ratio() > 0


def test_float16_is_refused_with_the_reason(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"train.precision \"fp16\" is not offered: .*underflow.*\"auto\""):
        read_recipe(recipe, {"train.precision": "fp16"})
    for command in (
        ["eval", "mini"],
        ["retrieval", "mini", str(recipe.parent)],
        ["interpolate", "mini", "mini"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--precision", "fp16"])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and '--precision "fp16" is not offered' in said


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, fp32, bf16"):
        choose_precision("double", CPU)


def test_a_run_keeps_its_precision_on_another_processor(processor, recipe: Path, tmp_path: Path) -> None:
    processor(X86, "AVX2")
    keys = {"train.precision": "auto", "train.max_steps": 2, "checkpoint.every": 1}
    train(recipe, keys, out=tmp_path / "run")
    written = (tmp_path / "run" / "recipe.toml").read_text()
    assert written.startswith("# precision fp32: this processor has no instructions for bf16\n")
    assert 'precision = "fp32"' in written

    processor(X86 | {"amx_bf16": True})
    train(recipe, keys, out=tmp_path / "run", resume=True)
    written = (tmp_path / "run" / "recipe.toml").read_text()
    assert written.startswith("# precision fp32: the run was started with it\n")
    assert 'precision = "fp32"' in written
    with pytest.raises(ValueError, match="train.precision was 'fp32', is 'bf16'"):
        train(recipe, keys | {"train.precision": "bf16"}, out=tmp_path / "run", resume=True)


def test_every_recipe_asks_for_auto() -> None:
    recipes = sorted((Path(precision.__file__).parents[1] / "configs").rglob("*.toml"))
    assert len(recipes) > 30
    for path in recipes:
        assert read_recipe(path).train.precision == "auto", path
