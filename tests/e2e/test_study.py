"""A whole study, small: teachers, banks, cells, report; interrupted, continued, repeated."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from sdr_lightning.features import FeatureBank
from sdr_lightning.results.loading import load_study
from tests.e2e.sdr import error_line, sdr, succeeded


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> Path:
    """The scenes' study at a fraction of its size, with configurations of its own."""
    folder = tmp_path_factory.mktemp("study")
    sizes = {"num_train": 128, "num_val": 40, "num_test": 40}
    for name in ("sdr", "image_teacher", "text_teacher"):
        config = yaml.safe_load((experiments / f"scenes/{name}.yaml").read_text())
        for section in ("model", "data"):
            if isinstance(config[section], str):
                config[section] = yaml.safe_load((experiments / "scenes" / config[section]).read_text())
        config["data"]["init_args"]["source"]["init_args"] = sizes
        config["data"]["init_args"]["batch_size"] = 64
        config["trainer"]["max_epochs"] = 1
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    study = yaml.safe_load((experiments / "scenes/study.yaml").read_text())
    study |= {"ratios": [0, 0.5], "seeds": [0, 1], "imbalances": {"image noise": study["imbalances"]["image noise"]}}
    study["methods"] = {name: study["methods"][name] for name in ("InfoNCE", "SDR", "SDR, placebo teachers")}
    for method in study["methods"].values():
        method["config"] = str(experiments / "scenes" / method["config"])
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder


