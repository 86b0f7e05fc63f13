"""Training curves: which are shown, reading ``metrics.csv``, and means over seeds."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from sdr_lightning.results.schema import Condition, Run, Study

Curve = dict[int, float]
"""Value by epoch."""

Logs = dict[Condition, dict[str, list[dict[str, Curve]]]]
"""By condition and method: the curves of each seed, by column name."""

_METHOD_CURVES = {
    "method/lambda": "λ, weight of the text teacher",
    "method/temperature": "τ, contrastive loss",
    "method/representation_temperature": "τ, representation terms",
    "method/relation_temperature": "τ₂, relations",
}


def curve_labels(protocol: str) -> dict[str, str]:
    """Return the columns of a training log that are shown, with their labels: first the metric that selects the epoch.

    Under ``clean``, test metrics exist for one epoch only.
    """
    selected = (
        {"test/rsum": "rsum, test (used for selection)"} if protocol == "paper" else {"val/rsum": "rsum, validation"}
    )
    return selected | _METHOD_CURVES


def training_logs(study: Study, methods: Sequence[str]) -> Logs:
    """Read the logs of some methods at the highest ratio of each imbalance; conditions without a log are left out."""
    shown = curve_labels(study.protocol).keys()
    logs = {
        condition: {method: [_log(study, run) for run in study.runs_of(method, condition)] for method in methods}
        for condition in study.hardest
    }
    return {at: found for at, found in logs.items() if any(shown & log for seeds in found.values() for log in seeds)}


def logged_labels(study: Study, logs: Logs) -> dict[str, str]:
    """Return the labels of the curves that at least one log has."""
    logged = {key for by_method in logs.values() for seeds in by_method.values() for log in seeds for key in log}
    return {key: label for key, label in curve_labels(study.protocol).items() if key in logged}


def _log(study: Study, run: Run) -> dict[str, Curve]:
    recorded = {name: dict(curve) for name, curve in run.curves.items()}
    return recorded or read_curves(study.root / run.folder / "metrics.csv")


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
