"""The ensemble and each member, against the published implementation and for what holds of all of them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from pyautoattack import AutoAttack as Published
from torch import Tensor, nn

from advflyp.attack.autoattack import MEMBERS, AutoAttack
from advflyp.attack.base import Custom, Member
from advflyp.attack.names import RAND, STANDARD
from advflyp.attack.pgd import PGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.classifiers import pictures, train

SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2"}


def small(name: str, steps: int, queries: int, targets: int = 9) -> Member:
    """A member with a smaller budget."""
    options = {"queries": queries} if name == "square" else {"steps": steps}
    return replace(MEMBERS[name], **options, **({"targets": targets} if name.endswith("-t") else {}))


def published(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    members: tuple[str, ...],
    steps: int,
    queries: int,
    targets: int,
) -> Tensor:
    """(N,) bool: what stands after the published implementation."""
    theirs = Published(model, norm=NORMS[threat.norm], eps=threat.eps, seed=0, version="standard")
    theirs.logger.setLevel(logging.ERROR)
    theirs.attacks_to_run = list(members)
    for attack in (theirs.apgd, theirs.apgd_targeted):
        attack.n_iter, attack.n_target_classes = steps, targets
        windows = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        attack.n_iter_2, attack.n_iter_min, attack.size_decr = windows
    theirs.fab.n_iter, theirs.fab.n_target_classes = steps, targets
    theirs.square.n_queries = queries
    with torch.random.fork_rng():
        adversarial, _ = theirs.run_standard_evaluation(images, labels, batch_size=len(images))
    return model(adversarial).argmax(1) == labels


def stands(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat, found: Tensor) -> Tensor:
    """(N,) bool, of adversarial images that must be inside the ball."""
    assert threat.contains(images, found).all()
    # Pixels are rounded to 2⁻⁵³; over the length of 768 of them that is 3e-15.
    assert (threat.distance(images, found) <= threat.eps + 1e-14).all()
    return model(found).argmax(1) == labels


@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize(
    ("fixture", "threat"),
    [
        ("robust", Threat(eps=24 / 255)),
        ("plain", Threat(norm="l2", eps=1.0)),
    ],
    ids=["linf", "l2"],
)
def test_as_strong_as_the_published_member(
    name: str, fixture: str, threat: Threat, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(fixture)
    images, labels = pictures(10, 60, 5)
    streams = Streams(0, torch.arange(60))
    found = small(name, 20, 200, 3).perturb(Victim(model), images, labels, threat, streams=streams)
    ours = stands(model, images, labels, threat, found)
    theirs = published(model, images, labels, threat, (name,), 20, 200, 3)
    # Random starts decide about one or two images, random squares about a few more.
    assert ours.sum() <= theirs.sum() + (6 if name == "square" else 2)


@pytest.mark.slow
@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize(
    ("fixture", "threat"),
    [
        ("plain", Threat(eps=18 / 255)),
        ("plain", Threat(norm="l2", eps=1.0)),
        ("robust", Threat(eps=24 / 255)),
        ("robust", Threat(norm="l2", eps=1.8)),
    ],
    ids=["plain-linf", "plain-l2", "robust-linf", "robust-l2"],
)
def test_as_strong_as_the_published_ensemble(
    fixture: str, threat: Threat, request: pytest.FixtureRequest
) -> None:
    """At the standard budget."""
    model = request.getfixturevalue(fixture)
    images, labels = pictures(10, 80, 5)
    ours = stands(model, images, labels, threat, AutoAttack()(model, images, labels, threat))
    theirs = published(model, images, labels, threat, STANDARD, 100, 5000, 9)
    assert ours.sum() <= theirs.sum() + 1
    assert (ours != theirs).sum() <= 2


@pytest.fixture(scope="module")
def few_classes() -> dict[int, nn.Module]:
    return {classes: train(classes, None, steps=40) for classes in (2, 3, 5)}


class Counting:
    """Counts the images that pass."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return self.model(images)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("threat", [Threat(eps=60 / 255), Threat(norm="l2", eps=5)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", SINGLE)
