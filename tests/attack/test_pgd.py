import pytest
import torch
from torch.nn import functional as F

from advflyp.attack.pgd import PGD, AttackConfig, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.model.clip import CLIP
from helpers import assert_equal64

THREATS = [Threat(eps=4 / 255), Threat(norm="l2", eps=0.5)]


def data(n: int = 5, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def quadratic(target: torch.Tensor):
    return lambda x: ((x - target) ** 2).flatten(1).sum(1)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_equals_a_step_by_step_reference(threat: Threat, random_start: bool) -> None:
    """The textbook loop in float64, analytic gradient, one image at a time."""
    images, target = data(3, 6).double(), data(6, 6)[3:].double()
    steps, step_size = 5, 0.3 * threat.eps
    ours = pgd(
        images,
        quadratic(target),
        threat,
        steps=steps,
        step_size=step_size,
        random_start=random_start,
        generator=torch.Generator().manual_seed(3),
    )
    start = threat.random_start(images, torch.Generator().manual_seed(3)) if random_start else images
    for x, t, begin, result in zip(images, target, start, ours, strict=True):
        delta = begin - x
        for _ in range(steps):
            gradient = 2 * (x + delta - t)
            if threat.norm == "linf":
                delta = (delta + step_size * gradient.sign()).clamp(-threat.eps, threat.eps)
            else:
                delta = delta + step_size * gradient / gradient.norm()
                delta = delta * min(1.0, threat.eps / delta.norm().item())
            delta = (x + delta).clamp(0, 1) - x
        assert_equal64(result, x + delta)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
def test_raises_the_loss_inside_the_ball(any_tiny: CLIP, threat: Threat) -> None:
    # 1 − cos of embeddings as near as a random ResNet's is 1e-11 at the start: float32 has 6e-8 of 1.
    model, images = any_tiny.double(), data(6, any_tiny.image_size[0]).double()
    images[0], images[1] = 0, 1
    goal = model.encode_image(images).detach()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return 1 - (model.encode_image(x) * goal).sum(1)

    found = pgd(
        images, loss, threat, steps=8, step_size=threat.eps / 4, generator=torch.Generator().manual_seed(0)
    )
    assert threat.contains(images, found).all()
    assert (loss(found) > loss(threat.random_start(images, torch.Generator().manual_seed(0)))).all()
    assert found.dtype == torch.float64 and not found.requires_grad


def test_no_parameter_is_touched(tiny: CLIP) -> None:
    before = {name: p.clone() for name, p in tiny.named_parameters()}
    next(tiny.parameters()).grad = torch.ones_like(next(tiny.parameters()))
    images = data(2)
    pgd(images, lambda x: tiny.encode_image(x).sum(1), THREATS[0], steps=2, step_size=0.01)
    for name, parameter in tiny.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert torch.equal(next(tiny.parameters()).grad, torch.ones_like(next(tiny.parameters())))
    assert all(p.grad is None for p in list(tiny.parameters())[1:])


def test_works_where_gradients_are_off(tiny: CLIP) -> None:
    images = data(2)
    with torch.no_grad():
        found = pgd(images, lambda x: tiny.encode_image(x)[:, 0], THREATS[0], steps=1, step_size=0.01)
    assert not torch.equal(found, images)


def test_scalar_and_per_sample_losses_agree(tiny: CLIP) -> None:
    model, images = tiny.double(), data(4).double()
    text = model.encode_text(["a", "b", "c", "d"]).detach()
    labels = torch.tensor([0, 1, 2, 3])
    results = [
        pgd(
            images,
            lambda x, r=reduction: F.cross_entropy(20 * model.encode_image(x) @ text.T, labels, reduction=r),
            THREATS[0],
            steps=3,
            step_size=1 / 255,
            random_start=False,
        )
        for reduction in ("mean", "none")
    ]
    assert_equal64(results[0], results[1])


def test_same_generator_same_result(tiny: CLIP) -> None:
    images = data(2)

    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pgd(
            images,
            lambda x: tiny.encode_image(x)[:, 0],
            THREATS[0],
            steps=1,
            step_size=0.001,
            generator=generator,
        )

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 0.0}, "eps must be above 0"),
        ({"steps": -1}, r"attack\.steps must be 0 \(clean\) or above"),
        ({"step_size": 0.0}, r"attack\.step_size must be above 0"),
    ],
)
def test_config_refuses(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackConfig(**values)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.5, float("inf")])
def test_pixels_that_are_none(bad: float) -> None:
    images = data(3, 6)
    images[1, 2, 3, 3] = bad
    with pytest.raises(ValueError, match=r"pixels must be numbers from 0 to 1; those of image 1"):
        pgd(images, quadratic(images), THREATS[0], steps=1, step_size=0.01)


@pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])
def test_points_leave_when_fooled_and_the_others_go_on_as_alone(tiny: CLIP, threat: Threat) -> None:
    """Against the plain loop, image by image: the first misclassified iterate, else the last."""
    model, images = tiny.double(), data(12).double()
    # Two classes that meet in the middle of the images: some are next to the border, some are not.
    embeddings = model.encode_image(images).detach()
    direction = torch.linalg.svd(embeddings - embeddings.mean(0)).Vh[0]
    middle = (embeddings @ direction).median()

    def logits(x: torch.Tensor) -> torch.Tensor:
        side = model.encode_image(x) @ direction - middle
        return torch.stack([side, -side], dim=1)

    with torch.no_grad():
        labels = logits(images).argmax(1)
    seen: list[int] = []
    victim = Victim(lambda x: (seen.append(len(x)), logits(x))[1])
    threat = Threat(norm=threat.norm, eps=threat.eps / 8)
    steps, size = 6, threat.eps / 3
    attack = PGD(steps=steps, step_size=size)
    found = attack.perturb(victim, images, labels, threat, streams=Streams(0, torch.arange(12)))
    stayed = 0
    for i in range(12):
        x, label = images[i : i + 1], labels[i : i + 1]
        here = threat.random_start(x, Streams(0, torch.tensor([i])))
        for _ in range(steps):
            leaf = here.clone().requires_grad_()
            z = logits(leaf)
            if z.argmax(1) != label:
                break
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, label), leaf)
            here = threat.project(x, threat.step(here, gradient, size))
        else:
            stayed += 1
        assert_equal64(found[i : i + 1], here)
        assert (logits(found[i : i + 1]).argmax(1) == label) == (logits(here).argmax(1) == label)
    assert seen == sorted(seen, reverse=True) and seen[0] == 12
    assert seen[-1] < 12, "somebody left"
    assert sum(seen) >= stayed * steps
