"""Clustered bootstrap of means over queries: images and, if there are several, seeds are resampled.

The captions of one image are not independent, so an image is a cluster: it is drawn with all of its queries. Two systems
are compared over the same draws (paired bootstrap).

Limitations: the gallery is fixed, so an interval covers other queries, not other galleries. One seed gives no information
about training variance. With S seeds, the variance over seeds is underestimated by the factor (S - 1) / S.

References:
    [0] Efron & Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993: the percentile interval.
    [1] Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007: whole clusters are drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
CONFIDENCE = 0.95

_CHUNK_ELEMENTS = 2**22  # weights in memory at once: 32 MiB

Floats = NDArray[np.float64]


def by_image(values: Floats, image: NDArray[np.int64], images: int) -> tuple[Floats, Floats]:
    """Sum the values of each image's queries.

    Args:
        values: (Q,) one value per query; NaN (undefined) is skipped.
        image: (Q,) the image of each query, in [0, images).
        images: N, the number of images.

    Returns:
        Sums (N,) and counts (N,) of the defined values.

    >>> by_image(np.array([1.0, 3.0, np.nan]), np.array([0, 0, 1]), 2)
    (array([4., 0.]), array([2., 0.]))
    """
    defined = ~np.isnan(values)
    sums = np.bincount(image[defined], values[defined], minlength=images)
    counts = np.bincount(image[defined], minlength=images)
    return sums.astype(np.float64), counts.astype(np.float64)


def mean_over_seeds(sums: Floats, counts: Floats) -> Floats:
    """Compute the point estimate: the mean over seeds of the mean over queries.

    Args:
        sums: (S, N, M), see :func:`bootstrap_mean`.
        counts: (S, N, M).

    Returns:
        (M,), one value per metric.

    >>> mean_over_seeds(np.array([[[2.0], [4.0]]]), np.array([[[1.0], [2.0]]]))
    array([2.])
    """
    estimate: Floats = _ratio(sums.sum(axis=1), counts.sum(axis=1)).mean(axis=0)
    return estimate


def bootstrap_mean(sums: Floats, counts: Floats, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """Resample images and seeds with replacement and compute :func:`mean_over_seeds` of each replicate.

    A replicate draws N of N images, shared by all seeds and metrics, and S of S seeds. The draws depend only on S, N,
    `replicates` and `seed`, so the results of two systems can be subtracted row by row.

    Args:
        sums: (S, N, M), the sum over an image's queries for each seed, image and metric; see :func:`by_image`.
        counts: (S, N, M), the number of these queries; 0 for an image without queries.
        replicates: R, at least 1.
        seed: random seed, at least 0.

    Returns:
        (R, M); NaN where no drawn image has a query of the metric.

    Raises:
        ValueError: the shapes do not match, there are no seeds or images, or `replicates` is below 1.

    >>> bootstrap_mean(np.full((1, 5, 1), 3.0), np.ones((1, 5, 1)), replicates=2)
    array([[3.],
           [3.]])
    """
    if sums.ndim != 3 or sums.shape != counts.shape:
        raise ValueError(f"sums and counts must both be (seeds, images, metrics), not {sums.shape} and {counts.shape}")
    seeds, images, metrics = sums.shape
    if not seeds or not images:
        raise ValueError(f"there must be seeds and images to draw from, found {seeds} and {images}")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, not {replicates}")
    # Separate streams, so that the draws do not depend on the chunk size.
    image_draws, seed_draws = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    columns = np.concatenate((sums, counts), axis=2).transpose(1, 0, 2).reshape(images, seeds * 2 * metrics)
    chunk = max(1, _CHUNK_ELEMENTS // max(columns.shape))
    results = np.empty((replicates, metrics))
    for first in range(0, replicates, chunk):
        size = min(chunk, replicates - first)
        totals = (_times_drawn(image_draws, size, images) @ columns).reshape(size, seeds, 2 * metrics)
        means = _ratio(totals[..., :metrics], totals[..., metrics:])
        drawn = _times_drawn(seed_draws, size, seeds) / seeds
        results[first : first + size] = (drawn[..., None] * means).sum(axis=1)
    return results


def interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[Floats, Floats]:
    """Compute the percentile interval of each metric.

    Args:
        values: (R, M) replicates; NaN is skipped.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        Lower and upper bounds, each (M,); NaN for a metric without a defined replicate.

    Raises:
        ValueError: `confidence` is out of range.

    >>> interval(np.arange(101.0)[:, None], confidence=0.9)
    (array([5.]), array([95.]))
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    low, high = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    low[known], high[known] = np.nanquantile(values[:, known], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _times_drawn(draws: np.random.Generator, size: int, items: int) -> Floats:
    """Count how often each item is drawn when `items` are drawn with replacement: (size, items) multinomial weights."""
    drawn = draws.integers(items, size=(size, items)) + items * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items).astype(np.float64)


def _ratio(sums: Floats, counts: Floats) -> Floats:
    means: Floats = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means
