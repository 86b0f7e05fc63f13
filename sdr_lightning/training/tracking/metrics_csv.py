"""Logger that writes ``metrics.csv``, one row per epoch, atomically and resumably."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sdr_lightning.paths import write_text


class MetricsCSV(Logger):
    """Writes logged metrics to ``metrics.csv`` in a folder.

    Metrics logged at the same step share a row. Columns are ``epoch``, ``step`` and the metrics sorted by name. The file is
    replaced atomically at the end of each epoch.

    Args:
        save_dir: the folder.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: dict[int, dict[str, float]] = {}

    @property
    def name(self) -> str:
        """Empty: no subfolder is used."""
        return ""

    @property
    def version(self) -> str:
        """Empty: no subfolder is used."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        self.rows.setdefault(step or 0, {}).update(metrics)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyper-parameters are in the run's ``config.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file."""
        if not self.rows:
            return
        names = sorted({name for row in self.rows.values() for name in row} - {"epoch"})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["epoch", "step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "step": step} for step, row in sorted(self.rows.items()))
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the file."""
        self.save()
