"""Attacks as objects on any classifier: what they take, what they leave alone, what they refuse."""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import advflyp
from advflyp import APGD, CW, FAB, FGSM, PGD, AutoAttack, Square, TargetedAPGD, Threat
from advflyp.attack.base import Attack, Custom
from advflyp.attack.pgd import pgd
from advflyp.attack.victim import predicted
from advflyp.identity import source_sha256
from attack.classifiers import pictures
from helpers import assert_equal64

THREAT = Threat(eps=24 / 255)
SMALL = AutoAttack(
    members=(APGD(steps=4), TargetedAPGD(steps=3, targets=2), FAB(steps=2, targets=2), Square(queries=20))
)
ATTACKS: list[Attack] = [
    PGD(steps=3, step_size=0.05),
    CW(steps=3, step_size=0.05),
    FGSM(),
    APGD(loss="dlr", steps=3),
    SMALL,
]


def tiny_timm(classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("resnet10t", num_classes=classes, in_chans=3)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_autoattack_on_a_classifier_of_timm(classes: int) -> None:
    net = tiny_timm(classes).train()
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # The images are near the boundaries.
        net.get_classifier().bias -= net.eval()(images).mean(0)  # type: ignore[operator]
        labels = net(images).argmax(1)
    labels[0] = (labels[0] + 1) % classes
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    found = SMALL(net, images, labels, THREAT, seed=1)
    assert net.training and all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(found[0], images[0]), "misclassified from the start"
    assert THREAT.contains(images, found).all() and found.dtype == images.dtype
    with torch.no_grad():
        fooled = net.eval()(found).argmax(1) != labels
    assert fooled[1:].any()
    assert torch.equal((found != images).flatten(1).any(1)[1:], fooled[1:])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name[:12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_callable_in_batches_of_any_size(robust: nn.Module, attack: Attack, dtype: torch.dtype) -> None:
    images, labels = pictures(10, 24, 5)
    images = images.to(dtype)
    classifier = lambda x: robust(x.double())  # noqa: E731
    found = attack(classifier, images, labels, THREAT, seed=5)
    assert found.dtype == dtype and not found.requires_grad and THREAT.contains(images, found).all()
    clean, after = (predicted(classifier(x).detach(), labels) == labels for x in (images, found))
    assert not (after & ~clean).any() and after.sum() < clean.sum()
    if dtype == torch.float64:
        parts = attack(classifier, images, labels, THREAT, seed=5, batch_size=7)
        torch.testing.assert_close(parts, found, rtol=0, atol=1e-9)


def test_no_images(plain: nn.Module) -> None:
    images, labels = torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.int64)
    assert PGD()(plain, images, labels, THREAT).shape == images.shape


def test_seed_index_and_generator(plain: nn.Module) -> None:
    images, labels = pictures(10, 8, 5)
    attack = PGD(steps=1, step_size=1e-4)

    def found(**options: Any) -> Tensor:
        return attack(plain, images, labels, Threat(eps=0.01), **options)

    assert torch.equal(found(), found(seed=0, index=torch.arange(8)))
    assert not torch.equal(found(), found(seed=1))
    assert not torch.equal(found(), found(index=torch.arange(8) + 1))
    drawn = [found(generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4, dtype=torch.float16)}, "takes float32 or float64 images"),
        ({"images": torch.zeros(3, 4, 4)}, r"of shape \(N, 3, H, W\), not float32 of shape \(3, 4, 4\)"),
        ({"images": torch.full((2, 3, 4, 4), 2.0)}, "pixels must be numbers from 0 to 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "one int64 label for each of the 2 images"),
        ({"labels": torch.zeros(2)}, "not float32 labels"),
        ({"labels": torch.tensor([0, 5])}, "labels must be from 0 to 4"),
        ({"classifier": lambda x: x.flatten(1)[:, :1]}, "two classes or more"),
        ({"classifier": lambda x: x}, "must give logits of shape"),
        ({"classifier": lambda x: (x.flatten(1)[:, :5],)}, "must return a tensor of logits, not a tuple"),
        ({"images": np.zeros((2, 3, 4, 4))}, "images of an attack must be a tensor, not a ndarray"),
        ({"labels": [0, 0]}, "labels of an attack must be a tensor, not a list"),
        ({"threat": 8 / 255}, r"is a Threat, such as Threat\(eps=4 / 255\), not 0.031"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"index": torch.arange(3)}, r"index must be an int64 tensor of shape \(2,\)"),
        ({"index": torch.tensor([0.0, 1.0])}, "index must be an int64 tensor"),
        ({"index": [0, 1]}, "index must be an int64 tensor"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    given = {
        "classifier": lambda x: x.flatten(1)[:, :5],
        "images": torch.zeros(2, 3, 4, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
        "threat": THREAT,
    }
    with pytest.raises(ValueError, match=message):
        PGD()(**{**given, **change})


def test_a_classifier_without_gradients_is_named() -> None:
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    images[:, 0, 0, 0] = 0.6  # the label's logit
    for attack in (PGD(), APGD()):
        with pytest.raises(ValueError, match="no gradient with respect to the pixels"):
            attack(lambda x: x.detach().flatten(1)[:, :5], images, labels, THREAT)
    # Weights have a gradient, the pixels before a rounding do not.
    net = linear()
    labels = net((images * 255).round().flatten(1)).argmax(1)
    for attack in (PGD(), APGD(), FAB()):
        with pytest.raises(ValueError, match="no gradient with respect to the pixels"):
            attack(lambda x: net((x * 255).round().detach().flatten(1)), images, labels, THREAT)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name[:12])
def test_inside_inference_mode(plain: nn.Module, attack: Attack) -> None:
    images, labels = pictures(10, 8, 5)
    index = torch.arange(8) + 3
    expected = attack(plain, images, labels, THREAT, index=index)
    with torch.inference_mode():
        found = attack(plain, images.clone(), labels.clone(), THREAT, index=index.clone())
        assert torch.is_inference_mode_enabled()
    assert_equal64(found, expected)


def test_pgd_inside_inference_mode(plain: nn.Module) -> None:
    images, labels = pictures(10, 8, 5)

    def found() -> Tensor:
        loss = lambda x: cross_entropy(plain(x), labels)  # noqa: E731
        return pgd(images.clone(), loss, THREAT, steps=3, step_size=0.01, random_start=False)

    expected = found()
    with torch.inference_mode():
        assert_equal64(found(), expected)


def test_no_grad_holds_inside_an_attack() -> None:
    """Leaving inference mode would switch gradients on."""
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    modes = []

    def still(victim: Any, images: Tensor, labels: Tensor, threat: Threat, *, streams: Any) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return images

    with torch.no_grad():
        Custom(function=still)(lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1), images, labels, THREAT)
    assert modes == [False]


