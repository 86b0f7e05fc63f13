"""Training with several processes: equal results, signals and errors."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.sdr import MATCHING_ALONE, error_line, sdr, succeeded

SIZES = tuple(
    f"--data.init_args.source.init_args.num_{name}={n}" for name, n in (("train", 90), ("val", 21), ("test", 20))
)
RUN = (
    *("--model", "experiments/models/tiny_vit_clip.yaml"),  # batch norm would depend on the number of processes
    *("--data", "experiments/data/scenes.yaml", "--data.init_args.augmentation=none", "--data.init_args.batch_size=60"),
    *("--model.init_args.optimisation.init_args.learning_rate=1e-4", *MATCHING_ALONE),
    *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"),
)
# The gradients of key biases are zero up to rounding, which Adam normalises to steps of any sign.
ROUNDING = ("k_proj.bias", "qkv.bias")


def fit(root: Path, folder: Path, processes: int, *more: str) -> Any:
    ddp = (f"--trainer.devices={processes}", "--trainer.strategy=ddp") if processes > 1 else ("--trainer.devices=1",)
    return sdr("fit", *RUN, *SIZES, *ddp, *more, "--run_dir", folder, cwd=root)


def checkpoint(folder: Path) -> Any:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
def test_losses_and_weights_do_not_depend_on_the_number_of_processes(experiments: Path, tmp_path: Path) -> None:
    for processes in (1, 2, 3):
        succeeded(fit(experiments.parent, tmp_path / str(processes), processes, "--trainer.max_epochs=3"))
    one = checkpoint(tmp_path / "1")
    assert one["global_step"] >= 20
    for processes in (2, 3):
        several = checkpoint(tmp_path / str(processes))
        assert several["global_step"] == one["global_step"]
        for name, value in one["state_dict"].items():
            if not name.endswith(ROUNDING):
                torch.testing.assert_close(several["state_dict"][name], value, rtol=0, atol=1e-6)
        for step, row in one["metrics_csv"].items():
            assert several["metrics_csv"][step] == pytest.approx(row, rel=1e-5), step


@pytest.mark.slow
def test_sigterm_in_two_processes(experiments: Path, tmp_path: Path) -> None:
    """The generators of both processes are restored."""
    root = experiments.parent
    succeeded(fit(root, tmp_path / "whole", 2, "--trainer.max_epochs=2"))
    kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", "--trainer.callbacks.step=3")
    done = fit(root, tmp_path / "cut", 2, "--trainer.max_epochs=2", *kill, "--trainer.callbacks.name=SIGTERM")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert len(checkpoint(tmp_path / "cut")["generators"]) == 2
    succeeded(fit(root, tmp_path / "cut", 2, "--trainer.max_epochs=2", "--ckpt_path=last"))
    first, second = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    assert (tmp_path / "whole/metrics.csv").read_text() == (tmp_path / "cut/metrics.csv").read_text()


@pytest.mark.slow
def test_indivisible_batch_size_is_rejected(experiments: Path, tmp_path: Path) -> None:
    done = fit(experiments.parent, tmp_path / "run", 2, "--data.init_args.batch_size=7")
    assert done.returncode != 0
    assert "the global batch size 7 cannot be divided over 2 processes" in done.stderr


@pytest.mark.slow
def test_externally_started_processes_need_run_dir(experiments: Path, tmp_path: Path) -> None:
    options = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE)
    line = error_line(sdr("fit", *options, cwd=tmp_path, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0"))
    assert "must share a folder: give --run_dir" in line
    assert not list(tmp_path.iterdir())
