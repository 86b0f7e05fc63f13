"""The search of a sweep, its early termination, and the folder that it runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdr_lightning.sweeps.runner import SweepRunner
from sdr_lightning.sweeps.search import Run, grid_size, next_parameters, runs_to_stop
from sdr_lightning.sweeps.spec import Sweep
from tests.sweeps.test_spec import load

HYPERBAND = {"type": "hyperband", "min_iter": 2, "eta": 2}


def searched(sweep: Sweep, folder: Path, curve: Any = None) -> list[Run]:
    """All runs of a sweep; ``curve`` gives what each logs by epoch."""
    runs: list[Run] = []
    while (found := next_parameters(sweep, runs)) is not None:
        run = Run(len(runs), found[0], folder / str(len(runs)), found[1])
        if curve is not None:
            log(run, curve(run.parameters))
            run.state = "finished"
        runs.append(run)
    return runs


def log(run: Run, curve: list[float]) -> None:
    run.folder.mkdir(parents=True)
    rows = [f"{epoch},{epoch},{value}" for epoch, value in enumerate(curve)]
    (run.folder / "metrics.csv").write_text("\n".join(["epoch,step,val/rsum_best", *rows, ""]))


def test_grid_is_the_product_in_the_order_of_the_file(tmp_path: Path) -> None:
    parameters = {"b": {"values": [1, 2, 1]}, "a": {"min": 0, "max": 1}, "c": {"value": "x"}}
    sweep = load(tmp_path, parameters=parameters)
    found = [tuple(run.parameters.items()) for run in searched(sweep, tmp_path)]
    assert found == [(("b", b), ("a", a), ("c", "x")) for b in (1, 2) for a in (0, 1)]
    assert grid_size(sweep) == 4
    assert grid_size(load(tmp_path, parameters=parameters, run_cap=3)) == 3


def test_grid_ends_whose_values_json_changes(tmp_path: Path) -> None:
    """Runs are recorded as JSON, in which keys are text."""
    sweep = load(tmp_path, parameters={"x": {"values": [{0: 8, 4: 4}, {0: 4}]}})
    assert [run.parameters for run in searched(sweep, tmp_path)] == [{"x": {"0": 8, "4": 4}}, {"x": {"0": 4}}]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_search_is_reproducible_and_does_not_repeat_itself(method: str, tmp_path: Path) -> None:
    """While all runs are still running, too."""
    space = {"x": {"min": 0.0, "max": 1.0}, "y": {"values": ["a", "b"]}, "z": {"value": 3}}
    sweep = load(tmp_path, method=method, run_cap=8, parameters=space)
    first, second = ([run.parameters for run in searched(sweep, tmp_path)] for _ in range(2))
    assert first == second
    assert len({run["x"] for run in first}) == 8
    assert all(0 <= run["x"] <= 1 and run["y"] in ("a", "b") and run["z"] == 3 for run in first)


@pytest.mark.parametrize(("goal", "sign"), [("maximize", -1), ("minimize", 1)])
def test_bayes_finds_the_optimum(goal: str, sign: int, tmp_path: Path) -> None:
    metric = {"name": "val/rsum_best", "goal": goal}
    space = {"x": {"min": 0.0, "max": 1.0}, "y": {"values": ["bad", "good"]}}
    sweep = load(tmp_path, method="bayes", run_cap=25, parameters=space, metric=metric)
    runs = searched(sweep, tmp_path, lambda p: [sign * (300 * (p["x"] - 0.8) ** 2 + 50 * (p["y"] == "bad"))])
    late = [run.parameters for run in runs[15:]]
    assert np.median([abs(run["x"] - 0.8) for run in late]) < 0.1
    assert sum(run["y"] == "good" for run in late) >= 7


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_hyperband_stops_the_worst_running_run(goal: str, tmp_path: Path) -> None:
    sweep = load(tmp_path, early_terminate=HYPERBAND, metric={"name": "val/rsum_best", "goal": goal})
    runs = [Run(number, {}, tmp_path / str(number)) for number in range(5)]
    start = -1000.0 if goal == "maximize" else 1000.0
    for run, level in zip(runs, (10.0, 20.0, 30.0, 40.0), strict=False):
        log(run, [start, start, level])  # min_iter 2: the third value is the first that counts
    log(runs[4], [start, start])
    worst = runs[0] if goal == "maximize" else runs[3]
    assert runs_to_stop(sweep, runs) == [worst]
    worst.state = "finished"
    assert runs_to_stop(sweep, runs) == []
    assert runs_to_stop(load(tmp_path), runs) == []


def test_hyperband_bands_count_back_from_max_iter(tmp_path: Path) -> None:
    """The example of W&B's package sweeps: bands 1 and 2."""
    early = {"type": "hyperband", "max_iter": 5, "eta": 2, "s": 2}
    sweep = load(tmp_path, early_terminate=early, metric={"name": "val/rsum_best", "goal": "minimize"})
    runs = [Run(number, {}, tmp_path / str(number)) for number in range(5)]
    for run, curve in zip(runs, ([10, 9], [10, 10], [10, 8, 8], [10, 7, 7], [10, 6, 6]), strict=True):
        log(run, [float(value) for value in curve])
    runs[0].state = runs[4].state = "finished"
    assert runs_to_stop(sweep, runs) == [runs[1], runs[2]]


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("sweep.json", "is not the record of a sweep: move it away, or choose another --output"),
        ("000-0a1b2c3d/notes.txt", "000-0a1b2c3d is not of this sweep: move it away, or choose another --output"),
        ("sweep.html", "exists and was not written by this command"),
    ],
    ids=["record", "run", "report"],
)
def test_foreign_file_is_refused_before_the_work(tmp_path: Path, file: str, complaint: str) -> None:
    output = tmp_path / "out"
    (output / file).parent.mkdir(parents=True)
    (output / file).write_text("{}")
    for resume in (False, True):
        with pytest.raises(ValueError, match=complaint):
            SweepRunner(load(tmp_path), output, 1).run(resume)
    assert (output / file).read_text() == "{}"
    assert {path.name for path in output.iterdir()} == {file.split("/")[0], ".lock"}