@pytest.mark.parametrize("inside", [False, True])
def test_weights_made_in_inference_mode_are_named(inside: bool) -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), linear())
        labels = net(images).argmax(1)
    with torch.inference_mode(inside):
        for attack in (PGD(), APGD(), FAB()):
            with pytest.raises(
                ValueError, match=r"made inside torch.inference_mode\(\), so there is no gradient"
            ):
                attack(net, images, labels, THREAT)
        assert THREAT.contains(images, Square(queries=20)(net, images, labels, THREAT)).all()


def test_gradients_that_are_not_finite_are_named() -> None:
    """sqrt at 0: as in a distance to a prototype that the image equals."""
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)

    def distances(x: Tensor) -> Tensor:
        away = (x - 0.5).flatten(1).square().sum(1).sqrt()
        return torch.stack([1 - away, away], dim=1)

    for attack in (PGD(random_start=False), CW(random_start=False), FAB()):
        for threat in (THREAT, Threat(norm="l2", eps=1)):
            with pytest.raises(
                ValueError, match="no direction: the gradient of the classifier's logits is NaN"
            ):
                attack(distances, images, labels, threat)


def test_the_sign_of_an_infinite_gradient_is_a_direction() -> None:
    """Black pixels before a gamma correction."""
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[images < 0.3] = 0
    net = linear()

    def corrected(x: Tensor) -> Tensor:
        return net(x.pow(1 / 2.2).flatten(1))

    labels = corrected(images).argmax(1)
    for attack in (PGD(random_start=False, step_size=0.05), APGD(), FAB()):
        found = attack(corrected, images, labels, Threat(eps=0.5))
        assert (corrected(found).argmax(1) != labels).any() and found.isfinite().all()
    with pytest.raises(ValueError, match="no direction: .* or infinite in L2"):
        PGD(random_start=False)(corrected, images, labels, Threat(norm="l2", eps=1))


