"""Bootstrap of means over queries, where what is drawn again is images, and seeds if there are several.

The captions of one image are not independent: they describe the same picture. So an image is drawn with all
of its queries (a cluster), or the interval would be as narrow as if each caption were new evidence. Means of
two systems over the same draws are paired: their difference is free of what makes a draw of images hard.

What it cannot say: the gallery stays as it was, so an interval is about other queries of the same kind, not
about larger or other galleries. With one seed nothing is said about training again; with few, the draws of
seeds spread too little (by (S - 1) / S in variance), so the interval is somewhat too narrow.

References:
    [0] Efron & Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993: the percentile interval.
    [1] Field & Welsh, "Bootstrapping clustered data", JRSS B 69(3), 2007: clusters drawn whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000
CONFIDENCE = 0.95

_CHUNK_ELEMENTS = 2**22  # of the weights held at once: 32 MiB

Floats = NDArray[np.float64]


def by_image(values: Floats, image: NDArray[np.int64], images: int) -> tuple[Floats, Floats]:
    """Add up the values of each image's queries.

    Args:
        values: (Q,) one per query; NaN where undefined, which is left out.
        image: (Q,) the image of each query, in [0, images).
        images: number of images N.

    Returns:
        Sums (N,) and numbers (N,) of the values that are defined.

    >>> by_image(np.array([1.0, 3.0, np.nan]), np.array([0, 0, 1]), 2)
    (array([4., 0.]), array([2., 0.]))
    """
    defined = ~np.isnan(values)
    sums = np.bincount(image[defined], values[defined], minlength=images)
    counts = np.bincount(image[defined], minlength=images)
    return sums.astype(np.float64), counts.astype(np.float64)


def mean_over_seeds(sums: Floats, counts: Floats) -> Floats:
    """The estimate itself: mean (M,) over seeds of the mean over queries; arguments are those of `bootstrap_mean`."""
    estimate: Floats = _ratio(sums.sum(axis=1), counts.sum(axis=1)).mean(axis=0)
    return estimate


def bootstrap_mean(sums: Floats, counts: Floats, replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """`mean_over_seeds` of images and seeds that are drawn again with replacement.

    A replicate draws N of the N images, the same for all seeds and metrics, and S of the S seeds. The draws
    depend on S, N, `replicates` and `seed` alone, so results for two systems may be subtracted row by row.

    Args:
        sums: (S, N, M) for each seed, image and metric, the sum over the image's queries; see `by_image`.
        counts: (S, N, M) the number of those queries, 0 for an image without any.
        replicates: R, at least 1.
        seed: of the random draws, at least 0.

    Returns:
        (R, M); NaN where no image that was drawn has a query of the metric.

    Raises:
        ValueError: shapes that do not fit, nothing to draw from, or fewer than one replicate.
    """
    if sums.ndim != 3 or sums.shape != counts.shape:
        raise ValueError(f"sums and counts must both be (seeds, images, metrics), not {sums.shape} and {counts.shape}")
    seeds, images, metrics = sums.shape
    if not seeds or not images:
        raise ValueError(f"there must be seeds and images to draw from, found {seeds} and {images}")
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, not {replicates}")
    # One stream each: what is drawn must not depend on the size of a chunk.
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
    """Percentile interval of each metric.

    Args:
        values: (R, M) replicates; NaN is left out.
        confidence: in (0, 1), the part of the replicates that lies inside.

    Returns:
        Low and high ends (M,); NaN for a metric without a defined replicate.

    Raises:
        ValueError: a confidence out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    low, high = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    low[known], high[known] = np.nanquantile(values[:, known], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _times_drawn(draws: np.random.Generator, size: int, items: int) -> Floats:
    """How often each item is among `items` drawn with replacement, (size, items): multinomial weights."""
    drawn = draws.integers(items, size=(size, items)) + items * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items).astype(np.float64)


def _ratio(sums: Floats, counts: Floats) -> Floats:
    means: Floats = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means
