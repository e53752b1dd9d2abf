"""One perturbation for every image."""

from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from advflyp.attack.threat import Threat
from advflyp.attack.universal import Shift, _orders, universal_perturbation
from attack.classifiers import pictures
from helpers import assert_equal64

THREAT = Threat(eps=24 / 255)


def test_it_fools_images_that_it_was_not_made_on_more_than_a_shift_of_noise(plain: torch.nn.Module) -> None:
    images, labels = pictures(10, 300, 5)
    shift = universal_perturbation(plain, images[:200], labels[:200], THREAT, steps=60, step_size=2 / 255)
    assert shift.delta.abs().max() <= THREAT.eps + 1e-12
    noise = Shift(
        delta=THREAT.eps * (2 * torch.rand(shift.delta.shape, generator=torch.Generator().manual_seed(0)) - 1)
    )
    right = {}
    for name, attack in {"universal": shift, "noise": noise}.items():
        found = attack(plain, images[200:], labels[200:], THREAT)
        assert THREAT.contains(images[200:], found).all()
        with torch.no_grad():
            right[name] = (plain(found).argmax(1) == labels[200:]).double().mean().item()
    assert right["universal"] < right["noise"] - 0.2


def test_two_steps_by_hand(plain: torch.nn.Module) -> None:
    images, labels = pictures(10, 6, 3)
    alpha, threat = 0.01, Threat(eps=0.015)
    delta = torch.zeros_like(images[:1])
    for rows in islice(_orders(6, 4, 7), 2):
        leaf = delta.clone().requires_grad_()
        loss = F.cross_entropy(plain((images[rows] + leaf).clamp(0, 1)), labels[rows])
        (slope,) = torch.autograd.grad(loss, leaf)
        delta = (delta + alpha * slope.sign()).clamp(-threat.eps, threat.eps)
    found = universal_perturbation(
        plain, images, labels, threat, steps=2, step_size=alpha, batch_size=4, seed=7
    )
    assert_equal64(found.delta, delta[0])


def test_inside_inference_mode(plain: torch.nn.Module) -> None:
    images, labels = pictures(10, 6, 3)
    expected = universal_perturbation(plain, images, labels, THREAT, steps=2).delta
    with torch.inference_mode():
        found = universal_perturbation(plain, images.clone(), labels.clone(), THREAT, steps=2).delta
    assert_equal64(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"threat": 0.1}, "is a Threat, such as"),
        ({"labels": torch.tensor([0, 12])}, "labels must be from 0 to 11"),
        ({"classifier": lambda x: x}, "must give logits of shape"),
        ({"classifier": lambda x: (x.flatten(1),)}, "must return a tensor of logits, not a tuple"),
        ({"classifier": lambda x: x.flatten(1).detach()}, "no gradient with respect to the pixels"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    given = {
        "classifier": lambda x: x.flatten(1),
        "images": torch.full((2, 3, 2, 2), 0.5),
        "labels": torch.tensor([0, 1]),
        "threat": Threat(eps=0.1),
    }
    with pytest.raises(ValueError, match=message):
        universal_perturbation(**{**given, **change})
    assert universal_perturbation(**given, steps=2.0).delta.shape == (3, 2, 2)  # type: ignore[arg-type]


def test_a_perturbation_is_for_images_of_one_size() -> None:
    shift = Shift(delta=torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"is for images of shape \(3, 2, 2\), not \(3, 4, 4\)"):
        shift(lambda x: x.flatten(1)[:, :2], torch.eye(4).repeat(1, 3, 1, 1), torch.tensor([0]), THREAT)


def test_every_image_is_used_once_an_epoch() -> None:
    batches = list(islice(_orders(5, 2, 0), 6))
    epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
    assert all(sorted(epoch.tolist()) == list(range(5)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_results_know_which_perturbation_it_was() -> None:
    one, other = (Shift(delta=torch.full((3, 2, 2), value)) for value in (0.1, 0.2))
    assert one.arguments(None, 3) != other.arguments(None, 3)
    for pixels, labels, message in (
        (255 * torch.rand(2, 3, 2, 2), [0, 1], "from 0 to 1|0 and 1"),
        (torch.zeros(2, 3, 2, 2, dtype=torch.uint8), [0, 1], "takes float32 or float64 images"),
        (torch.rand(2, 3, 2, 2), [0], "one int64 label for each of the 2 images"),
        (torch.rand(0, 3, 2, 2), [], "is found on images, and there are none"),
    ):
        with pytest.raises(ValueError, match=message):
            universal_perturbation(
                lambda x: x.flatten(1), pixels, torch.tensor(labels, dtype=torch.int64), Threat(eps=0.1)
            )
    with pytest.raises(ValueError, match="has an eps of at most 1/2, not 0.6"):
        universal_perturbation(
            lambda x: x.flatten(1), torch.rand(1, 3, 2, 2), torch.tensor([0]), Threat(eps=0.6)
        )
