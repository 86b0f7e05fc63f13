"""Which weights are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from sdr_lightning.training.protocol import ProtocolName


class BestCheckpoint(ModelCheckpoint):
    """Keeps the epoch with the best validation metric as ``checkpoints/best.ckpt`` of the run's folder, and the last.

    Args:
        monitor: a *validation* metric; None keeps the last epoch only, for teachers.
        mode: whether more or less of it is better.
        save_last: also write ``last.ckpt`` each epoch, to continue from.
        protocol: under ``paper`` models are selected on test, as the public code does.

    Raises:
        ValueError: a metric of the test split under the clean protocol.
    """

    def __init__(
        self,
        monitor: str | None = "val/rsum",
        mode: Literal["max", "min"] = "max",
        save_last: bool = True,
        protocol: ProtocolName = "clean",
    ) -> None:
        if monitor is not None and monitor.startswith("test") and protocol == "clean":
            raise ValueError(f"models are never selected on test, got monitor {monitor!r}; use val/rsum")
        super().__init__(
            monitor=monitor,
            mode=mode,
            save_last=save_last,
            filename="best" if monitor else "final",
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep checkpoints in the folder of the run."""
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)
