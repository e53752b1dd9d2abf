from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from advflyp.attack import attempts as module
from advflyp.attack.apgd import TargetedAPGD
from advflyp.attack.attempts import NONE, Attempts, Finds
from advflyp.attack.fab import FAB
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.classifiers import pictures
from helpers import assert_equal64

LINF, L2 = Threat(eps=22 / 255), Threat(norm="l2", eps=1.5)


def attempts(rows: list[int], ranks: list[int]) -> Attempts:
    """Attempts whose image is its row and whose target is ten times its rank."""
    row, rank = torch.tensor(rows), torch.tensor(ranks)
    images = row.double().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Attempts(row, images, torch.zeros_like(row), targets=10 * rank, rank=rank)


def test_the_first_target_counts_whichever_finds_something_first() -> None:
    at, finds = attempts([0, 1, 0, 1, 0, 1], [1, 1, 2, 2, 3, 3]), Finds(torch.zeros(2, 3, 2, 2))
    step = torch.arange(6.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    # Targets 2 and 3 of image 0 at once: the second ends, the first goes on.
    at.settle(torch.tensor([False, False, True, False, True, False]), 10 + step, finds)
    assert at.targets.tolist() == [10, 10, 20, 30]
    assert finds.images[:, 0, 0, 0].tolist() == [12, 0]
    at.settle(torch.zeros(4, dtype=torch.bool), 20 + step[:4], finds)
    assert (len(at), finds.images[:, 0, 0, 0].tolist()) == (4, [12, 0])

    at.settle(torch.tensor([True, False, False, True]), 30 + step[:4], finds)
    assert (at.rows.tolist(), at.targets.tolist()) == ([1, 1], [10, 20])
    assert finds.images[:, 0, 0, 0].tolist() == [30, 33]
    assert finds.rank.tolist() == [1, 3]

    at.settle(torch.tensor([False, True]), 40 + step[:2], finds)
    assert (len(at), finds.rank.tolist()) == (1, [1, 2])


class Counter:
    """A classifier that counts the images it is asked about, and how often it is asked."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images, self.calls = model, 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images, self.calls = self.images + len(images), self.calls + 1
        return self.model(images)


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("attack", [TargetedAPGD(steps=20), FAB(steps=20)], ids=["apgd-t", "fab-t"])
def test_several_targets_at_once_are_one_after_the_other(
    robust: nn.Module, attack: TargetedAPGD | FAB, threat: Threat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, found in fewer passes; some of them by a target that another at its side overtook."""
    images, labels = pictures(10, 40, 5)

    def run(together: int) -> tuple[Tensor, Counter]:
        monkeypatch.setattr(module, "AT_ONCE_ON_CPU", together)
        counter = Counter(robust)
        victim = Victim(counter, batch_size=together)
        found = attack.perturb(victim, images, labels, threat, streams=Streams(0, torch.arange(40)))
        return found, counter

    (one, by_one), (many, by_many) = run(1), run(10_000)
    assert_equal64(many, one)
    assert by_many.calls < by_one.calls / 4
    first = replace(attack, targets=1).perturb(
        Victim(robust), images, labels, threat, streams=Streams(0, torch.arange(40))
    )
    by_later = (one != images).flatten(1).any(1) & (first == images).flatten(1).all(1)
    assert by_later.sum() >= 2
    stands = (one == images).flatten(1).all(1) & (robust(images).argmax(1) == labels)
    assert stands.sum() >= 2


def test_no_more_at_once_than_fit(robust: nn.Module) -> None:
    """On an accelerator the batch size says what fits; a processor takes few, whatever it says."""
    images, labels = pictures(10, 40, 5)
    most = 0

    def search(x: Tensor) -> Tensor:
        nonlocal most
        if x.requires_grad:
            most = max(most, len(x))
        return robust(x)

    small = Threat(eps=1e-4)
    stands = (robust(images).argmax(1) == labels).nonzero().squeeze(1)[:2]
    attack = TargetedAPGD(steps=1)
    for batch_size, expected in ((1, 2), (4, 4), (5, 4), (1000, module.AT_ONCE_ON_CPU)):
        most = 0
        victim = Victim(search, batch_size=batch_size)
        attack.perturb(victim, images[stands], labels[stands], small, streams=Streams(0, torch.arange(2)))
        assert most == expected


def test_an_image_that_nothing_fools_has_no_target() -> None:
    finds = Finds(torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert (finds.rank == NONE).all()
