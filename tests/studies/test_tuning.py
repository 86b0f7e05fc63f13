"""The points of a space, and what trials choose."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sdr_lightning.results.schema import Condition, Selected, Trial
from sdr_lightning.studies.tuning import PlannedTrial, chosen_options, space_points

GRID = {"a": {"values": [1, 2, 3]}, "b": {"values": ["x", "y"]}}
BOUNDS = {"rate": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"}, "layers": {"min": 1, "max": 3}}


@pytest.mark.parametrize("trials", [2, 4, 6, 9])
def test_points_of_a_grid_are_a_random_part_of_it_without_that_of_the_configuration(trials: int) -> None:
    own = {"a": 2, "b": "x"}
    points = space_points(GRID, own, trials, seed=0)
    others = [{"a": a, "b": b} for a, b in product((1, 2, 3), ("x", "y")) if (a, b) != (2, "x")]
    assert points[0] == {}
    assert len(points) == min(trials, 6)
    assert [others.count(point) for point in points[1:]] == [1] * (len(points) - 1)
    assert len({str(point) for point in points}) == len(points)
    assert points == space_points(GRID, own, trials, seed=0)
    nested = {"t": {"values": [{"x": 1}, {"x": 2}]}}
    assert space_points(nested, {"t": {"x": 1, "default": 0}}, 9, seed=0) == ({}, {"t": {"x": 2}})
    assert len(space_points(GRID, {"a": 2}, 9, seed=0)) == 7  # not known: b of the configuration
    seen = {str(space_points(GRID, own, 2, seed)) for seed in range(40)}
    assert len(seen) == len(others)


def test_points_within_bounds_are_drawn_without_repetition() -> None:
    points = space_points(BOUNDS, {}, 50, seed=3)
    assert len(points) == 50
    rates = [point["rate"] for point in points[1:]]
    assert len(set(rates)) == 49
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert {point["layers"] for point in points[1:]} == {1, 2, 3}
    assert sum(rate < 1e-3 for rate in rates) == pytest.approx(49 / 2, abs=12)  # uniform in the logarithm
    assert points[:20] == space_points(BOUNDS, {}, 20, seed=3)
    assert space_points({}, {}, 5, seed=0) == ({},)


def trial(number: int, score: float | None, method: str = "A", ratio: float = 0.5, **fields: Any) -> Trial:
    selected = None if score is None else Selected("val/rsum", score, 0, 1)
    fingerprint = f"{method} {ratio} {number}"
    return Trial(
        method=method, imbalance="mismatch", ratio=ratio, seed=9, number=number, options={"x": number} if number else {},
        selected=selected, failure="" if selected else "not finite", fingerprint=fingerprint, **fields,
    )  # fmt: skip


def planned(trials: list[Trial]) -> list[PlannedTrial]:
    return [PlannedTrial(each.method, each.condition, each.fingerprint) for each in trials]


def test_best_trial_of_each_method_and_condition_is_chosen_and_the_first_of_equal_ones() -> None:
    trials = [trial(2, 8.0), trial(0, 7.0), trial(1, 8.0), trial(3, None)]
    trials += [trial(0, 5.0, "B"), trial(1, 4.0, "B"), trial(0, 1.0, ratio=0.2), trial(1, 3.0, ratio=0.2)]
    others = [trial(9, 999.0), trial(2, 999.0)]  # of other settings, and a second record
    assert chosen_options(planned(trials), [*trials, *others]) == {
        ("A", Condition("mismatch", 0.5)): {"x": 1},
        ("B", Condition("mismatch", 0.5)): {},
        ("A", Condition("mismatch", 0.2)): {"x": 1},
    }
    assert chosen_options(planned(trials), trials[1:]) is None
    renamed = [replace(each, method="C") if each.method == "B" else each for each in trials]
    assert chosen_options(planned(trials), renamed) is None


def test_method_whose_trials_all_failed_stops_the_study() -> None:
    trials = [trial(0, None), trial(1, None), trial(0, 1.0, "B")]
    with pytest.raises(ValueError, match=r"all trials of A under mismatch 0\.5 failed, the first with: not finite"):
        chosen_options(planned(trials), trials)
