import math

import numpy as np
import pytest
from scipy import stats

from sdr_lightning.reporting.formatting import bounds, verdict_text
from sdr_lightning.reporting.statistics import Interval, mean_interval, paired_difference, verdict


def test_mean_interval_of_three_values() -> None:
    # s = 1 and t(2, 0.975) = 4.302653, so half = 4.302653 / sqrt(3).
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(2.484138, abs=1e-6)
    assert (interval.low, interval.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (10, 0.8)])
def test_paired_difference_equals_scipy(n: int, confidence: float) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(3, 2, n), rng.normal(2, 2, n)
    expected = stats.ttest_rel(a, b).confidence_interval(confidence)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)), confidence)
    assert found.n == n
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_paired_difference_pairs_by_seed() -> None:
    found = paired_difference({2: 12.0, 0: 10.0, 7: 99.0}, {0: 9.0, 2: 11.0, 5: -99.0})
    assert found == Interval(mean=1.0, half=0.0, n=2)


def test_fewer_than_two_values_have_no_interval() -> None:
    for values in ([], [4.0]):
        interval = mean_interval(values)
        assert (interval.half, interval.low, interval.high, interval.n) == (None, None, None, len(values))
        assert math.isnan(interval.mean) == (not values)
        assert verdict_text(interval) == f"undecided (n={len(values)})"


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [(1.94, 1.97, "[−0.0, 3.9] undecided"), (1.98, 1.97, "[0.0, 4.0] higher"), (0.0, 0.0, "[0.0, 0.0] identical")],
)
def test_a_bound_that_rounds_to_zero_keeps_its_sign(mean: float, half: float, text: str) -> None:
    found = Interval(mean, half, 3)
    assert f"{bounds(found)} {verdict_text(found)}" == text


def test_verdict_excludes_zero_strictly() -> None:
    assert verdict(Interval(1.0, 0.9, 3)) == "higher"
    assert verdict(Interval(-1.0, 0.9, 3)) == "lower"
    for mean, half in ((1.0, 1.0), (-1.0, 1.0), (1.0, 1.1), (-1.0, 1.1), (0.0, 0.0)):
        assert verdict(Interval(mean, half, 3)) == "undecided"
