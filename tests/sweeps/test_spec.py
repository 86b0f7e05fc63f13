"""Sweep files: what is accepted, what is refused and how, and that W&B would run the same."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from sdr_lightning.configure import build
from sdr_lightning.sweeps.runner import Run, SweepRunner
from sdr_lightning.sweeps.spec import Sweep

GOOD: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "val/rsum_best", "goal": "maximize"},
    "command": ["${env}", "sdr", "fit", "--config", "x.yaml", "${args}"],
    "parameters": {"data.init_args.imbalance.ratio": {"values": [0.0, 0.3]}, "seed_everything": {"values": [0, 1]}},
}


def load(folder: Path, **changes: Any) -> Sweep:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return Sweep.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "method must be grid, random or bayes, got 'gird'"),
        ({"metric": {"name": "test/rsum"}}, "never by 'test/rsum'"),
        ({"metric": "val/rsum"}, "metric needs a name"),
        ({"metric": {"name": "val/rsum", "goal": "up"}}, "goal is maximize or minimize, got 'up'"),
        ({"parameters": {}}, "parameters must name at least one option"),
        ({"parameters": {"x": {"values": []}}}, "'x' has an empty list of values"),
        ({"parameters": {"x": [1, 2]}}, "'x' needs value, values, or min and max"),
        ({"parameters": {"x": {"values": 3}}}, "values must be a list, got 3"),
        ({"parameters": {"x": {"value": None}}}, 'write "null"'),
        ({"parameters": {"x": {"parameters": {"y": {"value": 1}}}}}, "write dotted names"),
        ({"parameters": {"x": {"distribution": "normla"}}}, "some.yaml: "),
        ({"parameters": {"x": {"min": 0.0, "max": 1.0}}}, "a grid needs values of parameter 'x'"),
        ({"command": ["${env}", "sdr", "fit", "${args_no_hyphens}"]}, "must hold ${args}"),
        ({"command": ["sdr", "fit", "${args}", "${args_json}"]}, "${args_json} in the command"),
        ({"command": "sdr fit"}, "command must be a list of words"),
        ({"command": ["python", "train.py", "${args}"]}, "must run sdr fit"),
        ({"method": "random"}, "has no end of its own: give run_cap"),
        ({"run_cap": 0}, "run_cap must be a positive number of runs, got 0"),
        ({"methods": 1}, "unknown key 'methods'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"some\.yaml: ") as error:
        load(tmp_path, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fuzzed_file_is_accepted_or_refused_in_one_line(tmp_path: Path) -> None:
    """Values of other types anywhere in the file; whatever is wrong is a ValueError of one line."""
    draw = np.random.default_rng(0)
    strange: list[Any] = [None, 0, -1, 1.5, "", "x", "${args}", [], [None], {}, {"a": 1}, True, [[1]], {"values": None}]
    refused: list[str] = []
    for _ in range(300):
        content: Any = yaml.safe_load(yaml.safe_dump(GOOD))
        for _ in range(int(draw.integers(1, 3))):
            at, key = content, draw.choice(list(content))
            while isinstance(at[key], dict) and at[key] and draw.random() < 0.6:
                at, key = at[key], draw.choice(list(at[key]))
            at[str(key)] = strange[int(draw.integers(len(strange)))]
            if not isinstance(content.get("parameters"), dict):
                break
        path = tmp_path / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(content))
        try:
            Sweep.load(path)
        except ValueError as error:
            refused.append(str(error))
    assert not [message for message in refused if "\n" in message]
    assert 150 < len(refused) < 300


@pytest.mark.parametrize("text", ["", "a: [", "[1, 2]", "\x00"])
def test_no_sweep_at_all(text: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"some\.yaml"):
        Sweep.load(path)
    with pytest.raises(ValueError, match="no sweep at"):
        Sweep.load(tmp_path / "absent.yaml")


def test_the_command_is_what_wandbs_agent_runs(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    parameters = {"config": "a b.yaml", "data.init_args.imbalance.ratio": 0.3, "x": True, "y": "null", "z": 1e-05}
    formatted = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    words: list[str] = []
    for word in create_sweep_command(list(sweep.command)):
        words += formatted["args"] if word == "${args}" else [] if word in ("${env}", "/usr/bin/env") else [word]
    assert sweep.words(parameters)[-len(words) + 2 :] == words[2:]


@pytest.mark.parametrize("name", ["mini", "weights", "seeds", "imbalance_ratio"])
def test_our_sweeps_are_understood_by_sdr_fit(name: str, experiments: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The first run of each, its command line as the agent formats it, parsed and built."""
    monkeypatch.chdir(experiments.parent)
    sweep = Sweep.load(experiments / f"sweeps/{name}.yaml")
    run = SweepRunner(sweep, tmp_path, 1)._next()
    assert run is not None
    words = sweep.words(run.parameters)
    options = words[words.index("fit") + 1 :]
    if name == "imbalance_ratio":  # the model of the paper, whose weights are not here
        options = ["--config", str(experiments / "scenes/sdr.yaml"), *options[4:]]
    data = build(options).datamodule
    assert [part.ratio for part in data.imbalances] == [run.parameters["data.init_args.imbalance.ratio"]]


