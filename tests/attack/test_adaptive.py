"""Adaptive losses: against their equations, and on the bundled ViT."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.apgd import APGD
from advflyp.attack.base import Noise
from advflyp.attack.losses import log_sum_exp
from advflyp.attack.pgd import PGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.mini import correct_on
from helpers import assert_equal64

WEIGHTS = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TEXTS = F.normalize(
    torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=-1
)
IMAGES = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def encode(x: Tensor, patches: bool) -> Tensor:
    """An image token and three of patches."""
    return F.normalize(torch.einsum("nc,lcd->nld", x.flatten(1), WEIGHTS[: 4 if patches else 1]), dim=-1)


def logits(x: Tensor) -> Tensor:
    return 10 * encode(x, False)[:, 0] @ TEXTS.T


VICTIM = Victim(logits, encoder=SimpleNamespace(weights=TEXTS, encode_tokens=encode))  # type: ignore[arg-type]
LABELS = logits(IMAGES).argmax(1)


def equation(x: Tensor, terms: tuple[str, ...], weight: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for image, clean, y in zip(x, IMAGES, LABELS.tolist(), strict=True):
        z = logits(image[None])[0]
        total = total + torch.stack([z[j].exp() for j in range(3) if j != y]).sum().log() - z[y]
        if "feature" in terms:
            total = total + weight * (encode(image[None], False) - encode(clean[None], False)).norm()
        if "attention" in terms:
            maps = []
            for one in (image, clean):
                cosines = encode(one[None], True)[0, 1:] @ TEXTS[y]
                maps.append((cosines - cosines.min()) / (cosines.max() - cosines.min()))
            total = total + weight * (maps[0] - maps[1]).norm()
    return total


@pytest.mark.parametrize("terms", [("feature",), ("attention",), ("feature", "attention")])
def test_a_step_follows_the_slope_of_the_whole_loss(terms: tuple[str, ...]) -> None:
    threat = Threat(eps=1e-3)  # nobody is fooled
    start = threat.random_start(IMAGES, Streams(0, torch.arange(4)))
    leaf = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(equation(leaf, terms, 3.0), leaf)
    attack = PGD(loss="lse", against=DefenceTerms(terms=terms, weight=3.0), steps=1, step_size=5e-4)
    found = attack.perturb(VICTIM, IMAGES, LABELS, threat, streams=Streams(0, torch.arange(4)))
    assert_equal64(found, threat.project(IMAGES, start + 5e-4 * slope.sign()))


def test_log_sum_exp_is_a_smooth_margin() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([torch.tensor([1.0, 2.0], dtype=torch.float64).logsumexp(0) - 3])
    assert_equal64(log_sum_exp(z, torch.tensor([0])), expected.double())
    assert log_sum_exp(100 * z, torch.tensor([0])).item() == pytest.approx(-100)


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_images_keep_their_own_terms_when_others_leave(kind: Any) -> None:
    """An image alone goes where it goes in company."""
    attack = kind(loss="lse", against=DefenceTerms(terms=("feature", "attention")), steps=6)
    threat = Threat(eps=0.3)
    whole = attack.perturb(VICTIM, IMAGES, LABELS, threat, streams=Streams(0, torch.arange(4)))
    for row in range(4):
        one = slice(row, row + 1)
        streams = Streams(0, torch.arange(4)[one])
        assert_equal64(attack.perturb(VICTIM, IMAGES[one], LABELS[one], threat, streams=streams), whole[one])
    assert threat.contains(IMAGES, whole).all()


def test_it_fools_the_bundled_vit_more_than_noise_and_moves_its_attention() -> None:
    clip, food, images, labels = correct_on("mini-vit")
    classifier, threat = clip.classifier(food.classes, food.templates), Threat(eps=4 / 255)
    adaptive = PGD(loss="lse", against=DefenceTerms(terms=("attention",), weight=5.0), steps=5)
    correct = {}
    for attack in (adaptive, Noise()):
        found = attack(classifier, images, labels, threat)
        assert threat.contains(images, found).all()
        with torch.no_grad():
            correct[attack.name] = int((classifier(found).argmax(1) == labels).sum())
    assert correct["pgd-lse-attention5-5"] < correct["noise"] - 3


def test_what_results_record() -> None:
    assert PGD().arguments(Threat(eps=0.1), 3).keys() == {
        "loss",
        "steps",
        "step_size",
        "restarts",
        "random_start",
    }
    assert APGD().arguments(Threat(eps=0.1), 3)["apgd-ce"].keys() == {"loss", "steps", "eot"}

    def drift(victim: Victim, images: Tensor, labels: Tensor) -> Any:
        return lambda candidates, rows: (victim(candidates) - victim(images).detach()[rows]).norm(dim=1)

    attack = APGD(loss="lse", against=DefenceTerms(terms=("attention", drift), weight=0.5))
    recorded = attack.arguments(Threat(eps=0.1), 3)["apgd-lse-attention-drift0.5"]["against"]
    assert attack.name == "apgd-lse-attention-drift0.5"
    assert recorded["weight"] == 0.5 and len(recorded["drift"]) == 64
    assert (
        DefenceTerms(terms=["feature"]) == DefenceTerms(terms="feature") == DefenceTerms(terms=("feature",))
    )  # type: ignore[arg-type]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="there is no term 'atention'; did you mean 'attention'"):
        DefenceTerms(terms=("atention",))
    with pytest.raises(ValueError, match="name at least one term: feature, attention"):
        DefenceTerms(terms=())
    attack = PGD(against=DefenceTerms(terms=("feature",)))
    with pytest.raises(ValueError, match="needs the image encoder behind the classifier"):
        attack(logits, IMAGES, LABELS, Threat(eps=0.1))
