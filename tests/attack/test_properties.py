"""What holds of every attack, whatever the images, the radius and the number of classes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from advflyp.attack.apgd import APGD
from advflyp.attack.autoattack import MEMBERS, AutoAttack
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.losses import cross_entropy
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from helpers import assert_equal64


def plain_pgd(
    victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams, steps: int
) -> Tensor:
    start = threat.random_start(images, streams)
    loss = lambda x: cross_entropy(victim(x), labels)  # noqa: E731
    return pgd(images, loss, threat, steps=steps, step_size=threat.eps / 2, start=start)


ATTACKS: dict[str, Callable[..., Tensor]] = {
    "pgd": partial(plain_pgd, steps=3),
    "PGD": PGD(steps=3, step_size=0.02).perturb,
    **{
        name: replace(member, **({"queries": 8} if name == "square" else {"steps": 4})).perturb
        for name, member in MEMBERS.items()
        if not name.endswith("eot20")
    },
    "apgd-ce-eot": APGD(steps=3, eot=2).perturb,
    "encoder": EncoderPGD(steps=3, tokens="both", step_size=0.02).perturb,
}
LAST_ITERATE = ("pgd", "PGD", "encoder")


class Smooth(nn.Module):
    """One hidden layer, computed in float64: however a batch is cut, the gradients have the same signs. Logits are of
    the images' type.
    """

    def __init__(self, pixels: int, classes: int, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(pixels, 8, generator=g, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(8, classes, generator=g, dtype=torch.float64))
        self.dropout = nn.Dropout(0.0)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh((images.flatten(1).double() - 0.5) @ self.first / self.first.shape[0] ** 0.5)
        return self.dropout(3 * hidden @ self.second).to(images.dtype)

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """Two made-up tokens."""
        hidden = torch.tanh((images.flatten(1).double() - 0.5) @ self.first / self.first.shape[0] ** 0.5)
        return nn.functional.normalize(torch.stack([hidden[:, :4], hidden[:, 4:]], 1), dim=-1)


class Case(NamedTuple):
    model: Smooth
    images: Tensor
    labels: Tensor
    threat: Threat


@st.composite
def cases(draw: st.DrawFn) -> Case:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    classes, count, seed = draw(st.integers(2, 12)), draw(st.integers(1, 5)), draw(st.integers(0, 10**6))
    if draw(st.booleans()):
        threat = Threat(eps=draw(st.sampled_from([1e-4, 1 / 255, 8 / 255, 0.1, 0.5, 1.0])))
    else:
        threat = Threat(norm="l2", eps=draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0, 2.0])))
    g = torch.Generator().manual_seed(seed)
    # Some pixels are black or white.
    images = (1.4 * torch.rand(count, 3, height, width, generator=g) - 0.2).clamp(0, 1)
    images = images.to(draw(st.sampled_from([torch.float32, torch.float64])))
    model = Smooth(3 * height * width, classes, seed).train(draw(st.booleans()))
    labels = model(images).argmax(1)
    if draw(st.booleans()):
        labels[0] = (labels[0] + 1) % classes
    return Case(model, images, labels, threat)


def properties(function: Callable[[str, Case], None]) -> Callable[..., None]:
    """Over every attack, on the same 10 cases each time."""
    hypothesis = settings(max_examples=10, deadline=None, derandomize=True, database=None)
    return pytest.mark.parametrize("name", list(ATTACKS))(hypothesis(given(case=cases())(function)))


def run(name: str, case: Case, rows: slice = slice(None), seed: int = 0) -> Tensor:
    streams = Streams(seed, torch.arange(len(case.images))[rows])
    images, labels = case.images[rows], case.labels[rows]
    victim = Victim(case.model, encoder=case.model, batch_size=64)
    return ATTACKS[name](victim, images, labels, case.threat, streams=streams)


@properties
def test_inside_the_ball_and_the_pixel_range(name: str, case: Case) -> None:
    found = run(name, case)
    assert found.shape == case.images.shape
    assert found.dtype == case.images.dtype
    assert not found.requires_grad
    assert ((found >= 0) & (found <= 1)).all()
    delta = (found.double() - case.images.double()).flatten(1)
    length = delta.abs().amax(1) if case.threat.norm == "linf" else delta.norm(dim=1)
    # x and δ are rounded to 2⁻²⁴ of 1; a length adds √d of these.
    assert (length <= case.threat.eps + 2**-23 * delta.shape[1] ** 0.5).all()


@properties
def test_leaves_everything_as_it_was(name: str, case: Case) -> None:
    model = case.model
    model.first.grad = torch.full_like(model.first, 2.0)
    model.second.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images, labels, training = case.images.clone(), case.labels.clone(), model.training
    generator = torch.get_rng_state()
    streams = Streams(0, torch.arange(len(images)))
    ATTACKS[name](Victim(model, encoder=model), case.images, case.labels, case.threat, streams=streams)
    assert torch.equal(case.images, images)
    assert torch.equal(case.labels, labels)
    assert not case.images.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.first.grad, torch.full_like(model.first, 2.0))
    assert model.second.grad is None
    assert model.first.requires_grad
    assert not model.second.requires_grad
    assert model.training == training
    assert model.dropout.training == training
    assert torch.equal(torch.get_rng_state(), generator)


@properties
def test_the_same_whatever_the_batch(name: str, case: Case) -> None:
    whole = run(name, case)
    assert torch.equal(whole, run(name, case)), "deterministic"
    # Whether a loss has risen is rounding in float32, where products of fewer rows are rounded otherwise.
    case = case._replace(images=case.images.double())
    whole = run(name, case)
    for rows in (slice(0, 1), slice(1, None)):
        if len(case.images[rows]):
            assert_equal64(run(name, case, rows), whole[rows])


@properties
def test_works_where_gradients_are_off(name: str, case: Case) -> None:
    with torch.no_grad():
        off = run(name, case)
    assert torch.equal(off, run(name, case))


@properties
def test_what_is_fooled_already_comes_back_and_what_is_not_fooled_too(name: str, case: Case) -> None:
    if name in LAST_ITERATE:
        return
    found = run(name, case)
    wrong = case.model(case.images).argmax(1) != case.labels
    fooled = case.model(found).argmax(1) != case.labels
    changed = (found != case.images).flatten(1).any(1)
    assert torch.equal(changed, fooled & ~wrong)


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("fab")])
def test_another_seed_is_another_attack(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 6, 6, generator=g)
    model = Smooth(108, 5, 0)
    case = Case(model, images, model(images).argmax(1), Threat(eps=0.3))
    assert not torch.equal(run(name, case, seed=0), run(name, case, seed=1))


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(case=cases(), cut=st.integers(1, 4))
def test_the_ensemble_is_the_same_whatever_the_batch(case: Case, cut: int) -> None:
    case, index = case._replace(images=case.images.double()), 100 + torch.arange(len(case.images))
    attack = partial(AutoAttack(members=("apgd-ce", "apgd-dlr")), case.model, threat=case.threat, seed=2)
    whole = attack(images=case.images, labels=case.labels, index=index)
    parts = [
        attack(images=images, labels=labels, index=places)
        for images, labels, places in zip(
            case.images.split(cut), case.labels.split(cut), index.split(cut), strict=True
        )
    ]
    assert_equal64(torch.cat(parts), whole)
    assert_equal64(attack(images=case.images, labels=case.labels, index=index, batch_size=cut), whole)
