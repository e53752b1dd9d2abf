"""A function that is given a model leaves it as it was, also when it fails: weights, modes, precision and all."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from advflyp.data.tools.overlap import overlap
from advflyp.evaluation import sanity
from advflyp.evaluation.retrieval import retrieval
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model, weights_sha256
from advflyp.model.interop.export import export_model
from advflyp.model.load import load_model
from advflyp.model.mix import interpolate
from advflyp.report.figures.embedding import embed
from advflyp.report.figures.examples import examples
from advflyp.training import loop
from advflyp.training.loop import train
from advflyp.use.attack_image import attack_image
from advflyp.use.demo import NOT_SAID, Demo
from advflyp.use.predict import predict
from helpers import class_folder, picture, write_folder

EPS = 2 / 255


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of class folders."""
    rng = random.Random(0)
    images = [picture(colour, shape, rng) for colour in ("red", "blue") for shape in ("circle", "bar")]
    return str(class_folder(tmp_path_factory.mktemp("set"), [*images, *images]))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_folder(tmp_path_factory.mktemp("pairs") / "p", 8))


@pytest.fixture
def model(tiny_rn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CLIP:
    """In a state that nobody expects: training in part, frozen in part, bfloat16, in parts, compiled (to itself)."""
    monkeypatch.setattr(torch, "compile", lambda call, **how: lambda *given, **named: call(*given, **named))
    found = load_model(tiny_rn_folder).train()
    found.visual.layer1.eval()  # type: ignore[operator]
    for parameter in list(found.parameters())[::3]:
        parameter.requires_grad_(False)
    found.precision, found.micro_batch = "bf16", 3
    found.visual.compile()
    return found


def state(model: CLIP) -> dict[str, Any]:
    """Everything about a model: attributes of each module by identity, tensors by place and value."""
    containers = ("_parameters", "_buffers", "_modules")
    found: dict[str, Any] = {"config": copy.deepcopy(model.config)}
    for name, module in model.named_modules():
        values = {key: value for key, value in vars(module).items() if key not in containers}
        found[f"{name}: {type(module).__name__}"] = {
            key: copy.copy(value) if isinstance(value, dict) else value for key, value in values.items()
        }
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        about = tensor.requires_grad, tensor.grad is None, tensor.device, tensor.dtype, tensor.data_ptr()
        found[f"tensor {name}"] = id(tensor), *about
    found["sha256"] = weights_sha256(model), model.mean.tolist(), model.std.tolist()
    return found


def process() -> dict[str, Any]:
    """What belongs to everybody in the process."""
    return {
        "deterministic": torch.get_deterministic_debug_mode(),
        "grad": torch.is_grad_enabled(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "dtype": torch.get_default_dtype(),
    }


def ask_demo(model: CLIP, labelled: str, pairs: str, out: Path) -> None:
    Demo([model]).attack(0, 255 * EPS, "PGD-10", NOT_SAID, "cat\npizza")


def photo(labelled: str) -> Image.Image:
    return Image.open(sorted(Path(labelled).rglob("*.png"))[0])


Use = Callable[[CLIP, str, str, Path], object]
USES: dict[str, Use] = {
    "evaluate": lambda model, labelled, pairs, out: evaluate(
        model, [labelled], ["clean", "pgd1"], [EPS], out=out / "r.jsonl", sanity=True
    ),
    "evaluate, compiled": lambda model, labelled, pairs, out: evaluate(
        model, [labelled], ["pgd1"], [EPS], compile=True, precision="bf16"
    ),
    "retrieval": lambda model, labelled, pairs, out: retrieval(model, pairs, ["clean", "pgd1"], [EPS]),
    "predict": lambda model, labelled, pairs, out: predict(model, photo(labelled), "cat,dog"),
    "attack": lambda model, labelled, pairs, out: attack_image(model, photo(labelled), "cat,dog", eps=EPS),
    "demo": ask_demo,
    "export open_clip": lambda model, labelled, pairs, out: export_model(model, "open_clip", out / "e"),
    "export onnx": lambda model, labelled, pairs, out: export_model(model, "onnx", out / "e"),
    "save": lambda model, labelled, pairs, out: save_model(model, out / "saved", {}, half=True),
    "interpolate": lambda model, labelled, pairs, out: interpolate(model, model, 0.5),
    "examples": lambda model, labelled, pairs, out: examples(
        model, model, [labelled], eps=EPS, n=2, attack="pgd1"
    ),
    "embedding": lambda model, labelled, pairs, out: embed({"m": model}, [labelled], eps=EPS, n=6),
    "overlap": lambda model, labelled, pairs, out: overlap(
        pairs, [labelled], model=model, bits=32, cosine=-1
    ),
}
WITHOUT_PICTURES = ("save", "interpolate")
# They ask the model once.
ONCE = ("predict", "overlap", "export open_clip", "export onnx")


class Broken(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "onnx" in name else []) for name in USES]
)
def test_a_model_is_left_as_it_was(
    name: str,
    fails: bool,
    model: CLIP,
    labelled: str,
    pairs: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "export onnx":
        pytest.importorskip("onnxscript")
    if fails and name in WITHOUT_PICTURES:
        pytest.skip("asks the model nothing")
    monkeypatch.setattr(sanity, "STEPS", (1, 2))
    monkeypatch.setattr(sanity, "QUERIES", 3)
    before, shared = state(model), process()
    if not fails:
        USES[name](model, labelled, pairs, tmp_path)
    else:
        # In the middle, where it can be.
        calls: list[int] = []
        encode = CLIP.encode_image_raw

        def broken(self: CLIP, images: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            if len(calls) > (name not in ONCE):
                raise Broken
            return encode(self, images)

        monkeypatch.setattr(CLIP, "encode_image_raw", broken)
        with pytest.raises(Exception) as caught:
            USES[name](model, labelled, pairs, tmp_path)
        # torch.onnx wraps it.
        assert isinstance(caught.value, Broken) or "Broken" in str(caught.value)
    after = state(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key] == value, key
    assert process() == shared


def test_a_model_in_training_mode_answers_as_one_that_is_not(
    tiny_rn_folder: Path, labelled: str, pairs: str
) -> None:
    """Batch norm that goes on estimating would see another model, and change it."""
    plain, odd = load_model(tiny_rn_folder), load_model(tiny_rn_folder).train()
    odd.precision = "bf16"
    shown = [examples(m, m, [labelled], eps=EPS, n=4, attack="pgd1") for m in (plain, odd)]
    assert [e.before.top_clean for e in shown[0]] == [e.before.top_clean for e in shown[1]]
    found = [overlap(pairs, [labelled], model=m, bits=32, cosine=-1).matches for m in (plain, odd)]
    assert found[0] == found[1] and len(found[0]) > 0


def test_the_tower_is_compiled_while_it_is_evaluated(
    tiny: CLIP, labelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*arguments: Any) -> Any:
            graphs.append(1)
            return graph(*arguments)

        return run

    compiler: Any = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **how: compiler(call, **{**how, "backend": backend}))
    cells = evaluate(tiny, [labelled], ["clean"], compile=True)
    assert graphs, "what was compiled ran"
    ran = len(graphs)
    tiny.encode_image(torch.rand(2, 3, *tiny.image_size))
    assert len(graphs) == ran and isinstance(tiny.visual, nn.Module)
    assert evaluate(tiny, [labelled], ["clean"])[0].correct == cells[0].correct


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_training_leaves_the_deterministic_mode_as_it_was(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, asked: bool
) -> None:
    """Within the run it is the caller's, unless the recipe asks for it."""
    during = []
    monkeypatch.setattr(loop, "_loop", lambda run, log: during.append(torch.get_deterministic_debug_mode()))
    torch.set_deterministic_debug_mode(mode)
    try:
        before, drawn = process(), torch.get_rng_state()
        train(recipe, {"train.deterministic": asked}, out=tmp_path / "run")
        assert process() == before and torch.equal(torch.get_rng_state(), drawn)
    finally:
        torch.set_deterministic_debug_mode("default")
    assert during == [2 if asked else before["deterministic"]]
