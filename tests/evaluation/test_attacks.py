from dataclasses import replace

import pytest
import torch
from torch import Tensor

from advflyp.attack.autoattack import AutoAttack
from advflyp.attack.base import Custom
from advflyp.attack.elsewhere import CrossPrompt
from advflyp.attack.losses import cross_entropy, margin
from advflyp.attack.pgd import CW, PGD
from advflyp.attack.square import Square
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.evaluation.attacks import conditions, find_attack, recorded_arguments
from advflyp.identity import source_sha256

LINF, L2 = Threat(eps=4 / 255), Threat(norm="l2", eps=0.5)


@pytest.mark.parametrize(
    ("name", "stages", "arguments"),
    [
        ("noise", 1, {}),
        ("fgsm", 1, {"loss": "cross-entropy", "steps": 1, "step_size": 4 / 255, "random_start": False}),
        ("pgd10", 1, {"loss": "cross-entropy", "steps": 10, "restarts": 1}),
        ("cw10", 1, {"loss": "margin", "steps": 10, "restarts": 1}),
        ("pgd7x3", 3, {"loss": "cross-entropy", "steps": 7, "restarts": 3}),
        (
            "encoder-both5x2",
            2,
            {"loss": "cosine distance", "tokens": "both", "steps": 5, "step_size": 1 / 255},
        ),
        ("pgd-lse-10", 1, {"loss": "log-sum-exp", "steps": 10}),
        ("pgd-lse-attention-3", 1, {"against": {"terms": "attention", "weight": 1.0}}),
        ("autoattack", 4, ["apgd-ce", "apgd-t", "fab-t", "square"]),
        ("square+apgd-ce", 2, ["square", "apgd-ce"]),
    ],
)
def test_names(name: str, stages: int, arguments) -> None:
    attack = find_attack(name)
    assert attack.name == name and attack.perturbs
    assert len(attack.stages(LINF)) == stages
    recorded = attack.arguments(LINF, 10)
    if isinstance(arguments, list):
        assert list(recorded) == arguments
    else:
        assert arguments.items() <= recorded.items()


def test_clean_is_no_attack() -> None:
    assert not find_attack("clean").perturbs
    assert find_attack("clean").arguments(None, 10) == {}


def test_autoattack_targets_follow_the_classes() -> None:
    attack = find_attack("autoattack")
    assert attack.arguments(LINF, 10)["apgd-t"]["targets"] == 9
    assert attack.arguments(LINF, 4)["apgd-t"]["targets"] == 3
    assert attack.arguments(LINF, 1000)["apgd-t"]["targets"] == 9


def test_each_condition_once() -> None:
    attacks = [find_attack(name) for name in ("clean", "pgd10", "PGD-10", "clean", "cw10")]
    attacks += [PGD(loss="margin"), CW(steps=10)]
    found = conditions(attacks, "linf", [1 / 255, 1 / 255, 2 / 255])
    assert [(attack.name, threat and threat.eps) for attack, threat in found] == [
        ("clean", None), ("pgd10", 1 / 255), ("pgd10", 2 / 255), ("cw10", 1 / 255), ("cw10", 2 / 255),
    ]  # fmt: skip
    assert len(conditions([find_attack("pgd2@mini") for _ in range(2)], "linf", [1 / 255])) == 1
    attacks = [
        Custom(function=function, called="mine")
        for function in (
            lambda victim, images, labels, threat, streams: images,
            lambda victim, images, labels, threat, streams: images,
            lambda victim, images, labels, threat, streams: 1 - images,
        )
    ]
    assert [attack for attack, _ in conditions(attacks, "linf", [1 / 255])] == [attacks[0], attacks[2]]


