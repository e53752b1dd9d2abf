import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from advflyp.attack.fab import FAB, to_boundary
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.classifiers import pictures
from helpers import assert_equal64

NORMS = {"linf": "Linf", "l2": "L2"}


def reference(x: Tensor, w: Tensor, value: float, norm: str) -> Tensor:
    """One image in float64: bisection on the multiplier of the optimality conditions."""
    need = -value
    sign = w.sign() * (1 if need > 0 else -1)
    room = torch.where(sign > 0, 1 - x, x) * (w != 0)
    speed = torch.ones_like(w) if norm == "linf" else w.abs()

    def moved(scale: float) -> Tensor:
        return torch.minimum(scale * speed, room)

    low, high = 0.0, 1.0
    while (w.abs() * moved(high)).sum() < abs(need) and high < 1e9:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (w.abs() * moved(middle)).sum() < abs(need) else (low, middle)
    return sign * moved(high)


def problem(seed: int, size: int, reach: float) -> tuple[Tensor, Tensor, float]:
    """A point with pixels at and off the limits, weights with zeros, and `reach` of the way the box allows."""
    g = torch.Generator().manual_seed(seed)
    x = (1.6 * torch.rand(3 * size * size, generator=g) - 0.3).clamp(0, 1).double()
    w = torch.randn(len(x), generator=g).double() * 10 ** (3 * torch.rand(len(x), generator=g)).double()
    w = torch.where(torch.rand(len(x), generator=g) < 0.2, 0.0, w)
    side = 1 if seed % 2 else -1
    room = torch.where(w * side > 0, 1 - x, x)
    return x, w, -side * reach * float((w.abs() * room).sum())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 5),
    reach=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.7, 0.999]),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_projection_is_the_nearest_point_of_the_hyperplane_in_the_box(
    seed: int, size: int, reach: float, norm: str
) -> None:
    x, w, value = problem(seed, size, reach)
    shape = (1, 3, size, size)
    d = to_boundary(x.view(shape), w.view(shape), torch.tensor([value], dtype=torch.float64), norm).flatten()
    total = float(w.abs().sum())
    assert ((x + d >= -1e-9) & (x + d <= 1 + 1e-9)).all()
    # n ≤ 75 terms make a sum of up to Σ|w| =: W, in error by nWu, u = 2⁻⁵³. At reach ≤ 0.999 the pixels that still move
    # have at least W/1000 of it. So λ is in error by nu·1000 in L∞; and a pixel by n²u·1000 = 6e-10 at most in L2.
    assert float(value + w @ d) == pytest.approx(0, abs=1e-13 * total)
    torch.testing.assert_close(d, reference(x, w, value, norm), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_point_of_the_hyperplane_is_nearer(norm: str) -> None:
    """Whatever the optimality conditions say: neighbours on the hyperplane and in the box are farther away."""
    x, w, value = problem(7, 3, 0.4)
    shape = (1, 3, 3, 3)
    d = to_boundary(x.view(shape), w.view(shape), torch.tensor([value], dtype=torch.float64), norm).flatten()
    size_of = (lambda v: v.abs().max()) if norm == "linf" else (lambda v: v.norm())
    g = torch.Generator().manual_seed(0)
    feasible = 0
    for _ in range(3000):
        step = 0.1 * torch.randn(len(x), generator=g).double() * (torch.rand(len(x), generator=g) < 0.5)
        other = (x + d + step).clamp(0, 1) - x
        # back onto the hyperplane along one pixel that has room for it
        pixel = int(w.abs().argmax())
        other[pixel] -= (value + w @ other) / w[pixel]
        if 0 <= x[pixel] + other[pixel] <= 1:
            feasible += 1
            assert size_of(other) >= size_of(d) - 1e-9
    assert feasible > 300


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_out_of_reach_it_goes_as_far_as_the_box_allows(norm: str) -> None:
    x = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64).view(1, 3, 1, 1)
    w = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64).view(1, 3, 1, 1)
    d = to_boundary(x, w, torch.tensor([-100.0]), norm)
    assert_equal64(d.flatten(), torch.tensor([0.8, -0.9, 0.0], dtype=torch.float64))
    assert torch.equal(to_boundary(x, 0 * w, torch.tensor([-1.0]), norm), torch.zeros_like(x))
    assert torch.equal(to_boundary(x, w, torch.tensor([0.0]), norm), torch.zeros_like(x))


@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_agrees_with_the_published_one(norm: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, 8, 8, generator=g)
    w = torch.randn(50, 3, 8, 8, generator=g)
    value = -3 * torch.rand(50, generator=g)
    b = (w * x).flatten(1).sum(1) - value
    published = projection_linf if norm == "linf" else projection_l2
    expected = published(x.flatten(1), w.flatten(1), b).view_as(x)
    assert_equal64(to_boundary(x, w, value, norm), expected)


@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize("threat", [Threat(eps=1e-4), Threat(norm="l2", eps=1e-3)], ids=["linf", "l2"])
def test_visits_the_points_that_the_published_code_visits(robust: nn.Module, threat: Threat) -> None:
    """At a radius that nothing fits in, so that nothing leaves."""
    images, labels = pictures(10, 30, 5)
    sequences: list[list[Tensor]] = [[], []]

    def recorder(seen: list[Tensor]):
        def search(x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return robust(x)

        return search

    published = FABAttack_PT(
        recorder(sequences[0]), norm=NORMS[threat.norm], n_iter=15, eps=threat.eps, device="cpu"
    )
    published.target_class = 3
    published.attack_single_run(images, labels, is_targeted=True)
    FAB(targets=2, steps=15).perturb(
        Victim(recorder(sequences[1])), images, labels, threat, streams=Streams(0, torch.arange(30))
    )
    # Both begin with the clean logits (theirs asks twice); ours takes the likeliest wrong class first.
    theirs, ours = sequences[0][2:], sequences[1][1 + 30 :]
    assert len(theirs) == len(ours) == 30
    assert_equal64(torch.stack(ours), torch.stack(theirs))
    crossed = robust(ours[-1]).argmax(1) != labels
    assert crossed.any()


def test_finds_the_smallest_perturbation_of_a_linear_classifier() -> None:
    """Its distance is known, so a radius just above it is found and one just below is not."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3 * 25, generator=g)
    images = 0.4 + 0.2 * torch.rand(4, 3, 5, 5, generator=g)
    offset = -(images.flatten(1) @ w).max() - 1

    def search(x: Tensor) -> Tensor:
        value = x.flatten(1) @ w + offset
        return torch.stack([-value, value], 1)

    labels = torch.zeros(4, dtype=torch.long)
    for norm, dual in (("linf", w.abs().sum()), ("l2", w.norm())):
        distances = -(images.flatten(1) @ w + offset) / dual
        assert distances.max() < 0.4
        for image, distance in zip(images, distances.tolist(), strict=True):
            for factor, fooled in ((1.02, True), (0.98, False)):
                found = FAB().perturb(
                    Victim(search),
                    image[None],
                    labels[:1],
                    Threat(norm=norm, eps=factor * distance),
                    streams=Streams(0, torch.arange(1)),
                )
                assert (search(found).argmax() == 1) == fooled
