"""Evaluations on a GPU: every attack finds what it finds on a CPU, in float64; retrieval; classification of a set."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.apgd import APGD, TargetedAPGD
from advflyp.attack.autoattack import AutoAttack
from advflyp.attack.base import Attack, Noise
from advflyp.attack.elsewhere import CrossPrompt, Transfer
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.fab import FAB
from advflyp.attack.pgd import CW, PGD
from advflyp.attack.square import Square
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.typographic import Typographic
from advflyp.attack.universal import universal_perturbation
from advflyp.attack.victim import Victim
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.pixels import on_device
from advflyp.evaluation.retrieval import retrieval
from advflyp.model.load import load_model
from devices.conftest import Gpu
from devices.sham import Sync
from evaluation.test_retrieval import write_pairs
from helpers import labelled_by

CLASSES, TEMPLATES = ["cat", "dog", "house", "tree", "boat"], ["a {}"]
# At these radii each attack fools the tiny model on some of the images, not on all.
EPS = {"linf": 2 / 255, "l2": 0.3}
EPS_WITHOUT_GRADIENTS = {"linf": 24 / 255, "l2": 9.0}
ATTACKS: dict[str, Attack] = {
    "pgd": PGD(steps=3),
    "cw": CW(steps=3),
    "apgd-ce": APGD(steps=6),
    "apgd-dlr-eot2": APGD(loss="dlr", steps=4, eot=2),
    "apgd-t": TargetedAPGD(targets=2, steps=4),
    "fab-t": FAB(targets=2, steps=3),
    "square": Square(queries=12),
}


def with_steps(attack: Attack, threat: Threat) -> Attack:
    """PGD with steps that fit the radius."""
    return replace(attack, step_size=threat.eps / 2) if isinstance(attack, PGD) else attack


def images(n: int = 12) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_what_it_finds_on_a_cpu(name: str, norm: Any, gpu: Gpu, tiny_folder: Path) -> None:
    threat = Threat(norm=norm, eps=(EPS_WITHOUT_GRADIENTS if name == "square" else EPS)[norm])
    attack = with_steps(ATTACKS[name], threat)
    host = load_model(tiny_folder, device="cpu").double()
    found = []
    for device in (torch.device("cpu"), gpu.device):
        classifier = Classifier(deepcopy(host).to(device), CLASSES, TEMPLATES)
        pixels = images().to(device)
        labels = classifier.logits(pixels).argmax(1)
        streams = Streams(3, torch.arange(len(pixels), device=device))
        found.append(attack.perturb(Victim(classifier.logits), pixels, labels, threat, streams=streams))
        assert found[-1].device == device and threat.contains(pixels, found[-1]).all()
        assert 0 < (classifier.logits(found[-1]).argmax(1) != labels).sum() < len(pixels)
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=0, atol=1e-9)


BEHIND_THE_LOGITS: dict[str, Attack] = {
    "encoder": EncoderPGD(steps=3),
    "encoder-both": EncoderPGD(steps=3, tokens="both"),
    "lse-terms": PGD(steps=3, loss="lse", against=DefenceTerms(terms=("attention", "feature"))),
    "apgd-lse-terms": APGD(steps=4, loss="lse", against=DefenceTerms(terms=("feature",))),
    "cross-prompt": CrossPrompt(attack=PGD(steps=3), templates=("the {}", "some {}")),
    "cross-prompt-encoder": CrossPrompt(attack=EncoderPGD(steps=3), templates=("the {}",)),
    "typographic": Typographic(),
    "noise": Noise(),
}


@pytest.mark.parametrize("name", [*BEHIND_THE_LOGITS, "transfer", "universal"])
def test_an_attack_behind_the_logits_finds_what_it_finds_on_a_cpu(
    name: str, gpu: Gpu, tiny_folder: Path
) -> None:
    """A surrogate is given on the CPU, where it stays."""
    threat, host = Threat(eps=8 / 255), load_model(tiny_folder, device="cpu").double()
    surrogate = deepcopy(host)
    with torch.no_grad():
        for weights in surrogate.visual.parameters():
            weights.mul_(1.25)
    found = []
    for device in (torch.device("cpu"), gpu.device):
        classifier = deepcopy(host).to(device).classifier(CLASSES, TEMPLATES)
        pixels = images().to(device)
        labels = classifier(pixels).argmax(1)
        victim, streams = Victim(classifier, encoder=classifier), Streams(3, torch.arange(12, device=device))
        if name == "universal":
            attack: Attack = universal_perturbation(classifier, pixels, labels, threat, steps=3, batch_size=5)
        elif name == "transfer":
            attack = Transfer(attack=PGD(steps=3), model=surrogate)
        else:
            attack = BEHIND_THE_LOGITS[name]
        found.append(attack.perturb(victim, pixels, labels, threat, streams=streams))
        assert found[-1].device == device and threat.contains(pixels, found[-1]).all()
        assert not torch.equal(found[-1], pixels)
    torch.testing.assert_close(found[1].cpu(), found[0], rtol=0, atol=1e-9)
    assert {weights.device.type for weights in surrogate.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_set_is_judged_on_a_gpu(precision: Any, gpu: Gpu, tiny_folder: Path) -> None:
    """A search in bf16 finds other points than a CPU's; what it says of them is said in float32."""
    labelled = labelled_by(load_model(tiny_folder, device="cpu"), 12)
    model = load_model(tiny_folder, device=gpu.device)
    evaluator = Evaluator(model, labelled, batch_size=5)
    threat = Threat(eps=64 / 255)
    clean = evaluator.run(find_attack("clean"), None)
    assert torch.equal(clean.attacked, clean.label)
    outcome = evaluator.run(find_attack("pgd3"), threat, precision=precision)
    assert outcome.attacked.device.type == "cpu" and (~outcome.correct).any()
    _, pixels, labels = next(iter(labelled.batches(model.preprocess, 12)))
    pixels, labels = pixels.to(gpu.device), labels.to(gpu.device)
    found = evaluator.attack(pixels, labels, find_attack("pgd3"), threat, precision)
    assert torch.equal(evaluator.logits_fp32(found).argmax(1).cpu(), outcome.attacked)


