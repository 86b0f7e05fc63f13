"""Training and testing on a table of images and captions."""

import json
from pathlib import Path

import pytest
import yaml

from sdr_lightning.configure import student_data
from tests.data.scene_files import write_scene_files
from tests.e2e.sdr import MATCHING_ALONE, error_line, sdr, succeeded


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> Path:
    """Write scenes as image files with a CSV table, and a student configuration."""
    folder = tmp_path_factory.mktemp("own")
    write_scene_files(folder / "images", 120, "captions.csv", "image,caption")
    data = yaml.safe_load((experiments / "data/own.yaml").read_text())
    data["init_args"] |= {
        "source": str(experiments / "sources/own.yaml"),
        "tokenizer": {"class_path": "sdr_lightning.data.SceneTokenizer"},
        "image_size": 32,
        "cached_size": 32,
        "batch_size": 32,
        "workers": 2,
        "cache": str(folder / "cache"),
    }
    student = {"model": str(experiments / "models/tiny.yaml"), "data": data}
    student["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    (folder / "student.yaml").write_text(yaml.safe_dump(student))
    return folder


@pytest.mark.slow
def test_training_and_testing_on_a_table_of_images(own: Path) -> None:
    """Parameters of terms without weight are not needed for testing."""
    config = ("--config", own / "student.yaml")
    noisy = ("--data.init_args.imbalance", '[{"kind": "typos", "ratio": 0.5, "splits": ["train", "test"]}]')
    succeeded(sdr("fit", *config, *MATCHING_ALONE, *noisy, "--run_dir", own / "run", OWN_ROOT=str(own)))
    record = json.loads((own / "run/run.json").read_text())["data"]
    assert [part["realised_ratio"] for part in record["train"]["imbalances"]] == [pytest.approx(0.5, abs=0.005)]
    assert record["val"]["imbalances"] == []
    best = ("--ckpt_path", own / "run/checkpoints/best.ckpt", "--run_dir", own / "test")
    resolved = ("--config", own / "run/config.yaml")  # without variables
    assert len(student_data(list(map(str, resolved))).table("train").captions) > 0
    succeeded(sdr("data", "check", "--fast", "--data", own / "run/config.yaml"))
    printed = succeeded(sdr("test", *resolved, *best))
    assert "the test data is imbalanced: typos" in printed
    results = json.loads((own / "test/results.json").read_text())
    assert results["evaluated_under"]["test"]["imbalances"][0]["kind"] == "typos"
    assert (own / "test/noise/test-0-typos.npz").is_file()


@pytest.mark.slow
def test_unreadable_image_in_a_worker_is_named_in_one_line(own: Path) -> None:
    config = ("--config", own / "student.yaml", *MATCHING_ALONE, "--data.init_args.cached_size", "null")
    broken = own / "images" / "7.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    try:
        message = error_line(sdr("fit", *config, "--run_dir", own / "broken", OWN_ROOT=str(own)))
    finally:
        broken.write_bytes(whole)
    assert f"cannot read the image {broken}" in message
    assert "Original Traceback" not in message
