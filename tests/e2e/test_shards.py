"""Training from shards with two processes and workers: interrupted, and with other numbers of them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.e2e.sdr import sdr, succeeded
from tests.e2e.test_world_sizes import ROUNDING, RUN, SIZES, checkpoint


def fit(root: Path, shards: Path, folder: Path, processes: int, workers: int, *more: str) -> object:
    source = ("--data.init_args.source", "sdr_lightning.data.ShardSource", f"--data.init_args.source.folder={shards}")
    ddp = (f"--trainer.devices={processes}", "--trainer.strategy=ddp") if processes > 1 else ("--trainer.devices=1",)
    options = ("--data.init_args.imbalance.ratio=0.4", f"--data.init_args.workers={workers}", "--trainer.max_epochs=2")
    streams = "--data.init_args.source.init_args.streams=6"
    return sdr("fit", *RUN, *source, streams, *options, *ddp, *more, "--run_dir", folder, cwd=root)


@pytest.mark.slow
def test_shards_over_processes_and_workers(experiments: Path, tmp_path: Path) -> None:
    root, shards = experiments.parent, tmp_path / "shards"
    data = ("--data", "experiments/data/scenes.yaml", *SIZES)
    succeeded(sdr("data", "shard", *data, "--output", shards, "--images-per-shard", "10", cwd=root))
    succeeded(fit(root, shards, tmp_path / "whole", 2, 1))
    kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", "--trainer.callbacks.step=3")
    done = fit(root, shards, tmp_path / "cut", 2, 1, *kill, "--trainer.callbacks.name=SIGTERM")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert checkpoint(tmp_path / "cut")["global_step"] == 3
    succeeded(fit(root, shards, tmp_path / "cut", 2, 1, "--ckpt_path=last"))
    succeeded(fit(root, shards, tmp_path / "alone", 1, 0))
    whole, cut, alone = (checkpoint(tmp_path / name) for name in ("whole", "cut", "alone"))
    assert whole["global_step"] == 2 * (90 * 5 // 60)
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][name]), name
        if not name.endswith(ROUNDING):
            torch.testing.assert_close(alone["state_dict"][name], value, rtol=0, atol=1e-6)
