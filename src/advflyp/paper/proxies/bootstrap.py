"""Bootstrap intervals over seeds, sets and images, all resampled with replacement."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def resampled_means(outcomes: Sequence[np.ndarray], *, draws: int = DRAWS) -> np.ndarray:
    """Bootstrap means over sets; (draws,) float64, without draws in which no image counts.

    Each draw resamples the sets, the seeds (the same for all sets of the draw), and the images of each drawn set (the
    same for all seeds: an image that one training gets wrong is hard for others, too).

    Args:
        outcomes: For each set (seeds, images): whether an image is classified correctly, or a signed sum of such
            numbers, such as the difference of two trainings. NaN is an image that does not count; seeds and sets with
            none that counts are left out of the means.
        draws: Number of draws.
    """
    generator = np.random.default_rng(0)
    seeds, sets = len(outcomes[0]), len(outcomes)
    which_sets = generator.integers(sets, size=(draws, sets))
    which_seeds = generator.integers(seeds, size=(draws, seeds))
    means = np.empty((draws, sets))
    for place, values in enumerate(outcomes):
        draw, position = np.nonzero(which_sets == place)
        images = generator.integers(values.shape[1], size=(len(draw), values.shape[1]))
        # NaN if a draw has no image of this set that counts.
        of_seeds = _means(values, images)[np.arange(len(draw))[:, None], which_seeds[draw]]
        means[draw, position] = _mean(of_seeds)
    found = _mean(means)
    return found[~np.isnan(found)]


def interval(outcomes: Sequence[np.ndarray], *, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % percentile interval of `resampled_means`."""
    low, high = np.percentile(resampled_means(outcomes, draws=draws), (2.5, 97.5))
    return float(low), float(high)


def _means(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """(seeds, n), (draws, n) indices → (draws, seeds), over the images that count; NaN if there are none."""
    draws, count = images.shape
    places = images + count * np.arange(draws)[:, None]
    times = np.bincount(places.ravel(), minlength=draws * count).reshape(draws, count).astype(float)
    known = ~np.isnan(values)
    return _quotient(times @ np.where(known, values, 0.0).T, times @ known.T.astype(float))


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean along the last axis, ignoring NaN; NaN if all values are."""
    known = ~np.isnan(values)
    return _quotient(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
