"""Intervals over everything that was drawn: seeds, sets and images, resampled with replacement."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def resampled_means(outcomes: Sequence[np.ndarray], *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Means over sets of resampled sets, seeds and images; (draws,) float64.

    A draw takes as many sets as there are, with replacement, as many seeds, the same for all of its sets, and of every
    set that it takes as many images, the same for all seeds: an image that one training gets wrong is hard for others,
    too.

    Args:
        outcomes: Of each set (seeds, images): whether an image is classified correctly, or any sum of such numbers, as
            the difference of two trainings. NaN is an image that does not count. No seed of a set is NaN throughout.
        draws: How many.
        seed: Random seed.
    """
    generator = np.random.default_rng(seed)
    seeds, sets = len(outcomes[0]), len(outcomes)
    which_sets = generator.integers(sets, size=(draws, sets))
    which_seeds = generator.integers(seeds, size=(draws, seeds))
    means = np.empty((draws, sets))
    for place, values in enumerate(outcomes):
        draw, position = np.nonzero(which_sets == place)
        images = generator.integers(values.shape[1], size=(len(draw), values.shape[1]))
        # A draw without any image that counts says nothing of this set.
        of_seeds = _means(values, images)[np.arange(len(draw))[:, None], which_seeds[draw]]
        means[draw, position] = _mean(of_seeds)
    found = _mean(means)
    return found[~np.isnan(found)]


def interval(outcomes: Sequence[np.ndarray], *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of `resampled_means`."""
    low, high = np.percentile(resampled_means(outcomes, draws=draws, seed=seed), (2.5, 97.5))
    return float(low), float(high)


def _means(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(seeds, n), (draws, n) indices → (draws, seeds), over the images that count; NaN of none."""
    draws, count = images.shape
    places = images + count * np.arange(draws)[:, None]
    times = np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count).astype(float)
    known = ~np.isnan(values)
    return _quotient(times @ np.where(known, values, 0.0).T, times @ known.T.astype(float))


def _mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis, of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    return _quotient(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
