"""One perturbation for every image."""

from itertools import islice

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
