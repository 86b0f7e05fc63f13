"""Training, testing and reloading a student on the command line."""

import csv
import json
from pathlib import Path

import pytest
import torch

from sdr_lightning.cli.main import main
from tests.e2e.sdr import MATCHING_ALONE, SMALL, sdr, succeeded

# The rsum of a random ranking of 60 images with five captions each is about 1.7 + 8.1 + 16.0 (i2t) + 1.7 + 8.3 + 16.7 (t2i).
CHANCE = 60.0


def run(*arguments: str | Path) -> None:
    """Run a command in this process."""
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "run"
    done = sdr("fit", "--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--run_dir", folder)
    assert "finished in" in succeeded(done)
    return folder


def epochs(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def test_fit_learns_and_writes_its_record(fitted: Path) -> None:
    rsum = epochs(fitted, "val/rsum")
    assert max(rsum) > 2 * CHANCE, rsum
    losses = epochs(fitted, "train/itc")
    assert losses[-1] < losses[0]
    assert len(epochs(fitted, "method/temperature")) == len(losses)
    record = json.loads((fitted / "run.json").read_text())
    assert {"versions", "git", "hardware", "options"} <= record.keys()
    assert (fitted / "config.yaml").is_file()


def test_best_checkpoint_gives_identical_metrics(fitted: Path, experiments: Path, tmp_path: Path) -> None:
    best = fitted / "checkpoints/best.ckpt"
    config = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--ckpt_path", best)
    run("test", *config, "--run_dir", tmp_path / "a")
    run("test", *config, "--run_dir", tmp_path / "b")
    first, second = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in "ab")
    assert first == second
    assert first["rsum"] > 2 * CHANCE
    assert {"i2i_NDCG@10", "t2t_NDCG@20", "i2it_NDCG@50", "t2it_NDCG@10", "i2t_R@1", "t2i_tie_rate"} <= first.keys()
    run("validate", *config, "--run_dir", tmp_path / "v")
    assert epochs(tmp_path / "v", "val/rsum") == [max(epochs(fitted, "val/rsum"))]


@pytest.mark.slow
def test_seed_determines_the_losses(fitted: Path, experiments: Path, tmp_path: Path) -> None:
    options = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--trainer.max_epochs=1")
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run("fit", *options, "--seed_everything", str(seed), "--run_dir", tmp_path / name)
    losses = [epochs(tmp_path / name, "train/loss") for name in "abc"]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_run_folder_of_another_run_is_rejected(
    fitted: Path, experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ("fit", "--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--run_dir", fitted)
    assert main(list(map(str, again))) == 2
    assert "already holds a run" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one(experiments: Path, tmp_path: Path) -> None:
    # Batch normalisation depends on the number of processes, so the image tower is a transformer here.
    tower = json.dumps({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    options = (
        *("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--trainer.max_epochs=2"),
        *("--model.init_args.encoder.image_tower.init_args.name", "vit_tiny_patch16_224"),
        *("--model.init_args.encoder.image_tower.init_args.model_args", tower),
        # 61 items are not divisible by two
        *("--data.init_args.source.init_args.num_val=61", "--trainer.accelerator=cpu"),
    )
    succeeded(sdr("fit", *options, "--run_dir", tmp_path / "one", "--trainer.devices=1"))
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    succeeded(sdr("fit", *options, "--run_dir", tmp_path / "two", *two))
    for column in ("train/loss", "method/temperature"):
        # Adam magnifies rounding; tests/training/test_gather.py compares gradients.
        assert epochs(tmp_path / "two", column) == pytest.approx(epochs(tmp_path / "one", column), abs=1e-4)
    assert epochs(tmp_path / "two", "val/rsum") == pytest.approx(epochs(tmp_path / "one", "val/rsum"), abs=1.0)
    best = tmp_path / "two/checkpoints/best.ckpt"
    for name, devices in (("a", "--trainer.devices=1"), ("b", "--trainer.devices=2")):
        strategy = () if name == "a" else ("--trainer.strategy=ddp",)
        test = ("test", *options, "--ckpt_path", best, "--run_dir", tmp_path / name, devices, *strategy)
        succeeded(sdr(*test))
    metrics = [json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in "ab"]
    assert metrics[0] == metrics[1]


def test_frozen_towers_are_cached_and_not_saved(
    experiments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = "--model.init_args.encoder.init_args"
    frozen = [f"{encoder}.{tower}.init_args.frozen=true" for tower in ("image_tower", "text_tower")]
    cache = tmp_path / "cache"
    options = (
        *("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, *frozen),
        *("--trainer.max_epochs=1", f"--data.init_args.cache={cache}"),
    )
    run("fit", *options, "--run_dir", tmp_path / "a")
    kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(kept) == 4  # two towers, two splits
    run("fit", *options, "--run_dir", tmp_path / "b")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept
    assert epochs(tmp_path / "a", "train/loss") == epochs(tmp_path / "b", "train/loss")

    checkpoint = torch.load(tmp_path / "a/checkpoints/best.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if "_tower." in key]
    best = ("--ckpt_path", tmp_path / "a/checkpoints/best.ckpt")
    run("validate", *options, *best, "--run_dir", tmp_path / "v")
    assert epochs(tmp_path / "v", "val/rsum") == epochs(tmp_path / "a", "val/rsum")
    other = ("validate", *options, *best, "--run_dir", tmp_path / "w", "--seed_everything", "5")
    assert main(list(map(str, other))) == 2
    assert "another frozen image_tower" in capsys.readouterr().err