def test_few_classes(few_classes: dict[int, nn.Module], name: str, threat: Threat, classes: int) -> None:
    model = few_classes[classes]
    images, labels = pictures(classes, 30, 5)
    clean = model(images).argmax(1) == labels
    found = small(name, 20, 150).perturb(
        Victim(model), images, labels, threat, streams=Streams(0, torch.arange(30))
    )
    after = stands(model, images, labels, threat, found)
    assert clean.float().mean() > 0.9
    assert after.sum() < (0.8 if name == "square" else 0.2) * clean.sum()


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (5, 4), (10, 9), (12, 9)])
def test_budgets_and_number_of_targets(classes: int, targets: int) -> None:
    """Where nothing can be found, every pass is made: one on the clean images, and the attack's own."""
    g = torch.Generator().manual_seed(0)
    weights = torch.randn(48, classes, generator=g)
    images = torch.rand(3, 3, 4, 4, generator=g)

    def search(x: Tensor) -> Tensor:
        return (x.flatten(1) - 0.5) @ weights

    labels = search(images).argmax(1)
    expected = {
        "apgd-ce": 1 + 5,
        "apgd-dlr": 1 + 5,
        "apgd-t": 1 + targets * 5,
        "fab-t": 1 + targets * 2 * 4,
        "square": 1 + 1 + 7,
        "apgd-ce-eot20": 1 + 20 * 5,
    }
    for name, passes in expected.items():
        victim = Counting(search)
        found = small(name, 4, 7).perturb(
            Victim(victim), images, labels, Threat(eps=1e-6), streams=Streams(0, torch.arange(3))
        )
        assert victim.images == 3 * passes, name
        assert torch.equal(found, images), "unchanged where nothing is found"


