"""What a run logged while it trained, epoch by epoch."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Curve = dict[int, float]
"""From the epoch to the value."""


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a ``metrics.csv`` of Lightning's ``CSVLogger``; no file means no curves.

    Its columns are sparse: a row holds what was logged at one step. The last value of an epoch counts.

    Raises:
        ValueError: the file has no column ``epoch`` or holds something other than numbers.
    """
    curves: dict[str, Curve] = {}
    if not path.is_file():
        return curves
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns: Sequence[str] = reader.fieldnames or ()
        if "epoch" not in columns:
            raise ValueError(f"{path}: no column 'epoch' among {', '.join(columns) or 'no columns'}")
        for row in reader:
            if not row["epoch"]:
                continue
            for column in columns:
                try:
                    value = float(row[column] or "nan")
                    epoch = int(float(row["epoch"]))
                except ValueError as error:
                    raise ValueError(f"{path}: line {reader.line_num}, column {column!r}: {error}") from error
                if math.isfinite(value):
                    curves.setdefault(column, {})[epoch] = value
    return curves


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at the epochs that all of them have.

    Beyond the shortest, the mean would be of fewer seeds and jump for that reason alone.
    """
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {epoch: math.fsum(curve[epoch] for curve in curves) / len(curves) for epoch in sorted(shared)}
