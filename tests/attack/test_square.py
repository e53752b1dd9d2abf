from itertools import pairwise

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from advflyp.attack import square as module
from advflyp.attack.square import Square
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from attack.classifiers import pictures
from helpers import assert_equal64

LINF, L2 = Threat(eps=0.1), Threat(norm="l2", eps=0.8)


@pytest.mark.parametrize("p_init", [-5.0, 0.0, 1.01, 5.0, float("nan")])
def test_the_first_squares_cover_a_part_of_the_image(p_init: float) -> None:
    with pytest.raises(ValueError, match="p_init must be above 0 and at most 1, for example 0.8, not"):
        Square(p_init=p_init)
    assert Square(p_init=1).p_init == 1


def grey(n: int = 6, size: int = 20) -> tuple[Tensor, Tensor]:
    return torch.full((n, 3, size, size), 0.5, dtype=torch.float64), torch.zeros(n, dtype=torch.long)


class Firm:
    """Nothing fools it, and the margin rises with the number of the query: every proposal is taken."""

    def __init__(self, rising: bool = True) -> None:
        self.rising = rising
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.seen.append(images.clone())
        gap = 1000 - len(self.seen) if self.rising else 1000 + len(self.seen)
        return torch.tensor([float(gap), 0.0]).expand(len(images), 2)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query is a call of its own, for victims that count them."""
    monkeypatch.setattr(module, "AT_ONCE_ON_CPU", 1)


def run(threat: Threat, queries: int, rising: bool = True, **options) -> list[Tensor]:
    """The images asked about: the clean ones, the start, the proposals."""
    victim = Firm(rising)
    images, labels = grey()
    attack = Square(queries=queries, **options)
    attack.perturb(Victim(victim), images, labels, threat, streams=Streams(0, torch.arange(6)))
    assert len(victim.seen) == queries + 2
    return victim.seen


@pytest.mark.usefixtures("one_by_one")
def test_linf_begins_with_stripes() -> None:
    images, start, *_ = run(LINF, 1)
    delta = start - images
    assert_equal64(delta.abs(), torch.full_like(delta, LINF.eps))
    assert_equal64(delta, delta[:, :, :1].expand_as(delta))
    assert (delta[:, :, 0].sign().mean(2).abs() < 1).all(), "both signs"


def changed_square(before: Tensor, after: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the box that holds all that changed in one image."""
    rows, columns = ((before - after).abs().amax(0) > 1e-6).nonzero().unbind(1)
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


@pytest.mark.usefixtures("one_by_one")
def test_linf_proposals_are_squares_of_one_colour_at_the_published_sizes() -> None:
    seen = run(LINF, 260)
    images = seen[0]
    published = SquareAttack(nn.Identity(), n_queries=5000, resc_schedule=False, p_init=0.8)
    full = 0
    for query, (before, after) in enumerate(pairwise(seen[1:])):
        side = min(max(round((published.p_selection(query) * 400) ** 0.5), 1), 20)
        for x, old, new in zip(images, before, after, strict=True):
            assert_equal64((new - x).abs(), torch.full_like(x, LINF.eps))
            if torch.equal(old, new):
                continue
            top, left, height, width = changed_square(old, new)
            assert max(height, width) <= side
            full += height == width == side
            patch = (new - x)[:, top : top + height, left : left + width].flatten(1)
            moved = ((new - old).abs() > 1e-6)[:, top : top + height, left : left + width].flatten(1)
            assert all(len(p[m].sign().unique()) <= 1 for p, m in zip(patch, moved, strict=True))
    assert full > 100


@pytest.mark.usefixtures("one_by_one")
def test_squares_reach_every_pixel_and_differ_between_images() -> None:
    seen = run(LINF, 700)
    touched = torch.zeros(20, 20, dtype=torch.bool)
    for before, after in pairwise(seen[1:]):
        touched |= ((before - after).abs() > 1e-6).any(0).any(0)
    assert touched.all(), "the last row and column too, which the released code leaves out"
    first, second = (changed_square(seen[300][i], seen[301][i]) for i in (0, 1))
    assert first != second


@pytest.mark.usefixtures("one_by_one")
def test_rescaling_goes_through_the_whole_schedule() -> None:
    published = SquareAttack(nn.Identity(), n_queries=100, resc_schedule=True, p_init=0.8)
    seen = run(LINF, 100, rescale=True)
    for query in (5, 50, 99):
        side = max(round((published.p_selection(query) * 400) ** 0.5), 1)
        sizes = [
            max(changed_square(a, b)[2:])
            for a, b in zip(seen[query + 1], seen[query + 2], strict=True)
            if not torch.equal(a, b)
        ]
        assert max(sizes) == side


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
def test_an_image_is_asked_the_same_in_every_company(threat: Threat) -> None:
    """Alone, and where others leave between and within the queries whose numbers are drawn at once."""

    class Leaving(Firm):
        def __init__(self, number: int, leave_at: dict[int, int]) -> None:
            super().__init__()
            self.leave_at, self.left = leave_at, list(range(number))
            self.asked: dict[int, list[Tensor]] = {image: [] for image in range(number)}

        def __call__(self, images: Tensor) -> Tensor:
            logits = super().__call__(images).clone()
            gone = self.leave_at.get(len(self.seen))
            for row, image in enumerate(self.left):
                self.asked[image].append(images[row].clone())
                if image == gone:
                    logits[row] = -logits[row]
            self.left = [image for image in self.left if image != gone]
            return logits

    images, labels = grey(4)
    together = Leaving(4, {30: 1, 80: 3, 131: 0})
    attack = Square(queries=200)
    attack.perturb(Victim(together), images, labels, threat, streams=Streams(0, torch.arange(4)))
    assert [len(together.asked[image]) for image in range(4)] == [131, 30, 202, 80]
    for image in range(4):
        alone = Leaving(1, {})
        only = slice(image, image + 1)
        attack.perturb(
            Victim(alone), images[only], labels[only], threat, streams=Streams(0, torch.tensor([image]))
        )
        for ours, theirs in zip(together.asked[image], alone.asked[0], strict=False):
            assert_equal64(ours, theirs)


