"""The distributions of W&B's sweep files: which keys each takes, and its quantile function."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_BOUNDS, _NORMAL, _BETA = ("min", "max"), {"mu": 0.0, "sigma": 1.0}, {"a": 1.0, "b": 1.0}
Given = Mapping[str, Any]


class _Kind(NamedTuple):
    required: tuple[str, ...]
    optional: Mapping[str, Any]
    quantile: Callable[[Given, float], Any] | None = None


def _uniform(given: Given, x: float) -> float:
    return float(given["min"] + x * (given["max"] - given["min"]))


def _log_values(given: Given, x: float) -> float:
    low, high = math.log(given["min"]), math.log(given["max"])
    return math.exp(low + x * (high - low))


def _normal(given: Given, x: float) -> float:
    return float(stats.norm.ppf(x, given["mu"], given["sigma"]))


def _beta(given: Given, x: float) -> float:
    return float(stats.beta.ppf(x, given["a"], given["b"]))


def _categorical(given: Given, x: float) -> Any:
    values = given["values"]
    return values[min(int(x * len(values)), len(values) - 1)]


def _weighted(given: Given, x: float) -> Any:
    cumulated = np.cumsum(given["probabilities"])
    return given["values"][min(int(np.searchsorted(cumulated, x, side="right")), len(cumulated) - 1)]


def _int_uniform(given: Given, x: float) -> int:
    size = given["max"] - given["min"] + 1
    return int(given["min"] + min(int(x * size), size - 1))


def _rounded(quantile: Callable[[Given, float], float]) -> Callable[[Given, float], Any]:
    def rounded(given: Given, x: float) -> Any:
        value = round(quantile(given, x) / given["q"]) * given["q"]
        return int(value) if isinstance(given["q"], int) else value

    return rounded


def _exponential(quantile: Callable[[Given, float], float]) -> Callable[[Given, float], float]:
    return lambda given, x: math.exp(quantile(given, x))


def _negated(given: Given, x: float) -> float:
    return -_uniform(given, 1 - x)


_Q = {"q": 1.0}
_KINDS = {
    "constant": _Kind(("value",), {}),
    "categorical": _Kind(("values",), {}, _categorical),
    "categorical_w_probabilities": _Kind(("values", "probabilities"), {}, _weighted),
    "int_uniform": _Kind(_BOUNDS, {}, _int_uniform),
    "uniform": _Kind(_BOUNDS, {}, _uniform),
    "q_uniform": _Kind(_BOUNDS, _Q, _rounded(_uniform)),
    "log_uniform": _Kind(_BOUNDS, {}, _exponential(_uniform)),
    "log_uniform_values": _Kind(_BOUNDS, {}, _log_values),
    "q_log_uniform": _Kind(_BOUNDS, _Q, _rounded(_exponential(_uniform))),
    "q_log_uniform_values": _Kind(_BOUNDS, _Q, _rounded(_log_values)),
    "inv_log_uniform": _Kind(_BOUNDS, {}, _exponential(_negated)),
    "inv_log_uniform_values": _Kind(_BOUNDS, {}, _log_values),
    "normal": _Kind((), _NORMAL, _normal),
    "q_normal": _Kind((), _NORMAL | _Q, _rounded(_normal)),
    "log_normal": _Kind((), _NORMAL, _exponential(_normal)),
    "q_log_normal": _Kind((), _NORMAL | _Q, _rounded(_exponential(_normal))),
    "beta": _Kind((), _BETA, _beta),
    "q_beta": _Kind((), _BETA | _Q, _rounded(_beta)),
}


_OF_EXPONENTS = ("log_uniform", "q_log_uniform", "inv_log_uniform")
_GREATEST_EXPONENT = 700  # beyond, e to its power is no float


class Distribution(NamedTuple):
    """The distribution of one parameter.

    Attributes:
        kind: W&B's name.
        given: its keys, defaults filled in; values as JSON keeps them, in which the parameters of runs are recorded.
    """

    kind: str
    given: Given

    @property
    def grid(self) -> list[Any] | None:
        """The values of a grid search, each once; None for a distribution that a grid cannot search."""
        if self.kind == "constant":
            return [self.given["value"]]
        if self.kind == "categorical":
            return [value for n, value in enumerate(self.given["values"]) if value not in self.given["values"][:n]]
        if self.kind == "int_uniform":
            return list(range(self.given["min"], self.given["max"] + 1))
        if self.kind == "q_uniform":
            return list(np.arange(self.given["min"], self.given["max"], self.given["q"]).tolist())
        return None

    def quantile(self, x: float) -> Any:
        """The value below which a share ``x`` of the distribution lies; ``x`` in [0, 1]."""
        quantile = _KINDS[self.kind].quantile
        return self.given["value"] if quantile is None else quantile(self.given, x)


def distribution(name: str, given: Any) -> Distribution:
    """Check the entry of a parameter in a sweep file.

    As in W&B, the distribution may be left out: ``value`` is a constant, ``values`` are categories, ``min`` and ``max`` are
    uniform, over integers if both are integers.

    Args:
        name: dotted name of the option.
        given: the entry.

    Raises:
        ValueError: the first mistake, in one line.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"parameter {name!r}: expected the dotted name of an option")
    if not isinstance(given, dict) or not given:
        raise ValueError(f"parameter {name!r} needs value, values, or min and max, got {given!r}")
    if "parameters" in given:
        raise ValueError(f"parameter {name!r} is nested: write dotted names, such as model.init_args.x")
    kind = given.get("distribution", _implied(given))
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"parameter {name!r}: unknown distribution {kind!r}, expected one of {', '.join(_KINDS)}")
    required, optional, _ = _KINDS[kind]
    for key in given.keys() - {"distribution", *required, *optional}:
        raise ValueError(f"parameter {name!r}: distribution {kind} has no {key!r}")
    for key in required:
        if key not in given:
            raise ValueError(f"parameter {name!r}: distribution {kind} needs {key}")
    found = Distribution(
        kind, {**optional, **{key: plain(value) for key, value in given.items() if key != "distribution"}}
    )
    problem = _problem(found)
    if problem:
        raise ValueError(f"parameter {name!r}{problem}")
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON keeps it: keys as text, dates as text."""
    return json.loads(json.dumps(value, default=str))


def _implied(given: Given) -> str:
    if "value" in given:
        return "constant"
    if "values" in given:
        return "categorical_w_probabilities" if "probabilities" in given else "categorical"
    whole = all(isinstance(given.get(key), int) and not isinstance(given.get(key), bool) for key in _BOUNDS)
    return "int_uniform" if whole else "uniform"


def _problem(found: Distribution) -> str:
    """The first mistake in the values of a distribution; empty if there is none."""
    given = found.given
    values = given.get("values", [given["value"]] if "value" in given else [])
    if not isinstance(values, list):
        return f": values must be a list, got {values!r}"
    if "values" in given and not values:
        return " has an empty list of values"
    if None in values:
        return ': W&B writes None for null, which sdr fit does not read; write "null"'
    if "probabilities" in given:
        shares = given["probabilities"]
        if not isinstance(shares, list) or len(shares) != len(values) or not all(map(_is_number, shares)):
            return f": expected one probability per value, got {shares!r}"
        if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            return f": probabilities must be >= 0 and sum to 1, got {shares!r}"
    numbers = {key: value for key, value in given.items() if key not in ("value", "values", "probabilities")}
    for key, value in numbers.items():
        if not _is_number(value):
            return f": {key} must be a number, got {value!r}"
    if found.kind == "int_uniform" and not all(isinstance(value, int) for value in numbers.values()):
        return ": int_uniform needs integers"
    if "min" in given and given["min"] > given["max"]:
        return f": min {given['min']} is greater than max {given['max']}"
    if found.kind.endswith("_values") and given["min"] <= 0:
        return f": min must be positive, got {given['min']}"
    if found.kind in _OF_EXPONENTS and max(abs(given["min"]), abs(given["max"])) > _GREATEST_EXPONENT:
        return (
            f": min and max of {found.kind} are exponents of e, got {given['min']} and {given['max']}; for the values "
            f"themselves use {found.kind}_values"
        )
    if given.get("q", 1) <= 0 or given.get("sigma", 0) < 0 or min(given.get("a", 1), given.get("b", 1)) <= 0:
        return f": q, a and b must be positive and sigma not negative, got {dict(given)!r}"
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
