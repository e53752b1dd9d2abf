import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.evaluation.recall import cross_entropy, margin, ranks, recalls
from advflyp.evaluation.results import wilson


def by_brute_force(images: Tensor, captions: Tensor, owner: Tensor) -> tuple[list[int], list[int]]:
    """One similarity at a time in float64; an equal one ranks before the right one."""
    similarity = images.double().numpy() @ captions.double().numpy().T
    of_images, of_captions = [], []
    for i in range(len(images)):
        best = max(similarity[i, j] for j in range(len(captions)) if owner[j] == i)
        before = [j for j in range(len(captions)) if owner[j] != i and similarity[i, j] >= best - 1e-6]
        of_images.append(1 + len(before))
    for j in range(len(captions)):
        right = similarity[owner[j], j]
        before = [i for i in range(len(images)) if i != owner[j] and similarity[i, j] >= right - 1e-6]
        of_captions.append(1 + len(before))
    return of_images, of_captions


@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_by_brute_force(seed: int, block: int) -> None:
    random = torch.Generator().manual_seed(seed)
    owner = torch.tensor([row for row in range(23) for _ in range(1 + row % 5)])
    owner = owner[torch.randperm(len(owner), generator=random)]
    images = F.normalize(torch.randn(23, 4, generator=random), dim=1)
    captions = F.normalize(images[owner] + 0.8 * torch.randn(len(owner), 4, generator=random), dim=1)
    captions[3], images[5] = captions[11].clone(), images[9].clone()  # exact ties
    assert owner[3] != owner[11]
    of_images, of_captions = ranks(images, captions, owner, block=block)
    assert (of_images.tolist(), of_captions.tolist()) == by_brute_force(images, captions, owner)
    assert of_images.min() == 1 and of_images.max() > 10


def test_a_hand_made_case() -> None:
    """Pictures at 0°, 90° and 180°; captions at angles whose order can be read off."""

    def at(*degrees: float) -> Tensor:
        angle = torch.tensor(degrees) * math.pi / 180
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    captions = at(5, 100, 80, 30, 170, 60)
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    of_images, of_captions = ranks(at(0, 90, 180), captions, owner)
    # 0°: its own 5° is first. 90°: 80° and the foreign 100° are equally near, the tie counts against it. 180°: 170°.
    assert of_images.tolist() == [1, 2, 1]
    # 5° → 0° first. 100° is 0°'s caption, 90° and 180° are nearer. 80° first. 30°: 0° is nearer. 170° first.
    # 60° is 180°'s caption: both others are nearer.
    assert of_captions.tolist() == [1, 3, 1, 2, 1, 3]


def test_ties_never_flatter() -> None:
    """A model that sees everything as the same is at the end of every list; one that gives NaN is, too."""
    owner = torch.arange(6) // 2
    for value in (1.0, float("nan")):
        images, captions = torch.full((3, 1), value), torch.full((6, 1), value)
        of_images, of_captions = ranks(images, captions, owner)
        assert (of_images >= 5).all() and (of_captions >= 3).all()


def test_recalls() -> None:
    one, five, ten = recalls(torch.tensor([1, 2, 5, 6, 10, 11, 1, 99]), independent=8)
    assert [(r.k, r.hits, r.n, r.recall) for r in (one, five, ten)] == [
        (1, 2, 8, 0.25), (5, 4, 8, 0.5), (10, 6, 8, 0.75),
    ]  # fmt: skip
    assert one.ci95 == list(wilson(2, 8))
    # Five captions of each of 8 pictures, that all hit or miss together, are no more than the 8 pictures.
    (many, _, _) = recalls(torch.tensor([1, 2, 5, 6, 10, 11, 1, 99]).repeat_interleave(5), independent=8)
    assert (many.hits, many.n, many.ci95) == (10, 40, one.ci95)


def test_losses_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 9)) * 10
    own = rng.random((5, 9)) < 0.3
    own[:, 0], own[:, 8] = True, False
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = [-math.log(sum(softmax[i, j] for j in range(9) if own[i, j])) for i in range(5)]
    assert cross_entropy(torch.tensor(z), torch.tensor(own)).tolist() == pytest.approx(
        expected, rel=1e-9, abs=1e-12
    )
    expected = [
        max(z[i, j] for j in range(9) if not own[i, j]) - max(z[i, j] for j in range(9) if own[i, j])
        for i in range(5)
    ]
    assert margin(torch.tensor(z), torch.tensor(own)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
