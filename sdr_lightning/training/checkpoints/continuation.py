"""Exact resumption: a resumed training gives bit-identical results to an uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sdr_lightning.data.loaders import ResumableLoader
from sdr_lightning.paths import write_atomically
from sdr_lightning.training.checkpoints.interruption import Interruption, Stopped
from sdr_lightning.training.distributed.collectives import gather_objects
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.tracking.metrics_csv import MetricsCSV

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_GENERATORS, _LOADER, _TERMS, _ROWS = "generators", "loader", "epoch_terms", "metrics_csv"


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, and keeps the preceding ``last.ckpt`` as ``previous.ckpt``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint atomically."""
        path = Path(path)
        if path.name == LAST and path.is_file():
            link = path.with_name(f".{PREVIOUS}")
            link.unlink(missing_ok=True)
            os.link(path, link)  # a hard link, so that last.ckpt exists at any time
            link.replace(path.with_name(PREVIOUS))
        write_atomically(path, lambda part: torch.save(checkpoint, part))


def last_checkpoint(folder: Path) -> Path:
    """Return the newest readable checkpoint to resume from.

    Args:
        folder: folder ``checkpoints`` of the run.

    Raises:
        ValueError: there is none.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.is_file():
            try:
                torch.load(path, map_location="meta", weights_only=True)
            except Exception as error:  # torch raises many types for damaged files
                rank_zero_warn(f"{path} cannot be read ({type(error).__name__}): the one before is tried")
                continue
            return path
    raise ValueError(
        f"nothing to continue: there is no {folder / LAST}; start again without --ckpt_path, in another --run_dir if "
        f"{folder.parent} holds what was cut before its first checkpoint"
    )


class Continuation(pl.Callback):
    """Makes training resumable: extends checkpoints, and saves one on SIGTERM and Ctrl-C.

    Checkpoints additionally hold the state of torch's random generators in all processes, the terms of the epoch and the rows
    of ``metrics.csv``. Process r is seeded with ``seed + r``, so that dropout differs between processes. On SIGTERM or Ctrl-C,
    ``last.ckpt`` is written after the current optimiser step, and :class:`Stopped` is raised in all processes. A second Ctrl-C
    stops at once.
    """

    def __init__(self) -> None:
        self._generators: list[dict[str, Tensor]] | None = None
        self._loader: dict[str, int] | None = None
        self._interruption = Interruption()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the signal handlers: before Lightning restores its own, so that none is left that refers to the trainer."""
        self._interruption.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._interruption.stop()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state to a checkpoint; called in all processes."""
        mine = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            mine["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        checkpoint[_GENERATORS] = gather_objects(trainer, mine)
        for log in _logs(trainer):
            checkpoint[_ROWS] = {step: dict(row) for step, row in log.rows.items()}
        if isinstance(pl_module, EpochTerms):
            checkpoint[_TERMS] = pl_module.packed_terms()
        if isinstance(loader := trainer.train_dataloader, ResumableLoader):
            checkpoint[_LOADER] = loader.state_dict()
            if loader.exhausted and isinstance(pl_module, EpochTerms) and _ROWS in checkpoint:
                # Lightning logs these only after saving, and does not repeat the end of an epoch when resuming.
                row = checkpoint[_ROWS].setdefault(trainer.global_step - 1, {"epoch": trainer.current_epoch})
                row.update({name: value.item() for name, value in pl_module.epoch_means().items()})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the state of a checkpoint. Generators are restored when training starts, because building models uses them."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._generators, self._loader = checkpoint.get(_GENERATORS), checkpoint.get(_LOADER)
        if isinstance(pl_module, EpochTerms):
            pl_module.restore_terms(checkpoint.get(_TERMS, {}))
        for log in _logs(trainer):
            log.rows = checkpoint.get(_ROWS, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore loader and generators, or seed the generators by process; install the signal handlers.

        They replace the handlers of Lightning, which do not save a checkpoint.
        """
        self._interruption.start()
        if isinstance(loader := trainer.train_dataloader, ResumableLoader):
            loader.limit = trainer.num_training_batches
        found, self._generators = self._generators, None
        if self._loader is not None and isinstance(loader := trainer.train_dataloader, ResumableLoader):
            # Lightning does this too, but not if the learning rate schedule has read the number of steps before.
            loader.load_state_dict(self._loader)
        if found is not None and len(found) == trainer.world_size:
            mine = found[trainer.global_rank]
            torch.set_rng_state(mine["cpu"])
            if "cuda" in mine and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(mine["cuda"], pl_module.device)
            return
        if found is not None:
            rank_zero_warn(
                f"the checkpoint was written by {len(found)} processes and is resumed by {trainer.world_size}: the order of "
                "batches is kept, but dropout and drawn negatives differ from an uninterrupted training"
            )
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if any process received a signal since the checkpoint of the last epoch."""
        if trainer.current_epoch > 0:
            self._stop_on_signal(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if any process received a signal, except after the last step of an epoch."""
        if is_between_steps(trainer, batch_idx) and not trainer.is_last_batch:
            self._stop_on_signal(trainer, save=True)

    def _stop_on_signal(self, trainer: pl.Trainer, save: bool = False) -> None:
        received = self._interruption.received
        if trainer.strategy.reduce_boolean_decision(received is not None, all=False):
            last = Path(trainer.default_root_dir) / "checkpoints" / LAST
            if save and trainer.checkpoint_callbacks and not is_dev_run(trainer):
                trainer.save_checkpoint(last)
            how = "; --ckpt_path last continues" if last.is_file() else ", and no last.ckpt is kept"
            raise Stopped(received or signal.SIGTERM, f"at step {trainer.global_step}{how}")


def is_between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser stepped after this batch, so that no accumulated gradients are pending."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def is_dev_run(trainer: pl.Trainer) -> bool:
    """Whether ``fast_dev_run`` is set, which runs a few batches and writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _logs(trainer: pl.Trainer) -> list[MetricsCSV]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