def test_an_evaluation_sends_pinned_bytes(
    gpu: Gpu, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is copied while the device computes, in a quarter of the bytes; its pixels are a CPU's."""
    labelled = labelled_by(load_model(tiny_folder, device="cpu"), 12)
    evaluator = Evaluator(load_model(tiny_folder, device=gpu.device), labelled, batch_size=5)
    seen: list[tuple[torch.dtype, Tensor]] = []

    def send(pixels: Tensor, device: torch.device) -> Tensor:
        with gpu.recording() as syncs:
            found = on_device(pixels, device)
        assert syncs == [], "\n".join(map(str, syncs))
        seen.append((pixels.dtype, found.cpu()))
        return found

    with monkeypatch.context() as patch:
        patch.setattr("advflyp.evaluation.evaluator.on_device", send)
        evaluator.run(find_attack("clean"), None)
    assert [kind for kind, _ in seen] == [torch.uint8] * 3
    ((_, expected, _),) = labelled.batches(evaluator.transform, 12)
    assert torch.equal(torch.cat([found for _, found in seen]), expected)


def test_autoattack_takes_any_classifier(gpu: Gpu, tiny_folder: Path) -> None:
    classifier = Classifier(load_model(tiny_folder, device=gpu.device), CLASSES, TEMPLATES)
    pixels = images(4).float().to(gpu.device)
    labels = classifier.logits(pixels).argmax(1)
    threat = Threat(eps=32 / 255)
    found = AutoAttack(members=("apgd-ce",))(classifier.logits, pixels, labels, threat)
    assert threat.contains(pixels, found).all() and (classifier.logits(found).argmax(1) != labels).all()


def test_retrieval_on_a_gpu(gpu: Gpu, tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", load_model(tiny_folder, device="cpu"), n=12, candidates=100)
    cells = [
        retrieval(
            load_model(tiny_folder, device=device),
            folder,
            ["clean", "pgd2", "cw2"],
            [16 / 255],
            batch_size=5,
            precision="fp32",
        )
        for device in (torch.device("cpu"), gpu.device)
    ]
    hits = [
        [sum(one.hits for one in (*cell.image_to_text, *cell.text_to_image)) for cell in on_device]
        for on_device in cells
    ]
    assert cells[0][0].checkpoint_sha256 == cells[1][0].checkpoint_sha256
    # A difference of cosines that float32 might round away does not count.
    assert hits[1][0] == hits[0][0]
    assert max(hits[1][1:]) < hits[1][0], "attacked images are found less often"
    assert gpu.sham is None or hits[1] == hits[0]


@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "linf") for name in ATTACKS), ("fab-t", "l2"), ("square", "l2")]
)
@pytest.mark.parametrize("judged", [False, True])
def test_an_attack_synchronises_once_an_iteration(
    judged: bool, name: str, norm: Any, gpu: Gpu, tiny_folder: Path
) -> None:
    """To know whether anything was found, and a second time where the finds are judged in another precision."""
    classifier = Classifier(load_model(tiny_folder, device=gpu.device), CLASSES, TEMPLATES)
    pixels = images(3).float().to(gpu.device)
    labels = classifier.logits(pixels).argmax(1)
    victim = Victim(classifier.logits, classifier.logits_fp32 if judged else None)
    few, many = (
        syncs_of(gpu, ATTACKS[name], steps, victim, pixels, labels, Threat(norm=norm, eps=1e-4))
        for steps in (1, 2)
    )
    targets, passes = (2 if name.endswith("-t") else 1), (2 if name == "fab-t" else 1)
    finds = 0 if name == "apgd-dlr-eot2" else 1  # a find does not end that search
    expected = targets * passes * (finds + (judged or name == "fab-t"))
    assert len(many) - len(few) == expected, "\n".join(map(str, many))


def syncs_of(
    gpu: Gpu,
    attack: Attack,
    steps: int,
    victim: Victim,
    pixels: Tensor,
    labels: Tensor,
    threat: Threat,
) -> list[Sync]:
    streams = Streams(0, torch.arange(len(pixels), device=gpu.device))
    attack = replace(
        with_steps(attack, threat), **{"queries" if isinstance(attack, Square) else "steps": steps}
    )
    with gpu.recording() as syncs:
        found = attack.perturb(victim, pixels, labels, threat, streams=streams)
    assert torch.equal(victim(found).argmax(1), labels)
    return syncs
