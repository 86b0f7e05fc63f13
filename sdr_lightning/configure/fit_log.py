"""Progress of ``sdr fit``, in a terminal and in a log."""

from __future__ import annotations

import time
from contextlib import ExitStack

import lightning.pytorch as pl
from rich.console import Console

from sdr_lightning.progress import progress, time_left
from sdr_lightning.training.checkpoints.best import best_checkpoint
from sdr_lightning.training.epoch_terms import EpochTerms


class FitLog(pl.Callback):
    """Shows the number of steps, and prints a line with loss and score after each epoch, on the standard error.

    It takes the place of Lightning's progress bar, which keeps no line of an epoch, and shows nothing in a log.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._shown = ExitStack()
        self._started, self._first, self._step, self._total = 0.0, 0, 0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to count; the steps of an earlier process of the same run are finished."""
        self._total = int(trainer.estimated_stepping_batches)
        self._started, self._first = time.monotonic(), trainer.global_step
        self._step = self._first
        if trainer.is_global_zero:
            self._advance = self._shown.enter_context(progress("steps", self._total, self._first, self._console))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: object) -> None:
        """Count the step."""
        if trainer.is_global_zero:
            self._advance(trainer.global_step - self._step)
            self._step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the mean loss of the epoch, the metric that selects the checkpoint, and the time left."""
        if not trainer.is_global_zero:
            return
        keeper, metrics = best_checkpoint(trainer), dict(trainer.callback_metrics)
        if isinstance(pl_module, EpochTerms):
            metrics |= pl_module.epoch_means()  # which are logged after the callbacks
        names = dict.fromkeys(("train/loss", (keeper and keeper.monitor) or "train/loss"))
        values = ", ".join(f"{name} {float(metrics[name]):.4g}" for name in names if name in metrics)
        of = f" of {trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        line = f"epoch {trainer.current_epoch + 1}{of}: {values}"
        done, left = self._step - self._first, self._total - self._step
        if done > 0 and left > 0:
            line += f"; {time_left((time.monotonic() - self._started) / done * left)}"
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self._shown.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self._shown.close()
