"""The attack on the encoder alone, on the bundled models."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from advflyp.attack.base import Noise
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.clip import CLIP
from attack.mini import correct_on
from helpers import assert_equal64, labelled_by

EPS = Threat(eps=4 / 255)


@pytest.mark.parametrize(
    ("model", "tokens"), [("mini", "image"), ("mini-vit", "patches"), ("mini-vit", "both")]
)
def test_it_turns_embeddings_away_and_fools_the_classifier_more_than_noise(model: str, tokens: str) -> None:
    clip, food, images, labels = correct_on(model)
    classifier = clip.classifier(food.classes, food.templates)
    cosines, accuracy = {}, {}
    for attack in (EncoderPGD(tokens=tokens, steps=10), Noise()):  # type: ignore[arg-type]
        found = attack(classifier, images, labels, EPS)
        assert EPS.contains(images, found).all()
        with torch.no_grad():
            clean, moved = (clip.encode_tokens(x, tokens != "image") for x in (images, found))
            cosines[attack.name] = F.cosine_similarity(clean, moved, dim=-1).mean().item()
            accuracy[attack.name] = (classifier(found).argmax(1) == labels).float().mean().item()
    attacked, noise = cosines.values()
    assert attacked < noise - 0.2
    attacked, noise = accuracy.values()
    assert attacked < noise - 0.4


def test_the_objective_against_its_equation() -> None:
    """One step follows the sign of the slope of Σ 1 − cos at the start, for image and patches."""
    weights = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def encode(x: torch.Tensor, patches: bool) -> torch.Tensor:
        return F.normalize(torch.einsum("nc,lcd->nld", x.flatten(1), weights[: 3 if patches else 1]), dim=-1)

    threat, streams = Threat(eps=0.1), Streams(0, torch.arange(2))
    start = threat.random_start(images, Streams(0, torch.arange(2)))
    victim = Victim(lambda x: x.flatten(1), encoder=SimpleNamespace(encode_tokens=encode))  # type: ignore[arg-type]
    found = EncoderPGD(tokens="both", steps=1, step_size=0.01).perturb(
        victim, images, torch.zeros(2, dtype=torch.int64), threat, streams=streams
    )
    leaf = start.clone().requires_grad_()
    loss = 0.0
    for token, weight in enumerate(weights):
        here, clean = leaf.flatten(1) @ weight, images.flatten(1) @ weight
        cosine = (here * clean).sum(1) / here.norm(dim=1) / clean.norm(dim=1)
        loss = loss + (1 - cosine).sum() / (1 if token == 0 else 2)
    assert isinstance(loss, torch.Tensor)
    (slope,) = torch.autograd.grad(loss, leaf)
    assert_equal64(found, threat.project(images, start + 0.01 * slope.sign()))


def test_an_evaluation_runs_it_by_name(tiny: CLIP) -> None:
    evaluator = Evaluator(tiny, labelled_by(tiny, 20), batch_size=7)
    attack = find_attack("Encoder-5")
    assert attack == EncoderPGD(steps=5) and attack.name == "encoder5"
    assert find_attack("encoder-patches3x2") == EncoderPGD(tokens="patches", steps=3, restarts=2)
    robust = evaluator.run(attack, EPS, precision="fp32").accuracy
    assert robust < evaluator.run(Noise(), EPS, precision="fp32").accuracy
    assert attack.arguments(EPS, 3)["step_size"] == 1 / 255


def test_what_has_no_encoder_or_no_patches_says_so() -> None:
    clip, food, images, labels = correct_on("mini")
    with pytest.raises(
        ValueError, match=r"needs the image encoder behind the classifier: attack model.classifier"
    ):
        EncoderPGD()(lambda x: clip.classifier(food.classes, food.templates)(x), images[:1], labels[:1], EPS)
    with pytest.raises(ValueError, match="has no patch tokens; choose a ViT"):
        EncoderPGD(tokens="patches")(
            clip.classifier(food.classes, food.templates), images[:1], labels[:1], EPS
        )
    with pytest.raises(ValueError, match="tokens is 'image', 'patches' or 'both', not 'cls'"):
        EncoderPGD(tokens="cls")  # type: ignore[arg-type]
