"""Which weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from sdr_lightning.training.checkpoints.continuation import LAST, is_between_steps, is_dev_run
from sdr_lightning.training.protocol import ProtocolName


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the best validation metric as ``checkpoints/best.ckpt`` of the run's folder, and the last.

    Args:
        monitor: a *validation* metric; None keeps the last epoch only, for teachers.
        mode: whether more or less of it is better.
        save_last: also write ``last.ckpt`` each epoch, to continue from.
        every_n_steps: write ``last.ckpt`` after every so many steps as well, for epochs that take long; None for epochs alone.
        protocol: under ``paper`` models are selected on test, as the public code does.

    Raises:
        ValueError: a metric of the test split under the clean protocol, or steps that are not positive.
    """

    def __init__(
        self,
        monitor: str | None = "val/rsum",
        mode: Literal["max", "min"] = "max",
        save_last: bool = True,
        every_n_steps: int | None = None,
        protocol: ProtocolName = "clean",
    ) -> None:
        if monitor is not None and monitor.startswith("test") and protocol == "clean":
            raise ValueError(f"models are never selected on test, got monitor {monitor!r}; use val/rsum")
        if every_n_steps is not None and (every_n_steps < 1 or not save_last):
            raise ValueError(
                f"checkpoint.every_n_steps is at least 1 and goes with save_last, got {every_n_steps} and {save_last}"
            )
        self._keeps_last, self._every_n_steps = save_last, every_n_steps
        self._kept_at = -1
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_last=False,  # Lightning's would be written only in epochs that are the best so far
            filename="best" if monitor else "final",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep checkpoints in the folder of the run."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch if it is the best, and as the last."""
        super().on_validation_end(trainer, pl_module)
        is_fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if is_fitting and not self._should_save_on_train_epoch_end(trainer):
            self._keep_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep an epoch that had no validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._kept_at != trainer.global_step:
            self._keep_last(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep this step, if it is one of those that are kept; an epoch's last is kept at the epoch's end."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        kept = self._every_n_steps is not None and trainer.global_step % self._every_n_steps == 0
        if kept and is_between_steps(trainer, batch_idx) and not trainer.is_last_batch:
            self._keep_last(trainer)

    def _keep_last(self, trainer: pl.Trainer) -> None:
        if self._keeps_last and not is_dev_run(trainer):
            self._kept_at = trainer.global_step
            trainer.save_checkpoint(Path(str(self.dirpath)) / LAST)


def best_checkpoint(trainer: pl.Trainer) -> BestCheckpoint | None:
    """The trainer's :class:`BestCheckpoint`, whatever other checkpoints it writes; None if it has none."""
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)), None)
