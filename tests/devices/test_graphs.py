"""Passes of a tower and steps of attacks, replayed from CUDA graphs, give what they give without."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advflyp.attack import apgd
from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.apgd import APGD, TargetedAPGD
from advflyp.attack.autoattack import AutoAttack
from advflyp.attack.base import Attack
from advflyp.attack.fab import FAB
from advflyp.attack.pgd import CW, PGD
from advflyp.attack.square import Square
from advflyp.attack.threat import Threat
from advflyp.evaluation import classifier as of_classifier
from advflyp.evaluation.classifier import Classifier, replayed
from advflyp.evaluation.suite import evaluate
from advflyp.model import graphs as module
from advflyp.model.clip import CLIP
from advflyp.model.graphs import Graphs, Steps, padded_size
from advflyp.model.load import load_model
from advflyp.training.build import TrainingRun
from advflyp.training.update import update
from devices.conftest import Gpu
from devices.recording import Dispatched, Recordings
from helpers import TEXT, VISION, labelled_by, small_model

SMALL_AUTOATTACK = AutoAttack(
    members=(APGD(steps=4), TargetedAPGD(steps=4, targets=2), FAB(steps=3, targets=2), Square(queries=6))
)


@pytest.fixture
def recordings(gpu: Gpu) -> Iterator[Recordings]:
    """Of a real GPU they stay empty."""
    found = Recordings()
    with pytest.MonkeyPatch.context() as patch:
        if gpu.sham is not None:
            found.install(patch)
        yield found


@pytest.fixture(params=VISION)
def model(request: pytest.FixtureRequest, gpu: Gpu) -> CLIP:
    config = {"embed_dim": 24, "vision_cfg": VISION[request.param], "text_cfg": TEXT}
    return small_model(config).double().to(gpu.device).eval().requires_grad_(False)


def some_images(model: CLIP, count: int) -> Tensor:
    images = torch.rand(count, 3, *model.image_size, generator=torch.Generator().manual_seed(count))
    return images.double().to(model.device)


def slope_of(embeddings: Tensor, images: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, embeddings.shape[1], dtype=torch.float64, device=images.device)
    return torch.autograd.grad((embeddings * weights).sum(), images)[0]


def close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for the order of sums, which depends on the size of a batch."""
    return torch.allclose(found.cpu(), expected.cpu(), rtol=0, atol=1e-12)


def test_embeddings_and_gradients(model: CLIP, recordings: Recordings) -> None:
    graphs = Graphs(pads=True)
    for count in (5, 11, 5, 8):
        images = some_images(model, count).requires_grad_()
        plain = model.encode_image(images)
        with model.replaying(graphs):
            found = model.encode_image(images)
            assert close(found, plain) and close(slope_of(found, images), slope_of(plain, images))
            with torch.no_grad():
                assert close(model.encode_image(images), plain)


def test_what_is_recorded(gpu: Gpu, model: CLIP, recordings: Recordings) -> None:
    if gpu.sham is None:
        pytest.skip("a real GPU does not say what it has recorded")
    graphs = Graphs(pads=True)
    with model.replaying(graphs):
        for count in (5, 11, 8, 12):
            model.encode_image(some_images(model, count))
        model.encode_image(some_images(model, 3).requires_grad_())
        with model.computing_in("bf16"):
            model.encode_image(some_images(model, 3))
    sizes = [(shape[0], has_gradient) for shape, has_gradient in recordings.recorded]
    assert sizes == [(8, False), (12, False), (8, True), (8, False)]
    assert recordings.replayed == 6


def test_results_outlive_the_next_replay(model: CLIP, recordings: Recordings) -> None:
    first, second = (some_images(model, 4).requires_grad_() for _ in range(2))
    second = (second.detach() * 0.5).requires_grad_()
    with model.replaying(Graphs(pads=False)):
        found = model.encode_image_raw(first)
        slope = slope_of(found, first)
        kept = found.detach().clone(), slope.clone()
        slope_of(model.encode_image_raw(second), second)
    assert torch.equal(found.detach().cpu(), kept[0].cpu()) and torch.equal(slope.cpu(), kept[1].cpu())


