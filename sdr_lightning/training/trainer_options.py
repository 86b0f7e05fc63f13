"""Checks of Trainer options before a run starts."""

from __future__ import annotations

from difflib import get_close_matches

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.training.checkpoints.continuation import is_dev_run
from sdr_lightning.training.distributed.strategies import FullySharded
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.retrieval_module import RetrievalModule

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


def check_trainer(trainer: pl.Trainer) -> None:
    """Check the options of a Trainer that do not depend on data and model.

    Raises:
        ValueError: an unsupported precision, strategy or callback, or overfit_batches.
    """
    if trainer.precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision {trainer.precision} would round the weights that are trained: use bf16-mixed or 16-mixed"
        )
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy | SingleDeviceStrategy | FullySharded):
        raise ValueError(f"trainer.strategy {type(strategy).__name__} is not supported: use ddp, ddp_bf16 or fsdp")
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise ValueError("trainer.strategy may not fork or spawn processes, whose logs would be lost: use ddp")
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.overfit_batches replaces the samplers of the data module: use trainer.limit_train_batches"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BatchSizeFinder | LearningRateFinder):
            raise ValueError(f"{type(callback).__name__} is not supported: search with sdr sweep")


class CheckGalleryAndMonitors(pl.Callback):
    """Checks the Trainer against module and data, after the data is read and before features are extracted."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Run the checks.

        Raises:
            ValueError: evaluation covers only a part of the gallery, there are fewer items than processes, or a callback
                monitors a metric that is never logged.
        """
        if isinstance(pl_module, RetrievalModule):
            _check_gallery(trainer, pl_module.data, stage)
        if stage == "fit" and isinstance(pl_module, EpochTerms):
            _check_monitors(trainer, pl_module)


def _check_gallery(trainer: pl.Trainer, data: RetrievalDataModule, stage: str) -> None:
    """Require that recall is computed over the whole gallery; ``fast_dev_run`` computes none."""
    option = "limit_test_batches" if stage == "test" else "limit_val_batches"
    limit = getattr(trainer, option)
    if stage == "fit" and (is_dev_run(trainer) or limit == 0):
        return
    loaders = data.test_dataloader() if stage == "test" else data.val_dataloader()
    batches = max(map(len, loaders))
    if limit != 1.0 if isinstance(limit, float) else limit < batches:
        name = "fast_dev_run" if is_dev_run(trainer) else option
        none = ", or set it to 0 for no validation" if stage == "fit" else ""
        raise ValueError(
            f"trainer.{name} leaves out a part of the gallery ({batches} batches), and recall is measured within all of it: "
            f"leave {name} out{none}"
        )


def _check_monitors(trainer: pl.Trainer, module: EpochTerms) -> None:
    known = module.logged_metrics()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if monitor is not None and monitor.startswith("method/detection"):
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which is measured against the truth: monitor a metric of the "
                "validation split"
            )
        if monitor is not None and monitor not in known:
            near = get_close_matches(monitor, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which is never logged{hint} (logged are {', '.join(known)})"
            )
