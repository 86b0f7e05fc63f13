"""A sweep on this machine: run, interrupted, continued, reported; and the same from W&B's offline files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sdr_lightning.paths import claim
from sdr_lightning.sweeps.runner import SweepRunner
from sdr_lightning.sweeps.spec import Sweep
from tests.e2e.sdr import SMALL, error_line, sdr, succeeded


@pytest.fixture
def file(experiments: Path, tmp_path: Path) -> Path:
    command = [
        "${env}",
        "sdr",
        "fit",
        "--config",
        str(experiments / "scenes/sdr.yaml"),
        *SMALL,
        "--trainer.max_epochs=1",
    ]
    sweep = {
        "method": "grid",
        "metric": {"name": "val/rsum_best", "goal": "maximize"},
        "command": [*command, "${args}"],
        "parameters": {
            "config": {"values": [str(experiments / "methods/itc.yaml")]},
            "data.init_args.imbalance.kind": {"value": "mismatch"},
            "data.init_args.imbalance.ratio": {"values": [0.0, 0.5]},
            "seed_everything": {"values": [0, 1]},
        },
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


@pytest.mark.slow
def test_interrupted_sweep_continues_and_is_reported(file: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sdr_lightning", "sweep", str(file)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "runs/sweeps/small"
    while not list(folder.glob("*/results.json")):
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 130
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    assert "already holds a sweep: --resume continues it" in error_line(sdr("sweep", file, cwd=tmp_path))
    succeeded(sdr("sweep", file, "--jobs", "2", "--resume", cwd=tmp_path))
    assert {path: path.stat().st_mtime_ns for path in first} == first  # a finished run is never repeated
    record = json.loads((folder / "sweep.json").read_text())
    assert [run["state"] for run in record["runs"]] == ["finished"] * 4
    assert len((folder / "sweep.csv").read_text().splitlines()) == 5
    assert (folder / "sweep.png").is_file()
    page = (folder / "sweep.html").read_text()
    assert '"n": 2' in page  # seeds are averaged
    succeeded(sdr("report", folder, cwd=tmp_path))
    listed = succeeded(sdr("runs", "--where", "imbalance.ratio=5e-1", cwd=tmp_path))
    assert "2 of 4 runs" in listed
    assert "no run has an option 'ratoi'" in error_line(sdr("runs", "--where", "ratoi=0.5", cwd=tmp_path))
    folders = sorted(path.parent for path in folder.glob("*/run.json"))
    compared = succeeded(sdr("runs", folders[0], folders[1], cwd=tmp_path))
    assert "seed_everything" in compared
    assert "val/rsum" in compared


@pytest.mark.slow
def test_failed_run_is_reported(file: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    sweep["parameters"] = {"data.init_args.batch_size": {"values": [1]}}
    file.write_text(yaml.safe_dump(sweep))
    done = sdr("sweep", file, cwd=tmp_path)
    assert done.returncode == 1
    assert "run 0 failed" in done.stderr
    assert "the batch size must be at least 2" in done.stderr


@pytest.mark.slow
def test_sweep_gives_up_when_the_first_runs_fail(file: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    sweep["command"].insert(-1, "--trainer.max_epoch=1")
    file.write_text(yaml.safe_dump(sweep))
    line = error_line(sdr("sweep", file, "--jobs", "2", cwd=tmp_path))
    assert "the first 3 runs all failed, the last with: " in line
    assert "max_epoch" in line
    assert len(json.loads((tmp_path / "runs/sweeps/small/sweep.json").read_text())["runs"]) <= 4


@pytest.mark.slow
def test_sweep_of_another_process_is_refused(file: Path, tmp_path: Path) -> None:
    claim(tmp_path / "out")
    line = error_line(sdr("sweep", file, "--output", tmp_path / "out", "--resume", cwd=tmp_path))
    assert f"another process works in {tmp_path / 'out'}" in line


def test_another_metric_is_another_sweep_and_another_cap_is_not(file: Path, tmp_path: Path) -> None:
    """Not a greater cap, or another description."""
    sweep = yaml.safe_load(file.read_text())
    record = {"name": "small", "config": {**sweep, "run_cap": 1, "description": "before"}, "runs": []}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.json").write_text(json.dumps(record))
    assert SweepRunner(Sweep.load(file), tmp_path / "out", 1)._restored(resume=True) == []
    file.write_text(yaml.safe_dump({**sweep, "metric": {"name": "val/rsum"}}))
    with pytest.raises(ValueError, match="holds a sweep with another metric: choose another --output"):
        SweepRunner(Sweep.load(file), tmp_path / "out", 1)._restored(resume=True)


@pytest.mark.slow
def test_report_of_offline_wandb_runs(experiments: Path, tmp_path: Path) -> None:
    method = ("--config", experiments / "methods/itc.yaml", "--config", experiments / "_base/wandb.yaml")
    for ratio in (0.0, 0.5):
        imbalance = ("--data.init_args.imbalance.kind=mismatch", f"--data.init_args.imbalance.ratio={ratio}")
        options = ("--config", experiments / "scenes/sdr.yaml", *SMALL, *method, *imbalance, "--trainer.max_epochs=1")
        succeeded(sdr("fit", *options, "--run_dir", tmp_path / f"runs/{ratio}", cwd=tmp_path, WANDB_MODE="offline"))
    succeeded(sdr("report", tmp_path / "runs", cwd=tmp_path))
    rows = (tmp_path / "runs/sweep.csv").read_text().splitlines()
    assert rows[0].split(",")[2] == "data.init_args.imbalance.ratio"
    assert len(rows) == 3
