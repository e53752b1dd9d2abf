import torch

from advflyp.attack.streams import Streams, _mix

N = 64


def streams(seed: int = 0, n: int = N) -> Streams:
    return Streams(seed, torch.arange(n))


def test_the_finaliser_is_that_of_splitmix64() -> None:
    """In Python's own integers, which do not wrap around by themselves."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    values = [0, 1, 12345, 2**63 - 1, -1, -(2**63), -987654321]
    assert [v % 2**64 for v in _mix(torch.tensor(values)).tolist()] == [mix(v % 2**64) for v in values]


def test_uniform_numbers_are_uniform() -> None:
    x = streams().uniform(3, 32, 32)
    assert x.shape == (N, 3, 32, 32)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() < 1
    counts = torch.histc(x, 100, 0, 1)
    expected = x.numel() / 100
    # χ² with 99 degrees of freedom: mean 99, standard deviation 14
    assert 50 < ((counts - expected) ** 2 / expected).sum() < 170


def test_normal_numbers_are_normal() -> None:
    x = streams().normal(3, 32, 32).double().flatten()
    assert torch.isfinite(x).all()
    # Each to 4 standard errors: the variances of x, x², x³ and x⁴ are 1, 2, 15 and 96.
    for power, moment, variance in ((1, 0.0, 1), (2, 1.0, 2), (3, 0.0, 15), (4, 3.0, 96)):
        assert abs((x**power).mean().item() - moment) < 4 * (variance / len(x)) ** 0.5
    within = 0.6827
    error = (within * (1 - within) / len(x)) ** 0.5
    assert abs((x.abs() < 1).double().mean().item() - within) < 4 * error


def test_the_same_numbers_in_float32_and_float64() -> None:
    """Bit for bit where they are multiples of 2⁻²⁴; ln and cos of them, up to √(2·17)·2⁻²⁴, are rounded otherwise."""
    for draw in ("uniform", "signs"):
        one, other = (getattr(streams(), draw)(3, 8, dtype=dtype) for dtype in (torch.float32, torch.float64))
        assert other.dtype == torch.float64 and torch.equal(one.double(), other)
    one, other = (streams().normal(3, 8, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert one.dtype == torch.float32 and other.dtype == torch.float64
    assert (one - other).abs().max() < 8 * 2**-22


def test_integers_and_signs() -> None:
    counts = torch.bincount(streams().integers(7, 2000).flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts / counts.sum() - 1 / 7).abs().max() < 0.005
    assert streams().integers(5).shape == (N,)
    signs = streams().signs(2000)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean().abs() < 0.01


def test_neighbours_draws_and_seeds_are_unrelated() -> None:
    count = 20_000
    first = streams(0, 4)
    rows = [*first.uniform(count), *first.uniform(count), *streams(1, 4).uniform(count)]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert correlation.abs().max() < 4.5 / count**0.5
    lagged = torch.corrcoef(torch.stack([rows[0][1:], rows[0][:-1]]))[0, 1]
    assert lagged.abs() < 4.5 / count**0.5


def test_an_image_draws_the_same_in_every_company() -> None:
    whole = streams(5)
    first, second = whole.uniform(3, 4, 4), whole.normal(7)
    alone = Streams(5, torch.tensor([41]))
    assert torch.equal(alone.uniform(3, 4, 4)[0], first[41])
    assert torch.equal(alone.normal(7)[0], second[41])
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Streams(5, order).uniform(3, 4, 4), first[order])


def test_those_that_stay_go_on_where_they_stood() -> None:
    whole, some = streams(), streams()
    whole.uniform(5)
    some.uniform(5)
    mask = torch.arange(N) % 3 == 0
    some = some[mask]
    assert len(some) == mask.sum()
    assert torch.equal(some.uniform(9), whole.uniform(9)[mask])
    assert torch.equal(some[torch.tensor([2, 0])].signs(3), whole.signs(3)[torch.tensor([6, 0])])


def test_a_part_does_not_move_the_whole() -> None:
    whole = streams()
    whole[torch.tensor([1])].uniform(3)
    assert torch.equal(whole.uniform(3), streams().uniform(3))


def test_many_draws_at_once_are_those_one_by_one() -> None:
    """Also of shorter draws, of part of the images, and of what comes before and after."""
    at_once, one_by_one = streams(7), streams(7)
    assert torch.equal(at_once.signs(5), one_by_one.signs(5))
    ahead = at_once.ahead(6, 3)
    assert ahead.shape == (N, 6, 3) and ahead.dtype == torch.float32
    for number in range(6):
        count = 1 + number % 3
        assert torch.equal(ahead[:, number, :count], one_by_one.uniform(count))
    assert torch.equal(at_once.normal(4), one_by_one.normal(4))
    some = torch.tensor([5, 60, 0])
    assert torch.equal(streams(7)[some].ahead(6, 3), streams(7).ahead(6, 3)[some])


def test_large_seeds_and_places() -> None:
    far = Streams(2**70 + 3, torch.tensor([0, 2**40, 2**62])).uniform(1000)
    assert (far.mean(1) - 0.5).abs().max() < 0.05
    assert (far[0] != far[1]).any()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    streams().normal(10)
    assert torch.equal(torch.get_rng_state(), before)