def test_a_classifier_may_work_in_place() -> None:
    images = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net = linear()
    labels = net(images.sub(0.5).flatten(1)).argmax(1)
    for attack in (PGD(), APGD(steps=5), Square(queries=20)):
        expected = attack(lambda x: net(x.sub(0.5).flatten(1)), images, labels, THREAT)
        assert torch.equal(attack(lambda x: net(x.sub_(0.5).flatten(1)), images, labels, THREAT), expected)


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(48, 5)


def test_logits_that_an_attack_makes_nan_are_its_success() -> None:
    """Whatever their gradient is."""
    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.int64)

    def root(x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([(0.55 - mean).sqrt(), 0 * mean], dim=1)

    for attack in (PGD(steps=20), APGD(steps=20)):
        assert root(attack(root, images, labels, THREAT)).isnan().any(1).all()


def test_numbers_of_numpy_are_numbers() -> None:
    """Results store them as JSON."""
    attack, threat = PGD(steps=np.int64(3), step_size=np.float32(0.5)), Threat(eps=np.float32(0.25))  # type: ignore[arg-type]
    assert attack == PGD(steps=3, step_size=0.5) and threat == Threat(eps=0.25)
    assert json.dumps(attack.arguments(threat, 3))


@dataclass(frozen=True, kw_only=True)
class From(PGD):
    layer: int
    depth: int = 3


def test_an_own_attack_may_have_a_number_that_is_0() -> None:
    assert From(layer=0, depth=np.int64(0)).depth == 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="From: steps must be at least 1, not 0"):
        From(layer=1, steps=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "PGD: steps must be at least 1"),
        (lambda: PGD(steps=2.5), "PGD: steps must be a whole number, not 2.5"),
        (lambda: PGD(step_size=0.0), "step_size must be above 0"),
        (lambda: PGD(loss="cross"), "there is no loss 'cross'"),
        (lambda: APGD(loss="margin"), "there is no loss 'margin'"),
        (lambda: AutoAttack(restarts=0), "restarts must be at least 1"),
    ],
)
def test_parameters_that_are_none(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_they_are_exported() -> None:
    for name in ("APGD", "CW", "FAB", "FGSM", "PGD", "AutoAttack", "Square", "TargetedAPGD"):
        assert name in advflyp.__all__ and issubclass(getattr(advflyp, name), Attack)


class Twice:
    """An attack that is an object with a call."""

    def __call__(
        self, victim: object, images: Tensor, labels: Tensor, threat: Threat, *, streams: object
    ) -> Tensor:
        return images


def test_objects_and_partial_functions_are_attacks() -> None:
    """Their results name what they are of, and the hash is of that code."""
    for function in (Twice(), partial(Twice()), partial(partial(Twice().__call__))):
        attack = Custom(function=function)
        assert attack.name.startswith(f"{__name__}:Twice")
        assert attack.arguments(None, 3) == {"source_sha256": source_sha256(Twice)}


def test_an_attack_that_works_in_place_is_held_to_the_ball() -> None:
    def brighter(victim: Any, images: Tensor, labels: Tensor, threat: Threat, *, streams: Any) -> Tensor:
        images += 0.3
        return images

    images, labels = torch.full((2, 3, 4, 4), 0.5), torch.tensor([0, 0])
    with pytest.raises(ValueError, match="outside the ball"):
        Custom(function=brighter)(
            lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1), images, labels, Threat(eps=0.1)
        )
    assert (images == 0.5).all()
