"""Format numbers and names for reports."""

import math

from sdr_lightning.reporting.statistics import Interval, verdict
from sdr_lightning.results.schema import NO_IMBALANCE, Condition

MISSING = "–"
NBSP = "\u00a0"


def number(value: float, decimals: int = 1) -> str:
    """Format a number with a typographic minus sign; NaN becomes a dash and -0.0 becomes 0.0."""
    if math.isnan(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, decimals: int = 1) -> str:
    """Format a number with an explicit sign, except for 0."""
    text = number(value, decimals)
    return f"+{text}" if value > 0 and float(text) != 0 else text


def bounds(interval: Interval, decimals: int = 1) -> str:
    """Format an interval as ``[low, high]``; empty without bounds."""
    return bounds_text(interval.low, interval.high, decimals)


def bounds_text(low: float | None, high: float | None, decimals: int = 1) -> str:
    """Format two bounds as ``[low, high]``; empty if one is None.

    A bound that rounds to 0 keeps its sign, because the sign decides the verdict: ``[−0.0, 3.9]`` is undecided.
    """
    return "" if low is None or high is None else f"[{low:.{decimals}f}, {high:.{decimals}f}]".replace("-", "−")


def verdict_text(interval: Interval) -> str:
    """Format a verdict: ``identical`` for a difference of 0 in every seed; with the number of seeds when fewer than two."""
    if interval.n < 2:
        return f"undecided (n={interval.n})"
    return "identical" if interval.low == interval.high == 0 else verdict(interval)


def difference_text(interval: Interval, decimals: int = 1) -> str:
    """Format a difference with its interval and its verdict, such as ``+5.5 [4.3, 6.7] higher``."""
    parts = (signed(interval.mean, decimals), bounds(interval, decimals), verdict_text(interval))
    return " ".join(filter(None, parts))


def percent(fraction: float) -> str:
    """Format ``0.3`` as ``30 %``."""
    return f"{100 * fraction:.4g}{NBSP}%"


def name(identifier: str) -> str:
    """Format an identifier as words."""
    return identifier.replace("_", " ")


def condition_label(condition: Condition) -> str:
    """Format a condition, such as ``mismatch 30 %`` or ``data as given``."""
    if condition.imbalance == NO_IMBALANCE:
        return "data as given"
    return f"{name(condition.imbalance)} {percent(condition.ratio)}"


def runs_key(quantity: str, method: str, condition: Condition) -> str:
    """Identify the runs behind a number, by which a page finds their values."""
    return f"{quantity}|{method}|{condition_label(condition)}"


def duration(seconds: float | None) -> str:
    """Format seconds as ``41 s``, ``12 min`` or ``3 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f}{NBSP}s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}{NBSP}min"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def count(value: int | None) -> str:
    """Format an integer with thousands separators."""
    return MISSING if value is None else f"{value:,}"


def short(digest: str) -> str:
    """Format a hash by its first ten characters."""
    return digest[:10] if digest else MISSING
