from typing import Literal

import pytest
import torch

from advflyp.attack.threat import Threat
from helpers import assert_equal64


def images(n: int = 6) -> torch.Tensor:
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0, 1  # corners of the pixel range
    return x


@pytest.mark.parametrize(("norm", "eps"), [("linf", 1 / 255), ("linf", 8 / 255), ("l2", 0.5), ("l2", 3.0)])
def test_start_and_projection_stay_inside(norm: str, eps: float) -> None:
    threat = Threat(norm=norm, eps=eps)
    x = images()
    assert threat.contains(x, threat.random_start(x, torch.Generator().manual_seed(1))).all()
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    assert not threat.contains(x, far).any()
    projected = threat.project(x, far)
    assert threat.contains(x, projected).all()
    x = x.double()
    projected = threat.project(x, far.double())
    assert_equal64(threat.project(x, projected), projected)


def test_linf_projection_is_the_nearest_point() -> None:
    x, moved, narrow, wide = torch.tensor(
        [[0.0, 0.5, 0.99], [-0.3, 0.55, 1.2], [0.0, 0.51, 1.0], [0.0, 0.55, 1.0]], dtype=torch.float64
    ).view(4, 1, 3, 1, 1)
    assert_equal64(Threat(eps=0.01).project(x, moved), narrow)
    assert_equal64(Threat(eps=0.1).project(x, moved), wide)


def test_l2_projection_keeps_the_direction() -> None:
    x = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    inside = Threat(norm="l2", eps=0.05).project(x, x + delta) - x
    assert_equal64(inside, delta / delta.norm() * 0.05)


def test_contains_refuses_what_is_just_outside() -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    threat = Threat(eps=1 / 255)
    assert threat.contains(x, x + 1 / 255).all()
    assert not threat.contains(x, x + 1.001 / 255).any()
    assert not Threat(eps=0.9).contains(x, x + 0.6).any(), "outside the pixel range"


def test_linf_start_is_uniform_in_the_ball() -> None:
    x = torch.full((4, 3, 64, 64), 0.5)
    delta = Threat(eps=0.1).random_start(x, torch.Generator().manual_seed(0)) - x
    assert delta.abs().max() <= 0.1 + 2**-24
    # 49,152 draws: the mean's standard error is 2.6e-4, that of the standard deviation 0.2 % of it.
    assert delta.mean().abs() < 1e-3
    assert delta.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.01)


def test_l2_start_is_uniform_in_volume() -> None:
    """Half of a ball's volume lies beyond 2^(-1/d) of its radius."""
    x = torch.full((4000, 3, 1, 1), 0.5)
    length = (
        (Threat(norm="l2", eps=0.1).random_start(x, torch.Generator().manual_seed(0)) - x)
        .flatten(1)
        .norm(dim=1)
    )
    # The standard error of a share of 4,000 draws is 0.008.
    assert (length > 0.1 * 0.5 ** (1 / 3)).float().mean().item() == pytest.approx(0.5, abs=0.035)


def test_steps_have_the_asked_length() -> None:
    x = images().double()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient[2] = 0
    linf = Threat(eps=1).step(x, gradient, 0.01) - x
    assert_equal64(linf, 0.01 * gradient.sign())
    l2 = (Threat(norm="l2", eps=1).step(x, gradient, 0.25) - x).flatten(1).norm(dim=1)
    assert_equal64(l2, torch.tensor([0.25, 0.25, 0, 0.25, 0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("eps", [0.0, -1 / 255, float("nan")])
def test_radius_must_be_positive(eps: float) -> None:
    with pytest.raises(ValueError, match="eps must be above 0"):
        Threat(eps=eps)


def test_radius_in_grey_levels_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="4/255"):
        Threat(eps=4)


def test_a_radius_as_text_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="4 / 255 for four grey levels, not '8/255'"):
        Threat(eps="8/255")  # type: ignore[arg-type]


def test_unknown_norm() -> None:
    with pytest.raises(ValueError, match="'linf' or 'l2'"):
        Threat(norm="l1", eps=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [1e30, 1e-300, 10_001])
def test_no_radius_that_float32_cannot_compute_with(norm: Literal["linf", "l2"], eps: float) -> None:
    with pytest.raises(ValueError, match="eps"):
        Threat(norm=norm, eps=eps)


@pytest.mark.parametrize("eps", [1e-12, 10_000.0])
def test_the_smallest_and_the_largest_radius_give_valid_images(eps: float) -> None:
    threat, x = Threat(norm="l2", eps=eps), torch.rand(2, 3, 8, 8)
    start = threat.random_start(x, torch.Generator().manual_seed(0))
    step = threat.project(x, threat.step(start, torch.randn(2, 3, 8, 8), 2.5 * eps))
    assert threat.contains(x, start).all() and threat.contains(x, step).all()
