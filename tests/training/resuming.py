"""Trainings that keep the checkpoint of every step, to continue from any of them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.checkpoints.continuation import Continuation
from tests.training.student import trainer


class KeepEveryStep(pl.Callback):
    """Copies the checkpoint of each step."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints/last.ckpt"
        if last.exists():
            shutil.copy(last, checkpoint(Path(trainer.default_root_dir), trainer.global_step))


def checkpoint(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is kept."""
    return folder / f"checkpoints/step-{step}.ckpt"


def train(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    folder: Path,
    ckpt_path: Path | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Train, or continue, and return all parameters and buffers. No signal handler of the training is left behind."""
    callbacks = [BestCheckpoint(None, every_n_steps=1), Continuation(), KeepEveryStep()]
    defaults = {
        "enable_checkpointing": True,
        "callbacks": callbacks,
        "limit_val_batches": 0,
        "default_root_dir": folder,
    }
    torch.manual_seed(1)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer(**defaults, **options).fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    return module.state_dict()


def assert_continues_from(steps: list[int], start: Any, folder: Path, **options: Any) -> None:
    """Continue from the checkpoints of some steps, and compare bit by bit with the training that was not interrupted.

    Args:
        steps: of the optimiser.
        start: builds the module and the data.
        folder: of all runs.
        options: of the trainer.
    """
    whole = train(*start(), folder / "whole", **options)
    for step in steps:
        continued = train(*start(), folder / str(step), checkpoint(folder / "whole", step), **options)
        assert whole.keys() == continued.keys()
        differing = [name for name, value in whole.items() if not torch.equal(value, continued[name])]
        assert not differing, f"continued from step {step}: {differing}"
