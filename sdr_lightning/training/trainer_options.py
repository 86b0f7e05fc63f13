"""Trainer options that a run cannot be made with are refused before any work is done."""

from __future__ import annotations

from difflib import get_close_matches

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.training.continuation import is_dev_run
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.retrieval_module import RetrievalModule

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")


class CheckTrainerOptions(pl.Callback):
    """Check the Trainer against the module and its data, once the data is read and before features are extracted."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check.

        Raises:
            ValueError: a precision or strategy that is not supported, overfit_batches, a part of a gallery, fewer items to
                evaluate than processes, or a monitor that is never logged.
        """
        if not isinstance(pl_module, EpochTerms):  # a module of someone else's
            return
        if trainer.precision not in _PRECISIONS:
            raise ValueError(
                f"trainer.precision {trainer.precision} would round the weights that are trained: use bf16-mixed or 16-mixed"
            )
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise ValueError(f"trainer.strategy {type(trainer.strategy).__name__} is not supported: use ddp")
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ValueError(
                "trainer.overfit_batches replaces the samplers, which know epochs and processes: use "
                "trainer.limit_train_batches"
            )
        if isinstance(pl_module, RetrievalModule):
            _check_gallery(trainer, pl_module.data, stage)
        if stage == "fit":
            _check_monitors(trainer, pl_module)


def _check_gallery(trainer: pl.Trainer, data: RetrievalDataModule, stage: str) -> None:
    """Refuse to measure recall within a part of a gallery; ``fast_dev_run`` measures none."""
    option = "limit_test_batches" if stage == "test" else "limit_val_batches"
    limit = getattr(trainer, option)
    if stage == "fit" and (is_dev_run(trainer) or limit == 0):
        return
    loaders = data.test_dataloader() if stage == "test" else data.val_dataloader()
    batches = max(map(len, loaders))
    if limit != 1.0 if isinstance(limit, float) else limit < batches:
        name, none = ("fast_dev_run", "") if is_dev_run(trainer) else (option, ", or set it to 0 for no validation")
        raise ValueError(
            f"trainer.{name} leaves out a part of the gallery of {batches} batches, and recall is measured within all of "
            f"it: leave {name} out{none if stage == 'fit' else ''}"
        )


def _check_monitors(trainer: pl.Trainer, module: EpochTerms) -> None:
    known = module.logged_metrics()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if monitor is not None and monitor not in known:
            near = get_close_matches(monitor, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{type(callback).__name__} monitors {monitor!r}, which is never logged{hint} (logged are {', '.join(known)})"
            )