def test_a_grid_is_gone_through_once(tmp_path: Path) -> None:
    runner = SweepRunner(load(tmp_path), tmp_path, 1)
    runs = list(iter(runner._next, None))
    assert runner.size() == 4
    assert len({tuple(run.parameters.items()) for run in runs}) == 4
    assert len({run.folder for run in runs}) == 4


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_is_the_same_when_it_is_repeated(method: str, tmp_path: Path) -> None:
    changes = {"method": method, "run_cap": 3, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
    found = []
    for _ in range(2):
        runner = SweepRunner(load(tmp_path, **changes), tmp_path, 1)
        found.append([run.parameters["x"] for run in iter(runner._next, None)])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3


def logged(runner: SweepRunner, run: Run, curve: list[float]) -> None:
    """What a training of this curve leaves in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{epoch},{epoch},{value}" for epoch, value in enumerate(curve)]
    (run.folder / "metrics.csv").write_text("\n".join(["epoch,step,val/rsum_best", *rows, ""]))


def test_a_bayesian_search_goes_where_the_metric_is_best(tmp_path: Path) -> None:
    changes = {"method": "bayes", "run_cap": 15, "parameters": {"x": {"min": 0.0, "max": 1.0}}}
    runner = SweepRunner(load(tmp_path, **changes), tmp_path, 1)
    for run in iter(runner._next, None):
        logged(runner, run, [100 - 300 * (run.parameters["x"] - 0.8) ** 2])
        run.state = "finished"
    tried = [run.parameters["x"] for run in runner.runs]
    assert np.median(np.abs(np.array(tried[10:]) - 0.8)) < 0.1


def test_hyperband_stops_the_poorest_run(tmp_path: Path) -> None:
    hyperband = {"type": "hyperband", "min_iter": 2, "eta": 2}
    changes = {"method": "random", "run_cap": 4, "early_terminate": hyperband, "parameters": {"x": {"values": [1, 2]}}}
    runner = SweepRunner(load(tmp_path, **changes), tmp_path, 4)
    for run, level in zip(iter(runner._next, None), (10.0, 20.0, 30.0, 40.0), strict=False):
        logged(runner, run, [1.0, level / 2, level, level])
        run.process = subprocess.Popen(["sleep", "60"])
    try:
        runner._terminate_early()
        assert [run.state for run in runner.runs] == ["stopped", "running", "running", "running"]
    finally:
        for run in runner.runs:
            assert run.process is not None
            run.process.kill()
            run.process.wait()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("sweep.json", "is not the record of a sweep: move it away, or choose another --output"),
        ("000-0a1b2c3d/notes.txt", "000-0a1b2c3d is not of this sweep: move it away, or choose another --output"),
        ("sweep.html", "exists and was not written by this command"),
    ],
)
def test_a_file_of_another_origin_is_refused_before_the_work(
    tmp_path: Path, file: str, complaint: str, resume: bool
) -> None:
    output = tmp_path / "out"
    (output / file).parent.mkdir(parents=True)
    (output / file).write_text("{}")
    with pytest.raises(ValueError, match=complaint):
        SweepRunner(load(tmp_path), output, 1).run(resume)
    assert (output / file).read_text() == "{}"
    assert {path.name for path in output.iterdir()} == {file.split("/")[0], ".lock"}
