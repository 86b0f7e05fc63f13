"""Aggregates over conditions, compared with plain loops over their definitions."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from sdr_lightning.functional.aggregates import (
    bootstrap_interquartile_mean,
    bootstrap_probability_of_improvement,
    interquartile_mean,
    probability_of_improvement,
)
from sdr_lightning.functional.bootstrap import Floats, interval

SIZES = ([1], [3], [2, 5], [3, 3, 3, 3], [5, 1, 4])


def scores_of(sizes: Sequence[int], seed: int, levels: int = 4) -> list[Floats]:
    """Scores with ties."""
    rng = np.random.default_rng(seed)
    return [rng.integers(levels, size=size).astype(float) for size in sizes]


def slow_interquartile_mean(scores: Sequence[Floats]) -> float:
    ordered = sorted(float(value) for each in scores for value in each)
    cut = int(0.25 * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


def slow_probability(candidate: Sequence[Floats], baseline: Sequence[Floats]) -> float:
    each = []
    for x, y in zip(candidate, baseline, strict=True):
        points = 0.0
        for a in x:
            for b in y:
                points += 1.0 if a > b else 0.5 if a == b else 0.0
        each.append(points / (len(x) * len(y)))
    return sum(each) / len(each)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_estimates_equal_the_loops_and_scipy(sizes: list[int]) -> None:
    for seed in range(5):
        x, y = scores_of(sizes, seed), scores_of(sizes, seed + 100)
        assert interquartile_mean(x) == pytest.approx(slow_interquartile_mean(x))
        assert interquartile_mean(x) == pytest.approx(stats.trim_mean(np.concatenate(x), 0.25))
        assert probability_of_improvement(x, y) == pytest.approx(slow_probability(x, y))
        by_scipy = [stats.mannwhitneyu(a, b).statistic / len(a) ** 2 for a, b in zip(x, y, strict=True)]
        assert probability_of_improvement(x, y) == pytest.approx(np.mean(by_scipy))


def test_estimates_equal_those_of_the_public_code() -> None:
    """google-research/rliable at f59f80b81c, tests/rliable/metrics_test.py."""
    x = [np.array([1.0, 2, 1, 2]), np.array([2.0, 2, 1, 1])]
    y = [np.array([1.0, 2, 3]), np.array([1.0, 2, 3])]
    assert interquartile_mean(x) == 1.5
    assert interquartile_mean(y) == 2
    assert slow_probability(x, y) == pytest.approx(1 / 3)  # of unequal numbers of runs, which are not paired


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_replicates_draw_the_seeds_of_each_condition_with_both_their_scores(sizes: list[int]) -> None:
    x, y = scores_of(sizes, 1, levels=50), scores_of(sizes, 2, levels=50)
    draws = [np.random.default_rng([7, c]).integers(size, size=(20, size)) for c, size in enumerate(sizes)]
    means, shares = [], []
    for replicate in range(20):
        drawn_x, drawn_y = (
            [
                np.array([each[row] for row in rows[replicate]])
                for each, rows in zip(scores, draws, strict=True)
            ]
            for scores in (x, y)
        )  # fmt: skip
        means.append(slow_interquartile_mean(drawn_x))
        shares.append(slow_probability(drawn_x, drawn_y))
    assert bootstrap_interquartile_mean(x, 20, seed=7) == pytest.approx(means)
    assert bootstrap_probability_of_improvement(x, y, 20, seed=7) == pytest.approx(shares)


def test_properties() -> None:
    x, y = scores_of([4, 4, 4], 3, levels=9), scores_of([4, 4, 4], 4, levels=9)
    assert interquartile_mean(x[::-1]) == interquartile_mean(x)
    assert interquartile_mean([2 * each + 1 for each in x]) == pytest.approx(2 * interquartile_mean(x) + 1)
    spoiled = [*x[:2], np.where(x[2] == x[2].max(), 1e9, x[2])]
    assert interquartile_mean(spoiled) < 10  # outliers do not count
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    assert probability_of_improvement(x, x) == 0.5
    assert probability_of_improvement([each + 10 for each in x], y) == 1
    grown = [np.exp(each) for each in x], [np.exp(each) for each in y]
    assert probability_of_improvement(*grown) == pytest.approx(probability_of_improvement(x, y))
    low, high = interval(bootstrap_interquartile_mean(x, 500)[:, None])
    assert min(map(min, x)) <= low[0] < interquartile_mean(x) < high[0] <= max(map(max, x))


def test_intervals_are_stratified() -> None:
    """Between conditions the scores differ, within them they do not: nothing is left to vary."""
    x = [np.full(3, 1.0), np.full(3, 5.0), np.full(3, 9.0)]
    assert set(bootstrap_interquartile_mean(x, 50)) == {5.0}
    assert set(bootstrap_probability_of_improvement(x, [each - 1 for each in x], 50)) == {1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), r"found conditions with \[\] seeds"),
        (lambda: interquartile_mean([np.ones(2), np.ones(0)]), r"found conditions with \[2, 0\] seeds"),
        (lambda: probability_of_improvement([np.ones(2)], [np.ones(3)]), r"\[2\] and \[3\] seeds"),
        (lambda: bootstrap_interquartile_mean([np.ones(2)], 0), "replicates must be at least 1, not 0"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
