"""Checkpoint callback: the best epoch and the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from sdr_lightning.training.checkpoints.continuation import LAST, is_between_steps, is_dev_run
from sdr_lightning.training.protocol import ProtocolName


class BestCheckpoint(ModelCheckpoint):
    """Saves the epoch with the best validation metric as ``checkpoints/best.ckpt`` in the run folder, and the last one.

    Args:
        monitor: a *validation* metric; None to save only the last epoch as ``final.ckpt``, for teachers.
        mode: whether a higher (``max``) or lower (``min``) value is better.
        save_last: write ``last.ckpt`` after each epoch, to resume from.
        every_n_steps: also write ``last.ckpt`` after every n steps; None to write it only after epochs.
        protocol: ``paper`` allows selection on the test split, as in the public code.

    Raises:
        ValueError: a test metric under the clean protocol, or ``every_n_steps`` below 1 or without ``save_last``.
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
        self._saves_last, self._every_n_steps = save_last, every_n_steps
        self._last_saved_step = -1
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_last=False,  # Lightning writes its own last.ckpt only together with a new best one
            filename="best" if monitor else "final",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the checkpoint folder to that of the run."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch if it is the best, and as the last one."""
        super().on_validation_end(trainer, pl_module)
        is_fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        # Gradients that are accumulated within an epoch are in no checkpoint.
        if (
            is_fitting
            and not self._should_save_on_train_epoch_end(trainer)
            and is_between_steps(trainer, trainer.fit_loop.batch_idx)
        ):
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save an epoch without validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._last_saved_step != trainer.global_step:
            self._save_last(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every n steps; the last step of an epoch is saved at the end of the epoch."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        is_due = self._every_n_steps is not None and trainer.global_step % self._every_n_steps == 0
        if is_due and is_between_steps(trainer, batch_idx) and not trainer.is_last_batch:
            self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        if self._saves_last and not is_dev_run(trainer):
            self._last_saved_step = trainer.global_step
            trainer.save_checkpoint(Path(str(self.dirpath)) / LAST)


def best_checkpoint(trainer: pl.Trainer) -> BestCheckpoint | None:
    """Return the trainer's :class:`BestCheckpoint`, or None."""
    return next((callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)), None)