@pytest.mark.parametrize("counts", [(4, 4), (4, 9)], ids=["one recording", "two of one pool"])
def test_gradients_after_another_batch(counts: tuple[int, int], model: CLIP, recordings: Recordings) -> None:
    """The recording gets the first batch's activations back."""
    images = [(some_images(model, count) * 0.9).requires_grad_() for count in counts]
    expected = [slope_of(model.encode_image(each), each) for each in images]
    with model.replaying(Graphs(pads=True)):
        embeddings = [model.encode_image(each) for each in images]
        for found, each, slope in zip(embeddings, images, expected, strict=True):
            assert close(slope_of(found, each), slope)


def test_several_gradients_of_one_pass(model: CLIP, recordings: Recordings) -> None:
    images = some_images(model, 4).requires_grad_()
    expected = slope_of(model.encode_image(images), images)
    with model.replaying(Graphs(pads=False)):
        found = model.encode_image(images)
        weights = torch.linspace(-1, 1, found.shape[1], dtype=torch.float64, device=images.device)
        for _ in range(2):
            (slope,) = torch.autograd.grad((found * weights).sum(), images, retain_graph=True)
            assert close(slope, expected)


def test_a_tower_that_waits_for_the_device(gpu: Gpu, recordings: Recordings) -> None:
    if gpu.sham is None:
        pytest.skip("a broken capture could spoil the tests that follow on a real GPU")

    def encode(images: Tensor) -> Tensor:
        return images.flatten(1) * images.mean().item()

    images = torch.rand(4, 3, 8, 8).to(gpu.device)
    with pytest.raises(ValueError, match="^the model cannot be recorded as a CUDA graph .*; leave out"):
        Graphs(pads=True)(encode, images, "fp32")


@dataclass
class Walk:
    images: Tensor
    here: Tensor
    before: Tensor

    def __len__(self) -> int:
        return len(self.images)


def walk(at: Walk) -> tuple[Tensor, Tensor]:
    at.before, at.here = at.here, at.here + at.images
    return at.here.sum(1), at.here > 3


def a_walk(
    steps: Callable[[Any, Any, str], tuple[Tensor, ...]], device: torch.device, count: int
) -> list[Tensor]:
    """Whose rows leave, change places and are set to others' between steps, as those of an attack are."""
    start = torch.arange(count * 2.0).view(count, 2).to(device) / count
    at, seen = Walk(start + 1, start, start), []
    for number in range(9):
        seen += [result.clone() for result in steps(walk, at, "walk")]
        if number == 2:
            at.here = at.before
        if number == 4:
            at.before, at.here = at.here, at.before
        if number in (3, 6):
            at.images, at.here, at.before = (rows[1::2].flip(0) for rows in vars(at).values())
    return [*seen, *vars(at).values()]


