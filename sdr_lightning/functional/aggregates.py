"""Aggregates of scores over several conditions, with intervals from a stratified bootstrap over seeds.

A condition is what reference [0] calls a task, a seed is a run. Scores of different conditions must be made comparable before
they are aggregated, for example by division by the mean of a baseline in the same condition.

A replicate of the bootstrap draws the seeds of each condition with replacement, as many as there are, independently of the other
conditions. Conditions are fixed: an interval covers other seeds, not other conditions or data. With S seeds in a condition, their
variance is underestimated by the factor (S - 1) / S.

Deviations from reference [1]: conditions may have different numbers of seeds. The probability of improvement is for scores that
are paired by seed, and a replicate draws both scores of a seed together; [1] draws them independently. The estimates
themselves are equal.

References:
    [0] Agarwal, Schwarzer, Castro, Courville and Bellemare, "Deep Reinforcement Learning at the Edge of the Statistical
        Precipice", NeurIPS 2021: interquartile mean, probability of improvement, stratified bootstrap.
    [1] google-research/rliable: rliable/metrics.py, rliable/library.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdr_lightning.functional.bootstrap import REPLICATES, Floats


def interquartile_mean(scores: Sequence[Floats]) -> float:
    """Compute the mean of the middle half of all scores: a quarter of them, rounded down, is left out at either end.

    Args:
        scores: (S_c,) for each condition, one score per seed.

    Raises:
        ValueError: there are no conditions, or a condition has no seeds.

    >>> interquartile_mean([np.array([1.0, 2.0]), np.array([3.0, 100.0])])
    2.5
    """
    return float(_middle_mean(np.concatenate(_checked(scores))))


def bootstrap_interquartile_mean(scores: Sequence[Floats], replicates: int = REPLICATES, seed: int = 0) -> Floats:
    """Compute the interquartile mean of each replicate.

    Args:
        scores: (S_c,) for each condition, one score per seed.
        replicates: R, at least 1.
        seed: random seed, at least 0.

    Returns:
        (R,), for :func:`sdr_lightning.functional.bootstrap.interval`.

    Raises:
        ValueError: there are no conditions, or a condition has no seeds.
    """
    draws = _draws([len(each) for each in _checked(scores)], replicates, seed)
    drawn = [each[rows] for each, rows in zip(scores, draws, strict=True)]
    return _middle_mean(np.concatenate(drawn, axis=1))


def probability_of_improvement(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> float:
    """Compute how probably a run of the candidate has a greater score than a run of the baseline, averaged over conditions.

    In a condition it is the share of all pairs of a seed i of the candidate and a seed j of the baseline with x_i > y_j, where
    equal scores count one half: the Mann-Whitney statistic divided by the number of pairs.

    Args:
        candidate: (S_c,) for each condition, one score per seed.
        baseline: (S_c,) for each condition, the scores of the same seeds.

    Returns:
        A number in [0, 1]; 0.5 if neither is better.

    Raises:
        ValueError: there are no conditions, a condition has no seeds, or the two differ in their seeds.

    >>> probability_of_improvement([np.array([3.0, 1.0])], [np.array([2.0, 1.0])])
    0.625
    """
    pairs = _paired(candidate, baseline)
    return float(np.mean([_share_greater(x, y) for x, y in pairs]))


def bootstrap_probability_of_improvement(
    candidate: Sequence[Floats], baseline: Sequence[Floats], replicates: int = REPLICATES, seed: int = 0
) -> Floats:
    """Compute the probability of improvement of each replicate; both scores of a seed are drawn together.

    Args:
        candidate: (S_c,) for each condition, one score per seed.
        baseline: (S_c,) for each condition, the scores of the same seeds.
        replicates: R, at least 1.
        seed: random seed, at least 0.

    Returns:
        (R,), for :func:`sdr_lightning.functional.bootstrap.interval`.

    Raises:
        ValueError: there are no conditions, a condition has no seeds, or the two differ in their seeds.
    """
    pairs = _paired(candidate, baseline)
    draws = _draws([len(x) for x, _ in pairs], replicates, seed)
    shares: Floats = np.stack([_share_greater(x[rows], y[rows]) for (x, y), rows in zip(pairs, draws, strict=True)])
    return np.asarray(shares.mean(axis=0))


def _middle_mean(scores: Floats) -> Floats:
    """The mean of the middle half of the last axis."""
    cut = scores.shape[-1] // 4
    middle = np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut]
    return np.asarray(middle.mean(axis=-1))


def _share_greater(x: Floats, y: Floats) -> Floats:
    """The share of pairs of the last axes with x > y, where equal scores count one half."""
    wins = np.sign(x[..., :, None] - y[..., None, :])  # (..., S, S)
    return np.asarray((wins.mean(axis=(-2, -1)) + 1) / 2)


def _draws(sizes: Sequence[int], replicates: int, seed: int) -> list[np.ndarray]:
    """The rows that each replicate draws, (R, S_c) for each condition; those of a condition do not depend on the others."""
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, not {replicates}")
    return [
        np.random.default_rng([seed, condition]).integers(size, size=(replicates, size))
        for condition, size in enumerate(sizes)
    ]


def _checked(scores: Sequence[Floats]) -> Sequence[Floats]:
    if not scores or not all(len(each) for each in scores):
        found = [len(each) for each in scores]
        raise ValueError(f"there must be conditions with a seed each, found conditions with {found} seeds")
    return scores


def _paired(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> list[tuple[Floats, Floats]]:
    sizes = [[len(each) for each in scores] for scores in (candidate, baseline)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"candidate and baseline must have the same seeds, found conditions with {sizes[0]} and {sizes[1]} seeds"
        )
    return list(zip(_checked(candidate), baseline, strict=True))
