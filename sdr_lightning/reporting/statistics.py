"""Intervals over seeds and what may be concluded from them. Pure functions of numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["supported", "not supported", "undecided"]

OUTCOMES: tuple[Verdict, ...] = ("supported", "not supported", "undecided")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values with a two-sided Student-t interval ``mean ± half``.

    ``half`` is None when ``n < 2``: one value says nothing about its spread. ``mean`` is NaN when ``n`` is 0.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower end, None without an interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper end, None without an interval."""
        return None if self.half is None else self.mean + self.half


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean and Student-t interval: ``half = t(n - 1, (1 + confidence) / 2) * s / sqrt(n)``.

    ``s`` is the sample standard deviation (divided by n - 1). The interval is about the spread over seeds
    alone; it assumes their values are independent and roughly normal.

    >>> mean_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, None, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, 1)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Interval(mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n), n)


def paired_difference(
    candidate: Mapping[int, float], baseline: Mapping[int, float], confidence: float = CONFIDENCE
) -> Interval:
    """Interval of ``candidate - baseline`` over the seeds both have.

    Both arguments map a seed to a value. Pairing removes what a seed does to both methods alike (the same
    corrupted items, the same initial weights), so this is the test, not the overlap of two intervals.
    """
    shared = sorted(candidate.keys() & baseline.keys())
    return mean_interval([candidate[seed] - baseline[seed] for seed in shared], confidence)


def verdict(difference: Interval) -> Verdict:
    """``supported``: interval wholly above 0; ``not supported``: wholly below; else ``undecided``."""
    if difference.low is not None and difference.low > 0:
        return "supported"
    if difference.high is not None and difference.high < 0:
        return "not supported"
    return "undecided"
