"""How numbers and names are written in a report."""

import math

from sdr_lightning.reporting.statistics import Interval, verdict
from sdr_lightning.results.schema import NO_IMBALANCE, Condition

MISSING = "–"
NBSP = "\u00a0"


def number(value: float, decimals: int = 1) -> str:
    """A number with a true minus sign; NaN is a dash."""
    if math.isnan(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    # A rounded "-0.0" would suggest a direction that the digits do not show.
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, decimals: int = 1) -> str:
    """A number that shows its sign also when positive."""
    text = number(value, decimals)
    return f"+{text}" if value > 0 and float(text) != 0 else text


def bounds(interval: Interval, decimals: int = 1) -> str:
    """``[low, high]``, empty without an interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"[{number(interval.low, decimals)}, {number(interval.high, decimals)}]"


def verdict_text(interval: Interval) -> str:
    """The verdict, with the number of seeds where it is too small to decide anything."""
    return verdict(interval) if interval.n >= 2 else f"undecided (n={interval.n})"


def percent(fraction: float) -> str:
    """``0.3`` as ``30 %``."""
    return f"{100 * fraction:.4g}{NBSP}%"


def name(identifier: str) -> str:
    """An identifier as words."""
    return identifier.replace("_", " ")


def condition_label(condition: Condition) -> str:
    """For instance ``mismatch 30 %``, or ``no imbalance``."""
    if condition.imbalance == NO_IMBALANCE:
        return "no imbalance"
    return f"{name(condition.imbalance)} {percent(condition.ratio)}"


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: ``41 s``, ``12 min``, ``3 h 05 min``."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f}{NBSP}s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes}{NBSP}min"
    return f"{minutes // 60}{NBSP}h {minutes % 60:02d}{NBSP}min"


def count(value: int | None) -> str:
    """A whole number with thousands set apart."""
    return MISSING if value is None else f"{value:,}"


def short(digest: str) -> str:
    """The first characters of a hash, enough to tell two apart."""
    return digest[:10] if digest else MISSING