@pytest.mark.parametrize("often", [0, 1, 2, 3, 5, 100])
def test_steps(often: int, gpu: Gpu, recordings: Recordings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some sizes are recorded and others not yet, and where a larger batch follows."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "OFTEN", often)
        steps = Steps(Graphs(pads=True))
        for count in (20, 5, 33, 20):
            plain = a_walk(lambda step, at, kind: step(at), gpu.device, count)
            found = a_walk(steps, gpu.device, count)
            assert all(torch.equal(one.cpu(), other.cpu()) for one, other in zip(found, plain, strict=True))
    if gpu.sham is not None:
        sizes = [size for _, size in recordings.steps]
        assert len(sizes) == len(set(sizes)) == {0: 5, 1: 5, 2: 5, 3: 4, 5: 3, 100: 0}[often]


def test_a_step_ends_the_last_replay(
    model: CLIP, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may write where the activations of a pass are."""
    images = (some_images(model, 4) * 0.9).requires_grad_()
    expected = slope_of(model.encode_image(images), images)
    graphs = Graphs(pads=True)

    def encode(at: Walk) -> tuple[Tensor]:
        with torch.no_grad():
            return (model.encode_image(at.images),)

    with monkeypatch.context() as patch, model.replaying(graphs):
        patch.setattr(module, "OFTEN", 0)
        found = model.encode_image(images)
        others = some_images(model, 3)
        (seen,) = Steps(graphs)(encode, Walk(others, others, others), "encode")
        assert close(slope_of(found, images), expected)
        assert close(seen, model.encode_image(others))


ATTACKS = (PGD(steps=6), CW(steps=6, restarts=2), SMALL_AUTOATTACK)
# Its terms are bound to the images of one restart.
BOUND = PGD(steps=3, loss="lse", against=DefenceTerms(terms=("feature",), weight=1000), restarts=2)


def test_adversarial_images(
    gpu: Gpu, tiny_folder: Path, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, where neither the size of a batch nor its padding decides the sign of a gradient."""
    host = load_model(tiny_folder, device="cpu")
    labelled = labelled_by(host, 12, classes=("cat", "dog", "house", "tree", "boat"))
    pixels = torch.stack([host.preprocess(image) for image, _ in labelled.dataset]).double().to(gpu.device)
    labels = torch.tensor([label for _, label in labelled.dataset])
    classifier = Classifier(host.double().to(gpu.device), labelled.classes, labelled.templates)

    def found(attack: Attack, norm: Any, eps: float) -> Tensor:
        return classifier.attack(pixels, labels, attack, Threat(norm=norm, eps=eps), "fp32").cpu()

    with monkeypatch.context() as patch:
        patch.setattr(module, "OFTEN", 1)
        for norm, eps in (("linf", 6 / 255), ("l2", 0.5)):
            for attack in (PGD(steps=6), BOUND, SMALL_AUTOATTACK):
                with replayed(classifier.model):
                    images = found(attack, norm, eps)
                assert torch.allclose(images, found(attack, norm, eps), rtol=0, atol=1e-9)
    assert gpu.sham is None or recordings.steps


@pytest.mark.parametrize(("precision", "often"), [("fp32", 1), ("fp32", 100), ("bf16", 1)])
def test_attacks(
    precision: Any,
    often: int,
    gpu: Gpu,
    tiny_folder: Path,
    recordings: Recordings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a radius at which some of the images are fooled; in float64 for "fp32"."""
    host = load_model(tiny_folder, device="cpu")
    labelled = labelled_by(host, 12, classes=("cat", "dog", "house", "tree", "boat"))
    model = host.to(gpu.device) if precision == "bf16" else host.double().to(gpu.device)

    def outcome(graphs: bool) -> list[dict[str, list[int]]]:
        how = {"precision": precision, "batch_size": 12, "graphs": graphs}
        cells = evaluate(model, labelled, ATTACKS, [6 / 255], **how)
        assert all(0 < cell.correct < cell.n for cell in cells)
        return [cell.per_class for cell in cells]

    with monkeypatch.context() as patch:
        patch.setattr(module, "OFTEN", often)
        assert outcome(graphs=True) == outcome(graphs=False)
    if gpu.sham is not None:
        assert len({shape[0] for shape, _ in recordings.recorded}) > 2
        made = {name for name, _ in recordings.steps}
        assert made == ({"step", "_advance", "_differentiate", "_cross", "_ask"} if often == 1 else set())


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("advflyp", {}),
        ("advflyp", {"method.soft_targets": 0.5}),
        ("fare", {}),
        ("advflyp", {"attack.steps": 1, "attack.start": "zero", "attack.share_clean_forward": True}),
        ("advflyp", {"train.batch_norm": "update"}),
    ],
    ids=str,
)
def test_training(
    method: str,
    keys: dict[str, object],
    open_trainer: Callable[..., TrainingRun],
    gpu: Gpu,
    recordings: Recordings,
) -> None:
    waits: list[int] = []  # of the last step for the device

    def weights(graphs: bool) -> dict[str, Tensor]:
        run = open_trainer(method, **keys, **{"train.graphs": graphs})
        for batch in run.pairs.epoch(0):
            with gpu.recording() as syncs:
                update(run, batch)
            run.state.step += 1
        waits.append(len(syncs))
        assert run.meter.flops_of_last > 0
        run.close()
        return {name: value.cpu() for name, value in run.model.state_dict().items()}

    plain, replayed = weights(False), weights(True)
    assert all(torch.equal(replayed[name], plain[name]) for name in plain)
    assert waits[0] == waits[1]
    assert gpu.sham is None or recordings.replayed >= 3


def test_padded_sizes() -> None:
    sizes = [padded_size(count) for count in range(1, 1025)]
    assert all(count <= size <= max(8, count * 1.25) for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 29


def test_weights_that_autocast_has_cast_are_kept(
    recordings_of_a_processor: Recordings, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings read them, and torch drops them when the outermost autocast ends: after each attack, by itself."""
    monkeypatch.setattr(of_classifier, "check_device", lambda device, key: None)
    tiny = load_model(tiny_folder, device="cpu")
    classifier = Classifier(tiny, ["cat", "dog", "house"], ["a {}"])
    images = torch.rand(4, 3, *tiny.image_size, generator=torch.Generator().manual_seed(0))
    labels = classifier.logits_fp32(images).argmax(1)
    with of_classifier.replayed(tiny):
        first, second = (
            classifier.attack(images, labels, PGD(steps=2), Threat(eps=1e-6), "bf16") for _ in range(2)
        )
    assert torch.equal(first, second) and not torch.equal(first, images)


# Of one step: kernels launched one by one, for towers of two and six blocks; with the tower's passes replayed; and with
# the step itself replayed.
OF_AN_ATTACK = {
    "pgd": (PGD(steps=1), (109, 193, 49, 7)),
    "apgd-ce": (APGD(steps=1), (125, 209, 65, 8)),
    "apgd-t": (TargetedAPGD(steps=1, targets=1), (148, 232, 88, 8)),
    "fab-t": (FAB(steps=1, targets=1), (326, 450, 238, 8)),
    "square": (Square(queries=1), (103, 143, 75, 46)),
}


@pytest.mark.parametrize("blocks", [2, pytest.param(6, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", OF_AN_ATTACK)
def test_launches_of_an_attack(
    name: str,
    blocks: int,
    recordings_of_a_processor: Recordings,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing is found, and without APGD's checkpoints: a GPU waits for its host to launch them."""
    monkeypatch.setattr(apgd, "_checkpoint", lambda at, window: None)
    attack, (two, six, tower, step) = OF_AN_ATTACK[name]
    tiny = load_model(tiny_folder if blocks == 2 else "mini-vit", device="cpu").requires_grad_(False)
    labelled = labelled_by(tiny, 2, classes=("cat", "dog", "house", "tree", "boat"))
    pixels = torch.stack([tiny.preprocess(image) for image, _ in labelled.dataset])
    labels = torch.tensor([label for _, label in labelled.dataset])
    classifier = Classifier(tiny, labelled.classes, labelled.templates)
    recordings, length = recordings_of_a_processor, "queries" if name == "square" else "steps"

    def launches(steps: int) -> int:
        recordings.replays.kernels = recordings.replayed = 0
        with Dispatched() as found:
            classifier.attack(pixels, labels, replace(attack, **{length: steps}), Threat(eps=1e-6), "fp32")
        return found.kernels - recordings.replays.kernels + recordings.replayed

    def launches_of_a_step(graphs: Graphs | None, often: int) -> int:
        monkeypatch.setattr(module, "OFTEN", often)
        with tiny.replaying(graphs):
            launches(3)
            return launches(3) - launches(2)

    found = [launches_of_a_step(graphs, often) for graphs, often in ((None, 99), (Graphs(pads=True), 99))]
    assert [*found, launches_of_a_step(Graphs(pads=True), 0)] == [two if blocks == 2 else six, tower, step]
