import logging

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from advflyp.attack import apgd as module
from advflyp.attack.apgd import APGD, TargetedAPGD
from advflyp.attack.attempts import Attempts
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.classifiers import pictures
from helpers import assert_equal64

THREATS = [Threat(eps=4 / 255), Threat(norm="l2", eps=0.3)]
NORMS = {"linf": "Linf", "l2": "L2"}


class Recorder:
    """A classifier that keeps the images it was asked about, with a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            self.seen.append(images.detach().clone())
        return self.model(images)


def firm(model: nn.Module, threat: Threat) -> tuple[Tensor, Tensor]:
    """Images that no attack at `threat` fools, so that nothing leaves."""
    images, labels = pictures(10, 40, 5)
    found = TargetedAPGD(steps=20).perturb(
        Victim(model), images, labels, threat, streams=Streams(0, torch.arange(40))
    )
    stands = (found == images).flatten(1).all(1) & (model(images).argmax(1) == labels)
    assert stands.sum() >= 8
    return images[stands][:8], labels[stands][:8]


@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True], ids=["ce", "targeted"])
def test_visits_the_points_that_the_published_code_visits(
    robust: nn.Module, threat: Threat, targeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start, step by step, momentum, checkpoints and returns to the best point included."""
    images, labels = firm(robust, threat)
    streams = Streams(3, torch.arange(8))
    start = module._random_start(images, threat, streams)
    monkeypatch.setattr(module, "_random_start", lambda *_: start)
    theirs, ours = Recorder(robust), Recorder(robust)

    kind = APGDAttack_targeted if targeted else APGDAttack
    published = kind(
        theirs, n_iter=100, norm=NORMS[threat.norm], eps=threat.eps, device="cpu", logger=logging.getLogger()
    )
    published.init_hyperparam(images)
    # Its own adds 1e-12 to the length, which shows where a gradient is short.
    published.normalize = lambda x: x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    if targeted:
        published.y_target = robust(images).argsort(1)[:, -2]
    published.attack_single_run(images, labels, x_init=start)
    attack = TargetedAPGD(targets=1) if targeted else APGD()
    attack.perturb(Victim(ours), images, labels, threat, streams=streams)

    assert len(ours.seen) == len(theirs.seen) == 101
    # A gradient of the cross-entropy is as exact as 1 − p, here 3e-5 at the least: 2⁻⁵³/3e-5 of its direction. 100
    # steps of at most 2ε add up to 2e-10, and those that overshoot enlarge what is there. Another choice moves by 1e-4.
    torch.testing.assert_close(torch.stack(ours.seen), torch.stack(theirs.seen), rtol=0, atol=1e-8)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
def test_the_start_is_on_the_surface_of_the_ball(threat: Threat) -> None:
    images = torch.full((5, 3, 8, 8), 0.5, dtype=torch.float64)
    start = module._random_start(images, threat, Streams(0, torch.arange(5)))
    assert_equal64(threat.distance(images, start), torch.full((5,), threat.eps, dtype=torch.float64))


def test_each_target_has_a_start_of_its_own(robust: nn.Module) -> None:
    images, labels = firm(robust, THREATS[0])
    record = Recorder(robust)
    attack = TargetedAPGD(targets=2, steps=3)
    attack.perturb(Victim(record), images, labels, THREATS[0], streams=Streams(0, torch.arange(8)))
    assert len(record.seen) == 8
    assert ((record.seen[0] - record.seen[4]).abs() > 1e-4).float().mean() > 0.9


def test_finds_the_corner_of_the_ball_on_a_linear_loss() -> None:
    """Where the best point is known: x + ε·sign(w), and it is needed."""
    w = torch.randn(3 * 36, generator=torch.Generator().manual_seed(0))
    images = torch.full((1, 3, 6, 6), 0.5)
    eps = 0.1
    reach = 0.999 * eps * w.abs().sum()

    def search(x: Tensor) -> Tensor:
        value = (x - 0.5).flatten(1) @ w - reach
        return torch.stack([-value, value], 1)

    labels = torch.zeros(1, dtype=torch.long)
    found = APGD().perturb(
        Victim(search), images, labels, Threat(eps=eps), streams=Streams(0, torch.arange(1))
    )
    assert search(found).argmax() == 1


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_eot_sees_through_a_random_model(robust: nn.Module, loss: str) -> None:
    """Noise drowns one gradient, not the mean of many."""
    images, labels = pictures(10, 60, 5)
    threat = Threat(eps=24 / 255)

    def standing(eot: int) -> int:
        g = torch.Generator().manual_seed(0)

        def noisy(x: Tensor) -> Tensor:
            # Only the gradient is disturbed, so that luck with the noise fools nothing.
            noise = torch.randn(x.shape, generator=g)
            return robust(x) + ((x - x.detach()) * noise).flatten(1).sum(1, True) * weights

        weights = 2 * torch.randn(1, 10, generator=torch.Generator().manual_seed(1))
        streams = Streams(0, torch.arange(60))
        attack = APGD(loss=loss, steps=10, eot=eot)
        found = attack.perturb(Victim(noisy), images, labels, threat, streams=streams)
        return int((robust(found).argmax(1) == labels).sum())

    assert standing(16) < standing(1)


@pytest.mark.parametrize("first_step", [0, -1, float("nan")])
def test_a_first_step_goes_up(first_step: float) -> None:
    with pytest.raises(ValueError, match="^first_step must be above 0, for example 2, not"):
        APGD(first_step=first_step)


def test_luck_does_not_end_an_attack_on_a_random_model() -> None:
    """The first two iterates are misclassified by luck; without it, it takes half of the radius."""
    images, eot = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64), 2
    calls = 0

    def value(x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1).mean(1) - 0.05

    def lucky(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        is_lucky = 1 < calls <= 1 + 2 * eot  # after the clean image
        return torch.stack([-value(x), value(x) + is_lucky], 1)

    labels = torch.zeros(1, dtype=torch.long)
    attack, streams = APGD(steps=10, eot=eot), Streams(0, torch.arange(1))
    found = attack.perturb(Victim(lucky), images, labels, Threat(eps=0.1), streams=streams)
    assert value(found) > 0
    assert calls == 1 + eot * (1 + 10)


def test_eot_averages_the_passes() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(2, dtype=torch.long)
    factors = iter([1.0, 2.0, 6.0])

    def random(x: Tensor) -> Tensor:
        value = next(factors) * x.flatten(1).sum(1)
        return torch.stack([-value, value], 1)

    objective = module._Objective(lambda z, y: z[:, 1] - z[:, 0], eot=3)
    points = Attempts(torch.arange(2), images, labels, targets=labels, rank=labels)
    logits, loss, gradient = module._evaluate(Victim(random), points, images, objective)
    total = images.flatten(1).sum(1)
    assert_equal64(logits, torch.stack([-3 * total, 3 * total], 1))
    assert_equal64(loss, 6 * total)
    assert_equal64(gradient, torch.full_like(images, 6.0))