@pytest.mark.usefixtures("one_by_one")
def test_a_worse_proposal_is_not_taken() -> None:
    seen = run(LINF, 50, rising=False)
    start = seen[1]
    for proposal in seen[2:]:
        for old, new in zip(start, proposal, strict=True):
            if not torch.equal(old, new):
                assert max(changed_square(old, new)[2:]) <= 18


@pytest.mark.usefixtures("published_in_float64")
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13])
def test_bumps_are_the_published_ones(side: int) -> None:
    published = SquareAttack(nn.Identity(), norm="L2", eps=1.0, device="cpu")
    with torch.random.fork_rng():
        expected = published.eta(side)
    bump = module._bump(side, torch.empty((), dtype=torch.float64))
    assert bump.shape == (side, side)
    # Below 1, all of them; the published code adds 1e-12 to their length.
    assert min((bump - published).abs().max() for published in (expected, expected.T)) < 1e-11


@pytest.mark.usefixtures("one_by_one")
def test_l2_begins_with_a_grid_of_bumps_and_uses_all_of_eps() -> None:
    images, start, *_ = run(L2, 1)
    delta = start - images
    assert_equal64(delta.flatten(1).norm(dim=1), torch.full((6,), L2.eps, dtype=torch.float64))
    tiles = delta.view(6, 3, 5, 4, 5, 4).square().sum((3, 5)).sqrt()
    assert_equal64(tiles, torch.full_like(tiles, L2.eps / 75**0.5))
    bump = module._bump(4, images)
    along = [torch.einsum("nchiwj,ij->nchw", delta.view(6, 3, 5, 4, 5, 4), one) for one in (bump, bump.T)]
    upright, lying = (torch.isclose(one.abs(), tiles.expand_as(one), rtol=1e-9) for one in along)
    assert (upright != lying).all()
    assert upright.any() and lying.any(), "both directions"
    assert (upright == upright[:, :1]).all(), "the same in every colour"


@pytest.mark.usefixtures("one_by_one")
def test_l2_proposals_keep_the_length_and_change_two_windows_at_most() -> None:
    seen = run(L2, 60)
    images = seen[0]
    for query, (before, after) in enumerate(pairwise(seen[1:])):
        length = (after - images).flatten(1).norm(dim=1)
        assert_equal64(length, torch.full_like(length, L2.eps))
        if query > 50:
            side = 9  # 0.8 / 4 of 400 pixels, made odd
            moved = ((after - before).abs().amax(1) > 1e-6).flatten(1).sum(1)
            assert (moved <= 2 * side**2).all()
            assert (moved > 0).any()


@pytest.mark.parametrize("threat", [Threat(eps=24 / 255), Threat(norm="l2", eps=2.0)], ids=["linf", "l2"])
def test_gets_better_with_queries(plain: nn.Module, threat: Threat) -> None:
    images, labels = pictures(10, 60, 5)

    def standing(queries: int) -> int:
        streams = Streams(0, torch.arange(60))
        found = Square(queries=queries).perturb(Victim(plain), images, labels, threat, streams=streams)
        return int((plain(found).argmax(1) == labels).sum())

    few, many = standing(3), standing(150)
    assert many < few - 5


@pytest.mark.parametrize("threat", [Threat(eps=16 / 255), Threat(norm="l2", eps=1.0)], ids=["linf", "l2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_several_queries_at_once_are_one_after_the_other(
    plain: nn.Module, threat: Threat, rescale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposals behind one that is taken are made again, from it."""
    images, labels = pictures(10, 12, 5)
    calls: list[int] = []

    def classifier(images: Tensor) -> Tensor:
        calls.append(len(images))
        return plain(images)

    def found(at_once: int) -> tuple[Tensor, list[int]]:
        monkeypatch.setattr(module, "AT_ONCE_ON_CPU", at_once)
        calls.clear()
        attack = Square(queries=300, rescale=rescale)
        streams = Streams(0, torch.arange(len(images)))
        return attack.perturb(Victim(classifier), images, labels, threat, streams=streams), calls.copy()

    expected, one_by_one = found(1)
    assert 0 < (plain(expected).argmax(1) == labels).sum() < len(images), "some leave, and some stay"
    for at_once in (16, 40, 1000):
        result, several = found(at_once)
        assert_equal64(result, expected)
        assert max(several) <= max(at_once, len(images))
    assert len(several) < len(one_by_one), "the network is called less often"


L2 = Threat(norm="l2", eps=1.0)


def test_the_sides_of_windows_in_l2_are_odd() -> None:
    images = torch.full((1, 3, 20, 20), 0.5)
    assert [module._Bumps(L2, side, images).side for side in (1, 3, 4, 8, 9)] == [3, 3, 5, 9, 9]


def test_a_proposal_in_l2_is_upright_or_on_its_side() -> None:
    images = torch.full((2, 3, 20, 20), 0.5)
    drawn = torch.full((2, 6, 3), 0.25)
    drawn[1, 4] = 0.75
    upright, lying = module._Bumps(L2, 5, images)(images, images.clone(), drawn) - images
    assert not torch.equal(upright, lying)
    torch.testing.assert_close(lying, upright.transpose(1, 2))
