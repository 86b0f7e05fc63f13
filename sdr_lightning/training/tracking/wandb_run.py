"""Weights & Biases logger, enabled by ``--config experiments/_base/wandb.yaml``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from sdr_lightning.paths import read_json, write_json


class WandbRun(WandbLogger):
    """One W&B run per run folder, for any number of processes; a resumed training continues the same run.

    A failure of W&B during training (no network, a full disk) gives one warning; training and ``metrics.csv`` continue.

    Args:
        project: default ``WANDB_PROJECT``, or sdr_lightning.
        entity: user or team; default ``WANDB_ENTITY``, or that of the login.
        group: group of the run, such as the seeds of one setting.
        tags: tags of the run.
        notes: description of the run.
        job_type: type of the run, such as ``teacher`` or ``student``.
        name: display name; W&B generates one by default.
        mode: ``online``, ``offline`` (on disk, for ``wandb sync``) or ``disabled``; default ``WANDB_MODE``, or online.
        save_dir: the run folder; set by the command line.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        job_type: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        save_dir: str = ".",
    ) -> None:
        self._record = Path(save_dir) / "wandb.json"
        self._failed: str | None = None
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError("logging to W&B needs wandb: pip install 'sdr_lightning[wandb]'") from error
        super().__init__(
            project=project or os.environ.get("WANDB_PROJECT", "sdr_lightning"),
            entity=entity or os.environ.get("WANDB_ENTITY"),
            group=group,
            tags=list(tags),
            notes=notes,
            job_type=job_type,
            name=name,
            mode=mode or os.environ.get("WANDB_MODE", "online"),
            save_dir=save_dir,
            id=read_json(self._record, "the id of a W&B run")["id"] if self._record.is_file() else None,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started at the first access.

        Raises:
            ValueError: W&B cannot start.
        """
        import wandb

        try:
            return super().experiment
        except (wandb.Error, OSError) as error:
            raise ValueError(
                f"W&B cannot start ({' '.join(str(error).split())}): WANDB_MODE=offline keeps the run on disk"
            ) from error

    @rank_zero_only
    def begin(self, configuration: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Start the run, or resume the one of this folder.

        Args:
            configuration: the resolved configuration, logged under the key ``run`` to not collide with keys of a sweep.
            record: versions, commit, hardware and data, logged under the key ``record``.

        Raises:
            ValueError: W&B cannot start.
        """
        run = self.experiment
        run.config.update({"run": dict(configuration), "record": dict(record)}, allow_val_change=True)
        write_json(self._record, {"id": run.id, "project": self._project, "mode": self._wandb_init["mode"]})

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, see :meth:`attempt`."""
        self.attempt(lambda: super(WandbRun, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        """Do nothing: :meth:`begin` logs the whole configuration."""

    @rank_zero_only
    def conclude(self, best: Mapping[str, float], pictures: Mapping[str, Path], table: Sequence[Sequence[Any]]) -> None:
        """Log the results of the training.

        Args:
            best: metrics of the selected epoch, logged in the summary as ``best/...``.
            pictures: image files by key.
            table: example queries, a header row and data rows; (H, W, 3) arrays are shown as images.
        """
        import wandb

        def log() -> None:
            run = self.experiment
            run.summary.update({f"best/{name}": value for name, value in best.items()})
            media: dict[str, Any] = {key: wandb.Image(str(path)) for key, path in pictures.items()}
            if table:
                shown = [
                    [wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row] for row in table[1:]
                ]
                media["examples"] = wandb.Table(columns=list(table[0]), data=shown)
            run.log(media)

        self.attempt(log)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: :meth:`finish` ends the run after its report."""

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, if one was started."""
        if self._experiment is not None:
            run, self._experiment = self._experiment, None
            self.attempt(lambda: run.finish(exit_code=exit_code))

    def attempt(self, action: Callable[[], None]) -> None:
        """Call a function of W&B. The first failure gives a warning and disables all later calls."""
        if self._failed is not None:
            return
        try:
            action()
        except Exception as error:  # wandb raises many types for network and disk failures
            self._failed = f"{type(error).__name__}: {' '.join(str(error).split())}"
            rank_zero_warn(f"W&B failed ({self._failed}); training goes on without it, metrics.csv is written")
