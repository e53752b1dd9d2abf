"""The bootstrap over seeds, sets and images, against all resamples of a small world and against known variances."""

import itertools
from collections import Counter

import numpy as np
import pytest

from advflyp.paper.proxies.bootstrap import interval, resampled_means


def every_resample(outcomes: list[np.ndarray]) -> Counter[float]:
    """The mean of each resample, and how many resamples have it; by loops alone."""
    sets, (seeds, images) = len(outcomes), outcomes[0].shape
    found: Counter[float] = Counter()
    for which_sets in itertools.product(range(sets), repeat=sets):
        for which_seeds in itertools.product(range(seeds), repeat=seeds):
            of_set = itertools.product(range(images), repeat=images)
            for which_images in itertools.product(list(of_set), repeat=sets):
                total = 0.0
                for place, images_of_it in zip(which_sets, which_images, strict=True):
                    values = [outcomes[place][seed][image] for seed in which_seeds for image in images_of_it]
                    total += sum(values) / len(values)
                found[round(total / sets, 9)] += 1
    return found


def test_frequencies_are_those_of_all_resamples() -> None:
    outcomes = [np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])]
    exact = every_resample(outcomes)
    total, draws = exact.total(), 20_000
    found = Counter(np.round(resampled_means(outcomes, draws=draws), 9).tolist())
    assert set(found) <= set(exact)
    for value, count in exact.items():
        share = count / total
        # Five standard deviations of the share in so many draws.
        assert found[value] / draws == pytest.approx(share, abs=5 * (share * (1 - share) / draws) ** 0.5)


@pytest.mark.parametrize("drawn", ["images", "seeds", "sets"])
def test_each_kind_brings_its_own_variance(drawn: str) -> None:
    values = np.random.default_rng(1).random(12)
    outcomes = {
        "images": [values[None, :]],
        "seeds": [np.repeat(values[:, None], 5, axis=1)],
        "sets": [np.full((2, 5), value) for value in values],
    }[drawn]
    found = resampled_means(outcomes, draws=40_000)
    assert found.mean() == pytest.approx(values.mean(), abs=0.005)
    # Of a mean of n that are drawn with replacement: the population's variance over n.
    assert found.var() == pytest.approx(values.var() / len(values), rel=0.05)


def test_images_that_do_not_count_are_as_if_they_were_not_there() -> None:
    generator = np.random.default_rng(2)
    values = generator.integers(0, 2, size=(3, 400)).astype(float)
    with_others = np.where(np.arange(400) % 2 == 0, values, np.nan)
    low, high = interval([with_others, with_others], draws=20_000)
    same = interval([values[:, ::2], values[:, ::2]], draws=20_000)
    assert (low, high) == pytest.approx(same, abs=0.004)


def test_a_difference_of_trainings_that_fail_on_the_same_images_is_sure() -> None:
    """Paired: the images are the same for both, so that what is hard for both makes no interval."""
    hard = np.random.default_rng(3).integers(0, 2, size=(1, 300)).astype(float)
    low, high = interval([hard - hard])
    assert low == high == 0
    low, high = interval([hard])
    assert high - low > 0.1