def cells(folder: Path) -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in folder.glob("cells/**/results.json")}


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three runs of a study
def test_interrupted_study_continues(study: Path) -> None:
    output = study / "out"
    command = [sys.executable, "-m", "sdr_lightning", "reproduce", str(study / "study.yaml"), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while not cells(output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)  # handled as Ctrl-C is
    time.sleep(2)
    begun = set(output.rglob("begun.json"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors, errors
    assert set(output.rglob("begun.json")) == begun  # no further cell has begun
    before = cells(output)
    assert 1 <= len(before) < 12

    printed = succeeded(sdr("reproduce", study / "study.yaml", "--output", output))
    after = cells(output)
    assert len(after) == 12  # 3 methods x (clean + 1 imbalance) x 2 seeds
    assert all(after[path] == changed for path, changed in before.items())
    assert str(output / "report.html") in printed.replace("\n", "")
    assert (output / "report.md").is_file()
    assert not list(output.rglob(".*-*"))  # no temporary file is left

    again = succeeded(sdr("reproduce", study / "study.yaml", "--output", output))
    assert "12 finished" in " ".join(again.split())
    assert cells(output) == after


@pytest.fixture(scope="module")
def finished(study: Path) -> Path:
    """The study's folder once everything in it has run."""
    succeeded(sdr("reproduce", study / "study.yaml", "--output", study / "out"))
    return study / "out"


@pytest.mark.slow
def test_cells_record_their_provenance(finished: Path) -> None:
    for path in cells(finished):
        result = json.loads(path.read_text())
        ratios = [part["affected"] / part["of"] for part in result["realised"]["imbalances"]]
        assert ratios == ([pytest.approx(result["ratio"], abs=0.005)] if result["ratio"] else [])
        assert (result["realised"]["degree"] is not None) == (result["method"] == "SDR")  # placebos measure nothing
        assert result["evaluated_under"] == {}
        assert 0.01 <= result["scalars"]["temperature"] <= 1
        assert 0 < result["metrics"]["centred_i2it_NDCG@10"] < 100
        assert {"versions", "git", "data", "code", "fingerprint", "selected", "protocol"} <= result.keys()
        assert (path.parent / "config.yaml").is_file()
        assert (path.parent / "metrics.csv").is_file()
    report = (finished / "report.html").read_text()
    assert "placebo" in report


@pytest.mark.slow
def test_dry_run_prints_commands_and_writes_nothing(study: Path, tmp_path: Path) -> None:
    printed = succeeded(sdr("reproduce", study / "study.yaml", "--output", tmp_path / "new", "--dry-run"))
    lines = printed.splitlines()
    assert all(line.startswith("sdr ") for line in lines)
    assert sum(line.startswith("sdr test") for line in lines) == 12
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_printed_command_runs(study: Path, finished: Path, tmp_path: Path) -> None:
    printed = succeeded(sdr("reproduce", study / "study.yaml", "--output", finished, "--dry-run"))
    extract = next(line for line in printed.splitlines() if line.startswith("sdr extract"))
    words = shlex.split(extract)[1:]
    words[words.index("--output") + 1] = str(tmp_path / "bank.safetensors")
    succeeded(sdr(*words))
    original = Path(shlex.split(extract)[-1])
    typed, made = FeatureBank.load(tmp_path / "bank.safetensors"), FeatureBank.load(original)
    assert typed.fingerprint == made.fingerprint
    assert torch.equal(typed.features, made.features)


@pytest.mark.slow
def test_cells_with_changed_settings_run_again(study: Path, finished: Path) -> None:
    changed_study = yaml.safe_load((study / "study.yaml").read_text())
    methods = changed_study["methods"]
    changed_study["methods"] = {
        "InfoNCE": methods["InfoNCE"],
        "SDR": {**methods["SDR"], "weights": {"itc": 1, "ttc": 2}},
    }
    (study / "changed.yaml").write_text(yaml.safe_dump(changed_study))
    before = cells(finished)
    succeeded(sdr("reproduce", study / "changed.yaml", "--output", finished))
    changed = {path for path, when in cells(finished).items() if when != before[path]}
    assert {path.parts[-4] for path in changed} == {"SDR"}
    assert len(changed) == 4


@pytest.mark.slow
def test_interrupted_tuned_study_ends_with_the_same_choices_and_results(study: Path) -> None:
    tuned = yaml.safe_load((study / "study.yaml").read_text())
    config, rate = tuned["methods"]["InfoNCE"]["config"], "model.init_args.optimisation.init_args.learning_rate"
    tuned |= {
        "ratios": [0.5],
        "teachers": {},
        "candidate": "InfoNCE, slow",
        "tuning": {"trials": 2},
        "jobs": 1,
        "seeds": [0],
    }
    tuned["methods"] = {
        "InfoNCE": {"config": config, "space": {rate: {"min": 1e-3, "max": 1e-2}}},
        "InfoNCE, slow": {"config": config, "space": {rate: [1e-4, 1e-3]}},
    }
    (study / "tuned.yaml").write_text(yaml.safe_dump(tuned))
    succeeded(sdr("reproduce", study / "tuned.yaml", "--output", study / "whole"))

    cut = study / "cut"
    command = [sys.executable, "-m", "sdr_lightning", "reproduce", str(study / "tuned.yaml"), "--output", str(cut)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 500
    while not list(cut.rglob("trial.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=300) == 130
    assert 1 <= len(list(cut.rglob("trial.json"))) < 4
    assert not cells(cut)
    succeeded(sdr("reproduce", study / "tuned.yaml", "--output", cut))
    assert (cut / "report.md").is_file()

    whole = load_study(study / "whole")
    again = load_study(cut)
    assert (len(whole.trials), len(whole.runs)) == (4, 2)
    assert [(t.method, t.number, t.options, t.score) for t in whole.trials] == [
        (t.method, t.number, t.options, t.score) for t in again.trials
    ]
    assert {key: (run.options, run.metrics) for key, run in whole.runs.items()} == {
        key: (run.options, run.metrics) for key, run in again.runs.items()
    }
    for method in ("InfoNCE", "InfoNCE, slow"):
        scores = {trial.score: trial.options for trial in whole.trials if trial.method == method}
        assert {str(run.options) for key, run in whole.runs.items() if key[0] == method} == {str(scores[max(scores)])}


@pytest.mark.slow
def test_failing_job_stops_the_study(study: Path, tmp_path: Path) -> None:
    for name in ("study", "sdr", "image_teacher", "text_teacher"):
        (tmp_path / f"{name}.yaml").write_text((study / f"{name}.yaml").read_text())
    config = yaml.safe_load((tmp_path / "sdr.yaml").read_text())
    config["data"]["init_args"]["batch_size"] = 5000
    (tmp_path / "sdr.yaml").write_text(yaml.safe_dump(config))
    line = error_line(sdr("reproduce", tmp_path / "study.yaml", "--output", tmp_path / "out"))
    assert "batch size 5000 is larger than the 640" in line
    assert not cells(tmp_path / "out")


@pytest.mark.slow
def test_unwritable_output_folder_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = error_line(sdr("reproduce", study / "study.yaml", "--output", tmp_path / "file/out"))
    assert str(tmp_path / "file") in line
