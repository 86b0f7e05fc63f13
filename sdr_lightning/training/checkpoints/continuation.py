"""What makes a continued training the same, bit for bit, as one that was never stopped."""

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
    """Writes each checkpoint in one step, and keeps the ``last.ckpt`` before the newest as ``previous.ckpt``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; a reader finds the old file or the whole new one, at any moment."""
        path = Path(path)
        if path.name == LAST and path.is_file():
            link = path.with_name(f".{PREVIOUS}")
            link.unlink(missing_ok=True)
            os.link(path, link)  # a second name of the same file: there is no moment without a last.ckpt
            link.replace(path.with_name(PREVIOUS))
        write_atomically(path, lambda part: torch.save(checkpoint, part))


def last_checkpoint(folder: Path) -> Path:
    """The newest whole checkpoint of a run to continue from.

    Args:
        folder: ``checkpoints`` of the run's folder.

    Raises:
        ValueError: there is none.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if path.is_file():
            try:
                torch.load(path, map_location="meta", weights_only=True)
            except Exception as error:  # whatever a damaged file makes torch raise
                rank_zero_warn(f"{path} cannot be read ({type(error).__name__}): the one before is tried")
                continue
            return path
    raise ValueError(
        f"nothing to continue: there is no {folder / LAST}; start again without --ckpt_path, in another --run_dir if "
        f"{folder.parent} holds what was cut before its first checkpoint"
    )


class Continuation(pl.Callback):
    """Keeps generators, the epoch's terms and the rows of ``metrics.csv`` in each checkpoint, and saves on SIGTERM and Ctrl-C.

    Dropout, stochastic depth and drawn negatives read torch's generators. Process r starts from ``seed + r``, so that no
    two drop the same units. On SIGTERM, which batch systems send before they kill, and on Ctrl-C ``last.ckpt`` is written at
    the end of the optimiser's step and :class:`Stopped` leaves the training in all processes. A second Ctrl-C does not wait.
    """

    def __init__(self) -> None:
        self._generators: list[dict[str, Tensor]] | None = None
        self._loader: dict[str, int] | None = None
        self._interruption = Interruption()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._interruption.stop()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the generators of all processes; called in each of them."""
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
                # Lightning logs these after it saves, and does not come back to an epoch whose batches are done.
                row = checkpoint[_ROWS].setdefault(trainer.global_step - 1, {"epoch": trainer.current_epoch})
                row.update({name: value.item() for name, value in pl_module.epoch_means().items()})

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take them out; they are put back when training starts, because building models draws as well."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._generators, self._loader = checkpoint.get(_GENERATORS), checkpoint.get(_LOADER)
        if isinstance(pl_module, EpochTerms):
            pl_module.restore_terms(checkpoint.get(_TERMS, {}))
        for log in _logs(trainer):
            log.rows = checkpoint.get(_ROWS, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put loader and generators where they were, or the generators apart; take over the signals.

        Lightning's handler, which it sets before this, waits for all processes where it stands and saves nothing.
        """
        self._interruption.start()
        if isinstance(loader := trainer.train_dataloader, ResumableLoader):
            loader.limit = trainer.num_training_batches
        found, self._generators = self._generators, None
        if self._loader is not None and isinstance(loader := trainer.train_dataloader, ResumableLoader):
            # Lightning does so as well, unless the optimiser's schedule has asked for the number of steps before.
            loader.load_state_dict(self._loader)
        if found is not None and len(found) == trainer.world_size:
            mine = found[trainer.global_rank]
            torch.set_rng_state(mine["cpu"])
            if "cuda" in mine and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(mine["cuda"], pl_module.device)
            return
        if found is not None:
            rank_zero_warn(
                f"the checkpoint was written by {len(found)} processes and {trainer.world_size} continue it: batches and "
                "losses go on as they would have, dropout and drawn negatives do not"
            )
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave, if a process was asked to since the last epoch's checkpoint."""
        if trainer.current_epoch > 0:
            self._leave_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave, if any process was asked to; after an epoch's last step once its checkpoint is written."""
        if is_between_steps(trainer, batch_idx) and not trainer.is_last_batch:
            self._leave_if_asked(trainer, save=True)

    def _leave_if_asked(self, trainer: pl.Trainer, save: bool = False) -> None:
        asked = self._interruption.asked
        if trainer.strategy.reduce_boolean_decision(asked is not None, all=False):
            last = Path(trainer.default_root_dir) / "checkpoints" / LAST
            if save and trainer.checkpoint_callbacks and not is_dev_run(trainer):
                trainer.save_checkpoint(last)
            how = "; --ckpt_path last continues" if last.is_file() else ", and no last.ckpt is kept"
            raise Stopped(asked or signal.SIGTERM, f"at step {trainer.global_step}{how}")


def is_between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the optimiser has taken its step after this batch, so that no accumulated gradient would be lost."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def is_dev_run(trainer: pl.Trainer) -> bool:
    """Whether this is ``fast_dev_run``, which tries a few batches and writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _logs(trainer: pl.Trainer) -> list[MetricsCSV]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
