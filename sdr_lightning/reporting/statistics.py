"""Student-t intervals over seeds, paired differences and verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["higher", "lower", "undecided"]

OUTCOMES: tuple[Verdict, ...] = ("higher", "lower", "undecided")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with a two-sided Student-t interval ``mean ± half``.

    Attributes:
        mean: mean of the values; NaN when ``n`` is 0.
        half: half-width of the interval; None when ``n < 2``.
        n: number of values.
    """

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        """Lower bound; None when ``n < 2``."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """Upper bound; None when ``n < 2``."""
        return None if self.half is None else self.mean + self.half


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Compute the mean and its Student-t interval, ``half = t(n - 1, (1 + confidence) / 2) * s / sqrt(n)``.

    ``s`` is the sample standard deviation (divisor n - 1). The interval assumes independent, approximately
    normal values and covers the variation between seeds only.

    Args:
        values: one value per seed.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        The interval; without bounds for fewer than two values.

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


def highest(means: Mapping[str, float]) -> list[str]:
    """Return the names with the greatest mean, several if they share it.

    >>> highest({"a": 1.0, "b": 2.0, "c": 2.0})
    ['b', 'c']
    """
    greatest = max(means.values())
    return [name for name, mean in means.items() if mean == greatest]


def paired_difference(
    candidate: Mapping[int, float], baseline: Mapping[int, float], confidence: float = CONFIDENCE
) -> Interval:
    """Compute the interval of ``candidate - baseline`` over the seeds that both have (paired t-test).

    Pairing removes the variation that a seed causes in both methods: the same corrupted items and the same
    initial weights.

    Args:
        candidate: value by seed.
        baseline: value by seed.
        confidence: coverage of the interval, in (0, 1).
    """
    shared = sorted(candidate.keys() & baseline.keys())
    return mean_interval([candidate[seed] - baseline[seed] for seed in shared], confidence)


def verdict(difference: Interval) -> Verdict:
    """Return ``higher`` if the interval is entirely above 0, ``lower`` if below, else ``undecided``."""
    if difference.low is not None and difference.low > 0:
        return "higher"
    if difference.high is not None and difference.high < 0:
        return "lower"
    return "undecided"
