"""Files of a run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.metrics.evaluation import undefined
from sdr_lightning.metrics.files import pairing_fingerprint, save_evaluation
from sdr_lightning.metrics.paper_protocol import first_five
from sdr_lightning.paths import check_folder, claim, read_json, write_json, write_text
from sdr_lightning.training.checkpoints.best import best_checkpoint
from sdr_lightning.training.protocol import ProtocolName
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.tracking.metrics_csv import MetricsCSV
from sdr_lightning.training.tracking.record import environment, git, peak_memory, versions

_SHARED_FOLDER = "SDR_RUN_DIR"
_RUN_FILES = (
    "run.json",
    "results.json",
    "metrics.json",
    "metrics.queries.npz",
    "metrics.csv",
    "wandb.json",
    "checkpoints",
    "noise",
)


class RunFolder:
    """Writes the configuration, record and results of a run.

    Args:
        path: the folder.
        protocol: protocol of the run.
    """

    def __init__(self, path: Path, protocol: ProtocolName) -> None:
        self.path, self.protocol = path, protocol

    def check(self) -> None:
        """Check that the folder is writable and holds no files of the same names that are not from a run.

        Raises:
            ValueError: it is not writable, or holds such a file.
        """
        check_folder(self.path)
        existing = [name for name in _RUN_FILES if (self.path / name).exists()]
        if existing and not any(_is_record(self.path / name) for name in ("run.json", "results.json")):
            raise ValueError(f"{self.path} holds {existing[0]}, which no run wrote: choose another --run_dir")

    def write_record(
        self, configuration: str, options: Sequence[str], data: RetrievalDataModule, exclusive: bool
    ) -> dict[str, Any]:
        """Write ``config.yaml``, ``run.json`` and ``noise/``.

        Args:
            configuration: the resolved configuration, as YAML.
            options: the options as given on the command line.
            data: set up for the run.
            exclusive: fail if the folder holds a run already.

        Returns:
            The record.

        Raises:
            ValueError: ``exclusive`` is set and the folder holds a run.
        """
        claim(self.path)
        write_text(self.path / "config.yaml", configuration, exclusive=exclusive)
        splits = {name: split.record() for name, split in data.splits.items()}
        record = {"options": options, "protocol": self.protocol, "data": splits, **environment()}
        write_json(self.path / "run.json", record)
        self._write_noise(data)
        return record

    def write_training(self, trainer: pl.Trainer, seconds: float) -> str | None:
        """Write ``results.json`` with the metrics of the selected epoch, time and peak memory.

        Args:
            trainer: after training.
            seconds: wall time of the run.

        Returns:
            The checkpoint of the selected epoch, or None if none was saved.
        """
        keeper = best_checkpoint(trainer)
        log = next((logger for logger in trainer.loggers if isinstance(logger, MetricsCSV)), None)
        rows = [] if log is None else [{"step": step, **row} for step, row in sorted(log.rows.items())]
        kept: dict[str, float] = rows[-1] if rows else {}
        checkpoint: str | None = None
        if keeper is not None:
            checkpoint = keeper.best_model_path or None
            if monitored := [row for row in rows if keeper.monitor in row]:
                best = max if keeper.mode == "max" else min
                kept = best(monitored, key=lambda row: row[str(keeper.monitor)])
        training = {
            "kept": kept,
            "checkpoint": checkpoint,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "wall_time_s": seconds,
            **peak_memory(),
        }
        self._write_results({"training": training})
        return checkpoint

    def write_test(self, module: RetrievalModule, data: RetrievalDataModule, checkpoint: str) -> dict[str, Any]:
        """Write ``results.json`` and ``metrics.json`` of a test, the latter in the format of ``sdr evaluate``.

        Undefined metrics are null in both files, and listed under ``notes`` in ``metrics.json``.

        Returns:
            The corruption of validation and test data, see ``RetrievalDataModule.evaluated_under``.
        """
        self._write_noise(data)
        under = data.evaluated_under()
        results = {"protocol": self.protocol, "metrics": module.test_metrics, "evaluated_under": under}
        self._write_results({**results, "ckpt_path": checkpoint})
        table, relevance = data.split("test").table, data.relevance("test")
        pairing, captions, images = (
            torch.from_numpy(table.caption_image),
            list(table.caption_ids),
            list(table.image_ids),
        )
        notes = undefined(module.test_metrics)
        paper = self.protocol == "paper"
        queries = pairing[first_five(pairing, len(images))] if paper else pairing
        meta = {
            "protocol": self.protocol,
            "split": "test",
            "images": len(images),
            "texts": len(queries),
            "ties": "index",
            "siblings": "keep",
            "folds": None if paper else data.test_folds,
            "relevance": {"kind": relevance.kind, "fingerprint": relevance.fingerprint},
            "data": pairing_fingerprint(pairing, captions, images),
            "evaluated_under": under,
            "notes": notes,
            "code": {"version": versions()["sdr_lightning"], **git()},
        }
        save_evaluation(self.path / "metrics.json", module.test_metrics, module.test_queries, queries, meta)
        return under

    def _write_results(self, results: dict[str, Any]) -> None:
        """Merge the results of a training or a test into ``results.json``."""
        path = self.path / "results.json"
        before = read_json(path, "results of a run") if path.is_file() else {}
        write_json(path, {**before, **results, **environment()})

    def _write_noise(self, data: RetrievalDataModule) -> None:
        """Save the noise tables of all corruptions, so that the same noise can be applied again."""
        for name, split in data.splits.items():
            for number, part in enumerate(split.realised.parts):
                part.save(self.path / "noise" / f"{name}-{number}-{part.imbalance.kind}.npz")


def _is_record(path: Path) -> bool:
    """Whether a JSON file was written by a run."""
    try:
        found = read_json(path, "a run's record")
    except ValueError:
        return False
    return isinstance(found, dict) and {"versions", "git", "hardware"} <= found.keys()


def dated_folder(command: str) -> Path:
    """Choose a run folder named by date, for runs without ``--run_dir``. Processes started by DDP use the same folder.

    Raises:
        ValueError: torchrun or srun started several processes, which cannot agree on a folder.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and _SHARED_FOLDER in os.environ:
        return Path(os.environ[_SHARED_FOLDER])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ValueError("the processes that torchrun or srun started must share a folder: give --run_dir")
    by_date = f"runs/{command}/{time.strftime('%Y%m%d-%H%M%S')}"
    folder = next(name for n in count(1) if not Path(name := by_date if n == 1 else f"{by_date}-{n}").exists())
    os.environ[_SHARED_FOLDER] = folder  # inherited by the processes that DDP starts
    return Path(folder)
