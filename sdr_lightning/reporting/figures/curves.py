"""Training curves: read ``metrics.csv`` and average over seeds."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Curve = dict[int, float]
"""Value by epoch."""


def read_curves(path: Path) -> dict[str, Curve]:
    """Read the ``metrics.csv`` of Lightning's ``CSVLogger``.

    Columns are sparse. The last finite value of an epoch is kept.

    Args:
        path: the file; if it does not exist, there are no curves.

    Returns:
        Curves by column name.

    Raises:
        ValueError: the file has no column ``epoch`` or a value is not a number.
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
    """Average curves over the epochs that all of them have, so that every mean is over the same seeds."""
    shared = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return {epoch: math.fsum(curve[epoch] for curve in curves) / len(curves) for epoch in sorted(shared)}
