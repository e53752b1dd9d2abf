"""Attacks searched under other prompts and on another model."""

from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch

from advflyp.attack.apgd import APGD
from advflyp.attack.base import Noise
from advflyp.attack.elsewhere import CrossPrompt, Transfer
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.pgd import PGD
from advflyp.attack.threat import Threat
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.evaluation.evaluator import Evaluator
from advflyp.identity import state_sha256
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from attack.mini import correct_on
from helpers import labelled_by

EPS = Threat(eps=4 / 255)
TEMPLATES = ("a photo of a {}.", "a blurry picture of the {}.")


def right(classifier: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    with torch.no_grad():
        return int((classifier(images).argmax(1) == labels).sum())


def test_what_was_made_against_other_prompts_fools_more_than_noise() -> None:
    clip, food, images, labels = correct_on("mini")
    judged = clip.classifier(food.classes, food.templates)
    attack = CrossPrompt(attack=PGD(steps=5), templates=list(TEMPLATES))
    found = attack(judged, images, labels, EPS)
    assert EPS.contains(images, found).all()
    assert right(judged, found, labels) < right(judged, Noise()(judged, images, labels, EPS), labels) - 3
    # It is PGD on the classifier of these prompts, all steps of it.
    searched = clip.classifier(food.classes, TEMPLATES)
    slopes = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(searched(slopes), labels, reduction="sum").backward()
    one = CrossPrompt(attack=PGD(steps=1, random_start=False), templates=TEMPLATES)(
        judged, images, labels, EPS
    )
    assert slopes.grad is not None
    expected = EPS.project(images, images + slopes.grad.sign() / 255)
    # A slope near 0 has either sign, as its terms are added in one order or another.
    assert (one == expected).float().mean() > 0.99


def test_what_was_made_on_another_model_fools_more_than_noise() -> None:
    clip, food, images, labels = correct_on("mini")
    other, *_ = correct_on("mini-vit")
    judged = clip.classifier(food.classes, food.templates)
    wide = Threat(eps=16 / 255)
    attack = Transfer(attack=PGD(steps=20), model=other)
    found = attack(judged, images, labels, wide)
    assert wide.contains(images, found).all()
    assert right(judged, found, labels) < right(judged, Noise()(judged, images, labels, wide), labels)
    # On the surrogate itself it is white-box.
    assert right(other.classifier(food.classes, food.templates), found, labels) == 0
    assert torch.equal(found[:3], attack(judged, images[:3], labels[:3], wide)), (
        "whatever else is in the batch"
    )


def test_an_evaluation_runs_them_by_name(tiny: CLIP, tiny_folder) -> None:
    evaluator = Evaluator(tiny, labelled_by(tiny, 12), batch_size=5)
    for name in ("pgd3@openai", f"pgd3@{tiny_folder}", f"encoder3@{tiny_folder}"):
        attack = find_attack(name)
        assert attack.name == name
        assert 0 <= evaluator.run(attack, EPS, precision="fp32").accuracy < 1
    assert len(find_attack("pgd3@openai").arguments(EPS, 3)["searched_under"]) == 80
    assert len(find_attack(f"cw3@{tiny_folder}").arguments(EPS, 3)["surrogate_sha256"]) == 64
    found = find_attack(f"encoder-patches3@{tiny_folder}")
    assert isinstance(found.attack, EncoderPGD)  # type: ignore[attr-defined]


def test_restarts_are_run_and_named_whoever_asks_for_them() -> None:
    named = find_attack("pgd3x5@openai")
    templates = named.templates  # type: ignore[attr-defined]
    inner = CrossPrompt(attack=PGD(steps=3, restarts=5), templates=templates, called="openai")
    outer = CrossPrompt(attack=PGD(steps=3), templates=templates, called="openai", restarts=5)
    for attack in (named, inner, outer):
        assert len(attack.stages(EPS)) == 5
        assert attack.name == "pgd3x5@openai" and attack.arguments(EPS, 3)["restarts"] == 5
    assert len(find_attack("pgd3@openai").stages(EPS)) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_surrogate_computes_in_the_precision_of_the_search(
    tiny: CLIP, tiny_folder: Path, precision: Literal["fp32", "bf16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what results record."""
    other, used = load_model(tiny_folder), set()
    real = other.encode_image

    def encode(images: torch.Tensor) -> torch.Tensor:
        used.add(other.precision)
        return real(images)

    monkeypatch.setattr(other, "encode_image", encode)
    Evaluator(tiny, labelled_by(tiny, 4)).run(
        Transfer(attack=PGD(steps=2), model=other), EPS, precision=precision
    )
    assert used == {precision}


@pytest.mark.parametrize("where", ["prompts", "model"])
def test_a_class_that_is_never_predicted_is_none_of_the_surrogate(where: str) -> None:
    """With its name the label would tie, and the margin have no slope."""
    clip, _, images, _ = correct_on("mini-vit")
    template, names = "a photo of a {}", ["picture", "cat", "dog"]
    inner, threat = PGD(steps=3, loss="margin", random_start=False), Threat(eps=2 / 255)
    attack = (
        CrossPrompt(attack=inner, templates=[template])
        if where == "prompts"
        else Transfer(attack=inner, model=clip)
    )

    def found(names: list[str], repeated: list[int]) -> torch.Tensor:
        classifier = Classifier(clip, names, [template], repeated=repeated)
        return classifier.attack(images, torch.zeros(len(images)).long(), attack, threat, precision="fp32")

    with_repeated = found([*names, "picture"], [3])
    assert (with_repeated - images).abs().max() > 1.9 / 255
    # Slopes near 0 have either sign.
    assert (with_repeated == found(names, [])).float().mean() > 0.99


def test_a_surrogate_in_training_mode_is_attacked_in_evaluation_mode() -> None:
    clip, food, images, labels = correct_on("mini")
    judged = clip.classifier(food.classes, food.templates)
    found = []
    for training in (False, True):
        other = deepcopy(correct_on("mini")[0]).train(training)
        before = state_sha256(other.net.state_dict())
        attack = Transfer(attack=PGD(steps=2), model=other)
        found += [attack(judged, images, labels, EPS)]
        assert state_sha256(other.net.state_dict()) == before and other.training is training
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["autoattack@openai", "clean@openai", "pgd10@"])
def test_mistakes(name: str) -> None:
    with pytest.raises(
        ValueError,
        match="write pgdN, cwN, pgd-lse-N, fgsm or encoderN before the @, and openai or a model after it",
    ):
        find_attack(name)


def test_objects_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="CrossPrompt takes PGD or EncoderPGD, not APGD, which returns only"):
        CrossPrompt(attack=APGD(), templates=TEMPLATES)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must contain {} exactly once"):
        CrossPrompt(attack=PGD(), templates=["a photo"])
    assert CrossPrompt(attack=PGD(), templates="a {}").templates == ("a {}",)
    assert len(CrossPrompt(attack=PGD(), templates="openai").templates) == 80
