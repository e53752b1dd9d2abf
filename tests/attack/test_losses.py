"""Against the equations, one image at a time in float64."""

import math

import pytest
import torch
from torch import Tensor

from advflyp.attack.losses import attack_targets, count_targets, cross_entropy, dlr, margin, targeted_dlr
from helpers import assert_equal64

# Of float64 values of about 1: the published losses add 1e-12 to their divisors.
CLOSE = {"rel": 1e-9, "abs": 1e-11}


def case(classes: int, n: int = 40) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(classes)
    logits = 5 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=g)


def best_other(z: list[float], y: int) -> float:
    return max(value for j, value in enumerate(z) if j != y)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_untargeted_losses(classes: int) -> None:
    logits, labels = case(classes)
    for row, y, ce, cw, ratio in zip(
        logits.tolist(),
        labels.tolist(),
        cross_entropy(logits, labels),
        margin(logits, labels),
        dlr(logits, labels),
        strict=True,
    ):
        assert ce.item() == pytest.approx(math.log(sum(math.exp(z - row[y]) for z in row)), **CLOSE)
        assert cw.item() == pytest.approx(best_other(row, y) - row[y], **CLOSE)
        ranked = sorted(row, reverse=True)
        divisor = ranked[0] - ranked[2] if classes > 2 else 1
        assert ratio.item() == pytest.approx((best_other(row, y) - row[y]) / divisor, **CLOSE)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_targeted_dlr(classes: int) -> None:
    logits, labels = case(classes)
    targets = (labels + 1) % classes
    for row, y, t, value in zip(
        logits.tolist(), labels.tolist(), targets.tolist(), targeted_dlr(logits, labels, targets), strict=True
    ):
        ranked = sorted(row, reverse=True)
        divisors = {2: 1.0, 3: ranked[0] - ranked[-1]}
        divisor = divisors.get(classes) or ranked[0] - (ranked[2] + ranked[3]) / 2
        assert value.item() == pytest.approx((row[t] - row[y]) / divisor, **CLOSE)


@pytest.mark.parametrize("loss", [margin, dlr])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_positive_exactly_where_misclassified(loss, classes: int) -> None:
    logits, labels = case(classes)
    assert torch.equal(loss(logits, labels) > 0, logits.argmax(1) != labels)


def test_dlr_changes_neither_with_scale_nor_with_shift() -> None:
    logits, labels = case(10)
    targets = (labels + 3) % 10
    assert_equal64(dlr(7 * logits - 2, labels), dlr(logits, labels))
    assert_equal64(targeted_dlr(7 * logits - 2, labels, targets), targeted_dlr(logits, labels, targets))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_targets_are_the_wrong_classes_by_likelihood(classes: int) -> None:
    logits, labels = case(classes)
    count = count_targets(classes)
    assert count == min(9, classes - 1)
    ranks = torch.stack([attack_targets(logits, labels, rank) for rank in range(1, count + 1)], 1)
    for row, y, targets in zip(logits.tolist(), labels.tolist(), ranks.tolist(), strict=True):
        wrong = sorted((j for j in range(classes) if j != y), key=lambda j: -row[j])
        assert targets == wrong[:count]


def test_no_more_targets_than_asked_for() -> None:
    assert count_targets(1000) == 9
    assert count_targets(1000, 3) == 3
