"""The trials of a tuned study: the points of a method's space, and what their results choose."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sdr_lightning.results.schema import Condition, Trial, best_trials
from sdr_lightning.sweeps.distributions import Distribution, distribution
from sdr_lightning.sweeps.search import draw, grid

Chosen = Mapping[tuple[str, Condition], Mapping[str, Any]]
"""Options of ``sdr fit`` by method and condition."""

_LISTED = 10_000  # greatest grid that is shuffled; points of greater ones are drawn
_ATTEMPTS = 100


def space_points(
    space: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any], trials: int, seed: int
) -> tuple[dict[str, Any], ...]:
    """Choose the points of a method's space, all before the first trial.

    The first is the method as configured. The others are drawn from the distributions without repetition; where all values are
    listed, they are a random part of the grid, or all of it.

    Args:
        space: distributions by option, in the notation of sweep files.
        own: values of the options in the configuration, as far as they are known; this point is not drawn again. The values of
            classes may hold more options than those listed.
        trials: number of points.
        seed: of the choice. The same arguments give the same points.

    Returns:
        Options of ``sdr fit`` by point, fewer than ``trials`` if the space has no more. Those of the first are empty.
    """
    distributions = {name: distribution(name, dict(given)) for name, given in space.items()}
    points: list[dict[str, Any]] = [{}]
    for point in _candidates(distributions, random.Random(seed), _ATTEMPTS * trials):
        if len(points) == trials:
            break
        if point not in points and not _agrees(point, own):
            points.append(point)
    return tuple(points)


def _agrees(value: Any, with_defaults: Any) -> bool:
    """Whether a value is equal to another one, apart from keys that only the other one has."""
    if isinstance(value, Mapping) and isinstance(with_defaults, Mapping):
        return all(key in with_defaults and _agrees(value[key], with_defaults[key]) for key in value)
    return bool(value == with_defaults)


def _candidates(
    distributions: Mapping[str, Distribution], generator: random.Random, attempts: int
) -> Iterator[dict[str, Any]]:
    grids = [each.grid for each in distributions.values()]
    size = math.prod(math.inf if values is None else len(values) for values in grids)
    if size <= _LISTED:
        return iter(generator.sample(list(grid(distributions)), int(size)))
    return (draw(distributions, generator)[0] for _ in range(attempts))


class PlannedTrial(NamedTuple):
    """What a trial of the plan is for, and what identifies its record."""

    method: str
    condition: Condition
    fingerprint: str


def chosen_options(planned: Sequence[PlannedTrial], trials: Iterable[Trial]) -> Chosen | None:
    """Choose the options of each method and condition by validation rsum.

    Args:
        planned: all trials of the study.
        trials: finished trials; those of other settings are left out. Of two records of one trial the first counts.

    Returns:
        The options of the best trials; None while a trial is missing.

    Raises:
        ValueError: all trials of a method failed under a condition.
    """
    found: dict[PlannedTrial, Trial] = {}
    for trial in trials:
        found.setdefault(PlannedTrial(trial.method, trial.condition, trial.fingerprint), trial)
    if not found.keys() >= set(planned):
        return None
    best = best_trials(found[trial] for trial in planned)
    failed = next((trial for trial in best.values() if trial.score == -math.inf), None)
    if failed is not None:
        where = f"{failed.imbalance} {failed.ratio:g}"
        raise ValueError(f"all trials of {failed.method} under {where} failed, the first with: {failed.failure}")
    return {key: trial.options for key, trial in best.items()}
