"""Offline W&B runs: contents, resumed runs and failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from sdr_lightning import load
from sdr_lightning.cli.main import main
from sdr_lightning.reporting.wandb_file import TrackedRun, _records, read_tracked
from tests.e2e.sdr import MATCHING_ALONE, SMALL, error_line, sdr, succeeded

LOGGER = "--trainer.logger.init_args"


def fit(experiments: Path, folder: Path, *more: str, **environment: str) -> Any:
    options = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    overlay = ("--config", experiments / "_base/wandb.yaml")
    environment = {"WANDB_MODE": "offline", **environment}
    return sdr("fit", *options, *overlay, *more, "--run_dir", folder, cwd=folder.parent, **environment)


def tracked(folder: Path) -> list[TrackedRun]:
    return [read_tracked(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


@pytest.mark.slow
def test_contents_of_an_offline_run(experiments: Path, tmp_path: Path) -> None:
    words = (f"{LOGGER}.group=seeds", f"{LOGGER}.tags=[a, b]", f"{LOGGER}.notes=said", f"{LOGGER}.job_type=student")
    project = (f"{LOGGER}.project=mine", f"{LOGGER}.entity=team", f"{LOGGER}.name=first")
    folder = tmp_path / "run"
    succeeded(fit(experiments, folder, "--trainer.max_epochs=2", *words, *project))
    (run,) = tracked(folder)
    expected = {"project": "mine", "entity": "team", "group": "seeds", "tags": ["a", "b"], "notes": "said"}
    assert {name: run.meta[name] for name in expected} == expected
    assert (run.meta["job_type"], run.meta["display_name"]) == ("student", "first")
    assert run.config["run"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert run.config["record"]["git"] == json.loads((folder / "run.json").read_text())["git"]
    assert run.config.keys() == {"_wandb", "run", "record"}  # other keys are reserved for sweeps
    logged = {name for row in run.history for name in row}
    assert {"val/rsum", "val/rsum_best", "train/loss", "method/temperature", "epoch"} <= logged
    assert any(name.startswith("curves") for name in logged)
    assert any(name.startswith("examples") for name in logged)
    kept = json.loads((folder / "results.json").read_text())["training"]["kept"]
    assert run.summary["best/val/rsum"] == kept["val/rsum"]
    assert run.summary["best/val/rsum"] == max(row["val/rsum"] for row in run.history if "val/rsum" in row)
    assert run.summary["val/rsum_best"] == run.summary["best/val/rsum"]
    assert list(folder.glob("wandb/offline-run-*/files/media/images/curves*.png"))
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/examples*.json")
    assert json.loads(table.read_text())["columns"][:2] == ["image", "caption 1"]
    assert (folder / "metrics.csv").is_file()


@pytest.mark.slow
def test_resumed_training_continues_the_same_run(experiments: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    succeeded(fit(experiments, folder, "--trainer.max_epochs=1"))
    succeeded(fit(experiments, folder, "--trainer.max_epochs=2", "--ckpt_path=last"))
    first, second = tracked(folder)
    assert first.id == second.id
    assert {row["epoch"] for row in second.history if "val/rsum" in row} == {1}


@pytest.mark.slow
def test_the_exported_model_is_logged_with_the_training(experiments: Path, tmp_path: Path) -> None:
    folder, exported = tmp_path / "run", tmp_path / "exported"
    succeeded(fit(experiments, folder, "--trainer.max_epochs=1", "--export", str(exported)))
    assert load(exported).fingerprint() == load(folder).fingerprint()
    training, upload = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert read_tracked(upload).id == read_tracked(training).id
    artifacts = [found.artifact for found in map(Record.FromString, _records(upload)) if found.HasField("artifact")]
    assert [(found.name, found.type) for found in artifacts] == [(f"model-{read_tracked(training).id}", "model")]


@pytest.mark.slow
def test_two_processes_write_one_run(experiments: Path, tmp_path: Path) -> None:
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.max_epochs=1")
    succeeded(fit(experiments, tmp_path / "run", *ddp))
    assert len(tracked(tmp_path / "run")) == 1


@pytest.mark.slow
def test_failures_during_training_are_warnings(experiments: Path, tmp_path: Path) -> None:
    """Every call of W&B fails; training finishes and metrics.csv is complete."""
    breaking = "--trainer.callbacks+=tests.training.killing.BreakWandb"
    done = fit(experiments, tmp_path / "run", "--trainer.max_epochs=2", breaking, PYTHONPATH=str(experiments.parent))
    succeeded(done)
    assert done.stderr.count("W&B failed (OSError: [Errno 28] No space left on device)") == 1
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--model.init_args.optimisation.init_args.learning_rate=1e30",), 2),  # the loss is not finite
        (
            (
                *("--trainer.callbacks+=tests.training.killing.KillAfter", "--trainer.callbacks.step=2"),
                "--trainer.callbacks.name=SIGTERM",
            ),
            143,
        ),
    ],
    ids=["error", "SIGTERM"],
)
def test_wandb_records_the_exit_status(
    options: tuple[str, ...], status: int, experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    overlay = ("--config", experiments / "_base/wandb.yaml", "--run_dir", tmp_path / "run")
    words = ("fit", "--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, *overlay, *options)
    try:
        exited: Any = main([str(word) for word in words])
    except SystemExit as error:
        exited = error.code
    assert exited == status
    wandb.teardown()  # its service holds the working directory
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in _records(path)]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [status]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", [True, False])
def test_missing_wandb_is_an_error_only_with_its_logger(overlay: bool, experiments: Path, tmp_path: Path) -> None:
    """Imports of wandb and sweeps are blocked."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('wandb', 'sweeps'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    hidden = {"PYTHONPATH": f"{tmp_path / 'hidden'}:{experiments.parent}"}
    options = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--trainer.max_epochs=1")
    if overlay:
        done = fit(experiments, tmp_path / "run", "--trainer.max_epochs=1", **hidden)
        assert "logging to W&B needs wandb: pip install 'sdr_lightning[wandb]'" in error_line(done)
    else:
        succeeded(sdr("fit", *options, "--run_dir", tmp_path / "run", cwd=tmp_path, **hidden))