def test_the_papers_step_size_and_one_for_l2() -> None:
    assert find_attack("pgd10").arguments(LINF, 3)["step_size"] == 1 / 255
    assert find_attack("pgd10").arguments(L2, 3)["step_size"] == 0.125


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "there is no attack 'pgd'; did you mean 'pgd10'"),
        ("cw", "did you mean 'cw10'"),
        ("autoatack", "did you mean 'autoattack'"),
        ("pgd0", "'pgd0': the number of steps lies between 1 and 1,000,000,000"),
        ("encoder-both5x0", "the number of restarts lies between 1 and"),
        ("pgd-lse-99999999999", "the number of steps lies between 1 and"),
        ("pgd" + "9" * 5000, "there is no attack"),
        ("encoder5@openai", "uses no prompts"),
        ("apgd-ce+pgd10", "has no member 'pgd10'; known: apgd-ce,"),
        ("apgd-ce+sqare", "has no member 'sqare'; did you mean 'square'"),
        ("fgms", "did you mean 'fgsm'"),
        ("typografic", "did you mean 'typographic'"),
        ("bim", "known: clean, noise, fgsm, pgdN"),
    ],
)
def test_mistakes(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_attack(name)


def test_cw_raises_the_margin_and_pgd_the_cross_entropy() -> None:
    """On logits whose gradients of the two losses differ in sign for one pixel, each follows its own."""
    # Classes: own, runner-up, a third; the pixel lowers the runner-up while it raises the third still more.
    slopes = torch.tensor([[0.0, 1.0], [0.6, -0.2], [-0.2, 5.0]])
    bias = torch.tensor([1.0, 0.9, 0.7])

    def logits(images: torch.Tensor) -> torch.Tensor:
        return bias + 20 * (images[:, 0, 0] - 0.5) @ slopes.T

    images, labels = torch.full((1, 3, 1, 2), 0.5), torch.tensor([0])
    threat = Threat(eps=1e-3)
    moved = {}
    for name, loss in (("pgd1", cross_entropy), ("cw1", margin)):
        (stage,) = replace(find_attack(name), random_start=False).stages(threat)
        found = stage(Victim(logits), images, labels, threat, streams=Streams(0, torch.arange(1)))
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(logits(leaf), labels).sum(), leaf)
        moved[name] = (found - images)[0, 0, 0]
        assert torch.equal(moved[name].sign(), gradient[0, 0, 0].sign())
    assert moved["pgd1"][1] > 0 > moved["cw1"][1]


def test_noise_is_a_draw_from_the_ball() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (stage,) = find_attack("noise").stages(LINF)
    seen = []
    victim = Victim(lambda x: seen.append(x) or torch.zeros(len(x), 2))
    found = stage(
        victim, images, torch.zeros(4, dtype=torch.int64), LINF, streams=Streams(0, torch.arange(4))
    )
    assert not seen, "noise asks nothing of the model"
    assert LINF.contains(images, found).all()
    assert (found - images).abs().max() > 3.9 / 255


def test_fgsm_is_one_step_of_the_slopes_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 2, 2, generator=generator)
    slopes = torch.randn(12, 3, generator=generator)
    labels = (images.flatten(1) @ slopes).argmax(1)
    (stage,) = find_attack("FGSM").stages(LINF)
    victim = Victim(lambda x: x.flatten(1) @ slopes)
    found = stage(victim, images, labels, LINF, streams=Streams(0, torch.arange(4)))
    leaf = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(leaf.flatten(1) @ slopes, labels).backward()
    assert leaf.grad is not None
    expected = (images + 4 / 255 * leaf.grad.sign()).clamp(0, 1)
    assert torch.equal(found, expected)


class Nothing(PGD):
    """PGD by name and parameters, but not by what it does."""

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        return images


class Squares(Square):
    pass


def test_a_users_subclass_is_another_measurement() -> None:
    """Alone, as a member of an ensemble, and where it searches on a surrogate."""
    threat = Threat(eps=1 / 255)
    ensembles = [AutoAttack(members=(one,)) for one in (Square(queries=5), Squares(queries=5))]
    under = [CrossPrompt(attack=one, templates="a {}") for one in (PGD(), Nothing())]
    for ours, own in ((PGD(), Nothing()), ensembles, under):
        assert ours.name == own.name and ours.arguments(threat, 3) == own.arguments(threat, 3)
        assert [attack for attack, _ in conditions([ours, own, ours], "linf", [1 / 255])] == [ours, own]
        assert "source_sha256" not in recorded_arguments(ours, threat, 3)
        (sha256,) = recorded_arguments(own, threat, 3)["source_sha256"].values()
        assert sha256 == source_sha256(Nothing), "that of this file"
