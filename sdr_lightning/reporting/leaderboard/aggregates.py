"""Aggregates of a study over its conditions."""

from collections.abc import Iterator, Sequence

import numpy as np

from sdr_lightning.functional.aggregates import (
    bootstrap_interquartile_mean,
    bootstrap_probability_of_improvement,
    interquartile_mean,
    probability_of_improvement,
)
from sdr_lightning.functional.bootstrap import Floats, interval
from sdr_lightning.reporting.comparison import Estimate
from sdr_lightning.reporting.leaderboard.entries import METRICS, SHOWN, Aggregate
from sdr_lightning.reporting.quantities import Quantity
from sdr_lightning.results.schema import Study


def study_aggregates(study: Study) -> tuple[Aggregate, ...]:
    """Compute the aggregates of every method, for each metric of the tables.

    Conditions are those in which all methods with any run have at least two seeds in common with the baseline, so all methods are
    aggregated over the same conditions. There are none without such a condition, and for metrics that no run has.
    """
    return tuple(aggregate for key in SHOWN for aggregate in _of_metric(study, key))


def _of_metric(study: Study, key: str) -> Iterator[Aggregate]:
    quantity, _ = METRICS[key]
    methods = [name for name in study.methods if any(quantity.by_seed(study, name, c) for c in study.conditions)]
    scores = {name: _scores(study, name, quantity) for name in methods}
    if study.baseline not in scores:
        return
    usable = [
        number
        for number in range(len(study.conditions))
        if all(len(own[number][0]) >= 2 for own in scores.values())
        and float(np.mean(scores[study.baseline][number][0])) > 0
    ]
    if not usable:
        return
    for name, by_condition in scores.items():
        own = [by_condition[number][0] for number in usable]
        baseline = [by_condition[number][1] for number in usable]
        levels = [float(np.mean(scores[study.baseline][number][0])) for number in usable]
        normalised = [values / level for values, level in zip(own, levels, strict=True)]
        yield Aggregate(
            method=name,
            metric=key,
            conditions=len(usable),
            runs=sum(map(len, own)),
            normalised=_estimate(interquartile_mean(normalised), bootstrap_interquartile_mean(normalised)),
            improvement=None if name == study.baseline else _improvement(own, baseline),
        )


def _scores(study: Study, method: str, quantity: Quantity) -> list[tuple[Floats, Floats]]:
    """The scores of a method and of the baseline with the same seeds, by condition."""
    found = []
    for condition in study.conditions:
        own, baseline = (quantity.by_seed(study, name, condition) for name in (method, study.baseline))
        shared = sorted(own.keys() & baseline.keys())
        found.append((np.array([own[seed] for seed in shared]), np.array([baseline[seed] for seed in shared])))
    return found


def _improvement(own: Sequence[Floats], baseline: Sequence[Floats]) -> Estimate:
    return _estimate(probability_of_improvement(own, baseline), bootstrap_probability_of_improvement(own, baseline))


def _estimate(value: float, replicates: Floats) -> Estimate:
    low, high = interval(replicates[:, None])
    return Estimate(value, float(low[0]), float(high[0]))