@pytest.mark.parametrize("threat", [Threat(eps=14 / 255), Threat(norm="l2", eps=1.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", SINGLE)
def test_who_is_fooled_is_not_looked_at_again(plain: nn.Module, name: str, threat: Threat) -> None:
    images, labels = pictures(10, 40, 5)
    labels[:3] = (labels[:3] + 1) % 10  # misclassified from the start
    done = torch.zeros(40, dtype=torch.bool)

    def search(x: Tensor) -> Tensor:
        # Originals are far apart, so that the nearest one is the image that was asked about.
        who = torch.cdist(x.detach().flatten(1), images.flatten(1)).argmin(1)
        assert len(who.unique()) == len(who)
        assert not done[who].any(), "was fooled already"
        logits = plain(x)
        fooled = logits.argmax(1) != labels[who]
        done[who] |= fooled & threat.contains(images[who], x.detach())
        return logits

    found = small(name, 12, 80, 3).perturb(
        Victim(search), images, labels, threat, streams=Streams(0, torch.arange(40))
    )
    assert torch.equal(done, plain(found).argmax(1) != labels)
    assert done[3:].any()
    assert torch.equal(found[:3], images[:3]), "misclassified images come back as they are"
    assert torch.equal(found[~done], images[~done])


def test_stages_run_one_after_the_other_on_those_that_stand(plain: nn.Module) -> None:
    images, labels = pictures(10, 20, 5)
    images = images * 0.98 + 0.01
    with torch.no_grad():
        labels = plain(images).argmax(1)
    labels[9] = (labels[9] + 1) % 10
    grey = torch.full_like(images[:1], 0.5)
    labels[plain(grey).argmax(1) == labels] = -1
    inside = (labels >= 0).nonzero().squeeze(1)
    images, labels = images[inside], labels[inside]
    called = []

    def member(hit: list[int], victim, images, labels, threat, *, streams) -> Tensor:
        called.append((streams.index.tolist(), streams.seed))
        fooled = torch.isin(streams.index, torch.tensor(hit))
        return torch.where(fooled[:, None, None, None], grey, images)

    every = list(range(3, 3 + len(images)))
    wrong = [place for place, row in zip(every, inside.tolist(), strict=True) if row == 9]
    stages = [partial(member, hit) for hit in (every[1:3], every[4:5], every, every)]

    class Staged(Custom):
        def stages(self, threat: Threat):
            return stages

    attack = Staged(function=stages[0])
    found = attack(plain, images, labels, Threat(eps=1), seed=3, index=torch.tensor(every))
    left = [place for place in every if place not in wrong]
    assert [index for index, _ in called] == [
        left,
        [place for place in left if place not in every[1:3]],
        [place for place in left if place not in (*every[1:3], every[4])],
    ]
    assert len({seed for _, seed in called}) == 3
    rows = torch.tensor(every)
    assert torch.equal(
        found[torch.isin(rows, torch.tensor(wrong))], images[torch.isin(rows, torch.tensor(wrong))]
    )
    assert torch.equal(found[torch.isin(rows, torch.tensor(left))], grey.expand(len(left), -1, -1, -1))


def test_the_ensemble_is_as_strong_as_its_first_member(plain: nn.Module) -> None:
    images, labels = pictures(10, 60, 5)
    threat, index = Threat(eps=14 / 255), torch.arange(60) + 7
    members = (small("square", 5, 5), small("apgd-ce", 5, 5))
    alone, together = (
        stands(plain, images, labels, threat, attack(plain, images, labels, threat, index=index))
        for attack in (members[0], AutoAttack(members=members))
    )
    assert not (together & ~alone).any() and together.sum() < alone.sum()


def test_arguments_are_those_of_the_published_ensemble() -> None:
    threat = Threat(eps=1 / 255)
    assert STANDARD == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert AutoAttack().name == "autoattack" and AutoAttack(members=RAND).name == "autoattack-rand"
    assert AutoAttack().arguments(threat, 1000) == {
        "apgd-ce": {"loss": "cross_entropy", "steps": 100, "eot": 1},
        "apgd-t": {"targets": 9, "steps": 100},
        "fab-t": {"targets": 9, "steps": 100},
        "square": {"queries": 5000, "p_init": 0.8, "rescale": False},
    }
    few = AutoAttack().arguments(threat, 4)
    assert few["apgd-t"]["targets"] == few["fab-t"]["targets"] == 3
    assert AutoAttack(members=RAND).arguments(threat, 10) == {
        f"apgd-{name}-eot20": {"loss": loss, "steps": 100, "eot": 20}
        for name, loss in (("ce", "cross_entropy"), ("dlr", "dlr"))
    }


def test_what_is_not_the_published_ensemble_is_not_called_so() -> None:
    small_ones = AutoAttack(members=(small("apgd-ce", 5, 0), "square"))
    assert small_ones.name == "apgd-ce(steps=5)+square"
    assert small_ones.arguments(Threat(eps=0.1), 10)["apgd-ce"]["steps"] == 5
    assert (
        AutoAttack(members=("apgd-ce", "apgd-ce", "square")).arguments(None, 10)["apgd-ce"]["restarts"] == 2
    )
    two = AutoAttack(members=(small("apgd-ce", 5, 0), "apgd-ce", small("apgd-ce", 5, 0))).arguments(None, 10)
    assert (two["apgd-ce"]["steps"], two["apgd-ce"]["restarts"]) == (5, 2)
    assert two["apgd-ce 2"]["steps"] == 100 and "restarts" not in two["apgd-ce 2"]
    assert PGD(steps=7, step_size=0.5).name == "pgd7(step_size=0.5)"
    for members in ((), ("apgd",), (PGD(),)):
        with pytest.raises(ValueError, match="AutoAttack's members are"):
            AutoAttack(members=members)


def test_restarts_of_an_ensemble_are_run() -> None:
    attack = AutoAttack(members=("apgd-ce", "square"), restarts=3)
    kinds = [type(stage.__self__).__name__ for stage in attack.stages(Threat(eps=0.1))]  # type: ignore[attr-defined]
    assert kinds == ["APGD", "Square"] * 3
