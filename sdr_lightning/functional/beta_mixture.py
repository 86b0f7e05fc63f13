"""Which of two groups a value in an interval belongs to: a mixture of two beta distributions."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EDGE = 1e-4
_LEAST = 1e-12
_LEAST_VARIANCE = 1e-8

Array = NDArray[np.float64]


def low_beta_posterior(values: Tensor, iterations: int = 10) -> Tensor:
    """Compute the probability that each value belongs to the lower of two beta distributions.

    Values are scaled to [0, 1] and kept 0.0001 away from both ends. Expectation maximisation starts from Beta(1, 2) and
    Beta(2, 1) with equal weights. Its M step takes the parameters from the weighted mean and variance of each group ([0, 1]).

    Differences from the public code: it evaluates the posterior at 0 and 1 too, where densities vanish or diverge. Its lower
    group is the one that started lower; here, it is the one with the lower mean after the last iteration. Here, the posterior of
    the lower group does not increase with the value below the mean of that group, nor above the mean of the other. Without
    this, a group whose density is high at both ends takes the least values: pairs without any loss would count as the worst.

    Args:
        values: (n,) finite, for example the loss of each pair.
        iterations: of expectation maximisation, at least 1.

    Returns:
        (n,) float32 on the CPU, in [0, 1]; all 1 if the values are equal.

    Raises:
        ValueError: fewer than two values, values that are not finite, or fewer than 1 iteration.

    References:
        [0] Arazo et al., "Unsupervised Label Noise Modeling and Loss Correction", ICML 2019.
        [1] Yang et al., "BiCro", CVPR 2023; xu5zhao/BiCro: co_train.py, ``BetaMixture1D``.

    Example:
        >>> low_beta_posterior(torch.tensor([0.0, 0.1, 0.05, 5.0, 5.1])).round()
        tensor([1., 1., 1., 0., 0.])
    """
    found = values.detach().cpu().double().numpy()
    if len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(
            f"a mixture needs at least two finite values, got {len(found)} of which {np.isfinite(found).sum()} are"
        )
    if iterations < 1:
        raise ValueError(f"a beta mixture needs at least 1 iteration, got {iterations}")
    low, high = found.min(), found.max()
    if low == high:
        return torch.ones(len(found))
    scaled = ((found - low) / (high - low)).clip(_EDGE, 1 - _EDGE)
    shapes, weights = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0.5, 0.5])  # (alpha, beta) of each group
    for _ in range(iterations):
        posterior = _posterior(scaled, shapes, weights)
        shapes = np.array([_shape(scaled, each) for each in posterior])
        weights = posterior.mean(axis=1)
    means = shapes[:, 0] / shapes.sum(axis=1)
    lower = _posterior(scaled, shapes, weights)[means.argmin()]
    return torch.from_numpy(_with_monotone_tails(scaled, lower, means.min(), means.max())).float()


def _posterior(values: Array, shapes: Array, weights: Array) -> Array:
    """(2, n) probability of each group."""
    from scipy.stats import beta  # slow to import

    joint = np.array([weight * beta.pdf(values, *shape) for shape, weight in zip(shapes, weights, strict=True)])
    joint = joint.clip(min=_LEAST)
    posterior: Array = joint / joint.sum(axis=0)
    return posterior


def _with_monotone_tails(values: Array, posterior: Array, low: float, high: float) -> Array:
    """(n,) posterior of the lower group that does not increase below ``low`` nor above ``high``."""
    order = values.argsort()
    below, above = order[values[order] < low], order[values[order] > high]
    posterior[below] = np.maximum.accumulate(posterior[below][::-1])[::-1]
    posterior[above] = np.minimum.accumulate(posterior[above])
    return posterior


def _shape(values: Array, weights: Array) -> tuple[float, float]:
    """Alpha and beta by the method of moments."""
    mean = float(np.average(values, weights=weights))
    variance = max(float(np.average((values - mean) ** 2, weights=weights)), _LEAST_VARIANCE)
    total = mean * (1 - mean) / variance - 1
    return mean * total, (1 - mean) * total
