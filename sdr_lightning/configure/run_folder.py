"""The folder of a run: what is written there, and when."""

from __future__ import annotations

import os
import sys
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

_WRITTEN = (
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
    """Writes what a run was made with, and what came of it.

    Args:
        path: the folder.
        protocol: the run's.
    """

    def __init__(self, path: Path, protocol: ProtocolName) -> None:
        self.path, self.protocol = path, protocol

    def check(self) -> None:
        """Refuse a folder that cannot be written to, or that holds files which a run would replace and no run wrote.

        Raises:
            ValueError: names what is in the way.
        """
        check_folder(self.path)
        there = [name for name in _WRITTEN if (self.path / name).exists()]
        if there and not any(_is_record(self.path / name) for name in ("run.json", "results.json")):
            raise ValueError(f"{self.path} holds {there[0]}, which no run wrote: choose another --run_dir")

    def write_record(
        self, configuration: str, options: Sequence[str], data: RetrievalDataModule, exclusive: bool
    ) -> dict[str, Any]:
        """Write ``config.yaml``, ``run.json`` and ``noise/``.

        Args:
            configuration: as resolved.
            options: as they were given.
            data: set up for the run.
            exclusive: the run is a new one: refuse a folder that has one.

        Returns:
            The record.

        Raises:
            ValueError: the folder holds another run.
        """
        claim(self.path)
        write_text(self.path / "config.yaml", configuration, exclusive=exclusive)
        splits = {name: split.record() for name, split in data.splits.items()}
        record = {"options": options, "protocol": self.protocol, "data": splits, **environment()}
        write_json(self.path / "run.json", record)
        self._write_noise(data)
        return record

    def write_training(self, trainer: pl.Trainer, seconds: float) -> str | None:
        """Write ``results.json``: the epoch that was kept, and what the training took.

        Returns:
            The checkpoint of that epoch, or None where none was kept.
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
        """Write ``results.json`` and ``metrics.json`` of a test, the latter as ``sdr evaluate`` writes it.

        Metrics that are undefined are null in both, and named under ``notes`` in the latter.

        Returns:
            What the test data is under.
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
        """Write what came of a training or of a test beside what came of the other."""
        path = self.path / "results.json"
        before = read_json(path, "results of a run") if path.is_file() else {}
        write_json(path, {**before, **results, **environment()})

    def _write_noise(self, data: RetrievalDataModule) -> None:
        """Keep which items each imbalance changed, so that the very same noise can be read again, here or elsewhere."""
        for name, split in data.splits.items():
            for number, part in enumerate(split.realised.parts):
                part.save(self.path / "noise" / f"{name}-{number}-{part.imbalance.kind}.npz")


def _is_record(path: Path) -> bool:
    """Whether a run wrote a file of JSON: what it was made with is in it."""
    try:
        found = read_json(path, "a run's record")
    except ValueError:
        return False
    return isinstance(found, dict) and {"versions", "git", "hardware"} <= found.keys()


def dated_folder(command: str) -> Path:
    """A folder for a run that names none: by date, the same for all processes of a run.

    Raises:
        ValueError: processes that were started side by side, which would each choose its own.
    """
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ValueError("the processes that torchrun or srun started must share a folder: give --run_dir")
    by_date = f"runs/{command}/{time.strftime('%Y%m%d-%H%M%S')}"
    folder = next(name for n in count(1) if not Path(name := by_date if n == 1 else f"{by_date}-{n}").exists())
    sys.argv.append(f"--run_dir={folder}")  # for the processes that DDP starts
    return Path(folder)
