"""Callbacks that interrupt a training."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import lightning.pytorch as pl

from sdr_lightning.training import WandbRun


class KillAfter(pl.Callback):
    """Sends this process a signal after a batch.

    Args:
        step: number of trained batches over all epochs after which the signal is sent.
        name: name of the signal.
    """

    def __init__(self, step: int, name: str = "SIGKILL") -> None:
        self.step, self.signal = step, signal.Signals[name]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.step:
            os.kill(os.getpid(), self.signal)


class BreakWandb(pl.Callback):
    """Makes W&B fail as on a full disk after the first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbRun):

                def full(*_: Any, **__: Any) -> None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                logger.experiment.log = full
