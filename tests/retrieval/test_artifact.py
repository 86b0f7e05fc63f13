"""``sdr export --wandb``: the model as an artifact of the run's own W&B run, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from sdr_lightning.cli.main import main
from sdr_lightning.paths import write_json
from sdr_lightning.reporting.wandb_file import _records, read_tracked
from tests.retrieval.runs import write_fusion_run


def export(run: Path, output: Path) -> int:
    return main(["export", str(run), "--output", str(output), "--wandb"])


@pytest.mark.slow
def test_the_model_is_an_artifact_of_the_run_that_trained_it(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, overlay = tmp_path / "run", ("--config", str(experiments / "_base/wandb.yaml"))
    options = ("--trainer.logger.init_args.project=mine", "--trainer.logger.init_args.tags=[a, b]")
    write_fusion_run(run, experiments, *overlay, *options)
    write_json(run / "wandb.json", {"id": "abc123", "project": "mine", "mode": "offline"})
    assert export(run, tmp_path / "exported") == 0
    assert "logged to W&B as model-abc123" in capsys.readouterr().out
    wandb.teardown()
    (path,) = run.glob("wandb/offline-run-*-abc123/*.wandb")
    tracked = read_tracked(path)
    assert (tracked.id, tracked.meta["project"], tracked.meta["tags"]) == ("abc123", "mine", ["a", "b"])
    records = [Record.FromString(data) for data in _records(path)]
    (artifact,) = [record.artifact for record in records if record.HasField("artifact")]
    assert (artifact.name, artifact.type) == ("model-abc123", "model")
    files = {file.relative_to(tmp_path / "exported").as_posix() for file in (tmp_path / "exported").rglob("*.*")}
    assert {entry.path for entry in artifact.manifest.contents} == files
    fingerprint = json.loads((tmp_path / "exported/sdr_model.json").read_text())["fingerprint"]
    assert json.loads(artifact.metadata)["fingerprint"] == fingerprint
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_a_run_without_wandb_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run, tmp_path / "exported") == 2
    assert f"{run} was not logged to W&B, so there is no W&B run to add the model to" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
