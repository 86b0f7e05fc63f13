"""Quantities that a study report shows, computed from the metrics of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sdr_lightning.reporting.statistics import Interval, mean_interval
from sdr_lightning.results.schema import RECALLS, Condition, Run, Study


@dataclass(frozen=True)
class Quantity:
    """The mean of one or more metrics of a run, times a factor. Higher is better, except for diagnostics.

    Attributes:
        key: identifier, also the file name of the figure.
        label: name in tables and figures.
        metrics: names of the metrics, or of the method's scalars, that are averaged.
        unit: unit on the axis of a figure.
        scale: factor applied to the mean.
        decimals: decimal places of a value.
        difference_decimals: decimal places of a difference.
        source: ``metrics`` or ``scalars`` of the run.
    """

    key: str
    label: str
    metrics: tuple[str, ...]
    unit: str = "%"
    scale: float = 1.0
    decimals: int = 1
    difference_decimals: int = 2
    source: Literal["metrics", "scalars"] = "metrics"

    def value(self, run: Run) -> float | None:
        """Compute the quantity for one run; None if a metric is missing."""
        return self.of(run.metrics if self.source == "metrics" else run.scalars)

    def of(self, values: Mapping[str, float]) -> float | None:
        """Compute the quantity from metrics by name; None if one is missing."""
        if not all(metric in values for metric in self.metrics):
            return None
        return self.scale * sum(values[metric] for metric in self.metrics) / len(self.metrics)

    def by_seed(self, study: Study, method: str, condition: Condition) -> dict[int, float]:
        """Return the available values by seed."""
        values = {run.seed: self.value(run) for run in study.runs_of(method, condition)}
        return {seed: value for seed, value in values.items() if value is not None}

    def interval(self, study: Study, method: str, condition: Condition) -> Interval:
        """Compute mean and interval over the available seeds."""
        return mean_interval(list(self.by_seed(study, method, condition).values()))

    def ranking(self, study: Study, conditions: Sequence[Condition]) -> list[str]:
        """Return the methods, that of the highest mean over the conditions first; those without runs last."""

        def mean(method: str) -> float:
            points = [self.interval(study, method, condition) for condition in conditions]
            found = [point.mean for point in points if point.n]
            return sum(found) / len(found) if found else -math.inf

        return sorted(study.methods, key=mean, reverse=True)

    def present(self, study: Study) -> bool:
        """Return whether at least one run has all metrics of the quantity."""
        return any(self.value(run) is not None for run in study.runs.values())


def _metric(metric: str, label: str) -> Quantity:
    return Quantity(metric, label, (metric,))


TASKS = {
    "i2i": "image to image",
    "t2t": "text to text",
    "i2it": "image to both",
    "t2it": "text to both",
}
"""Single-modal retrieval, and mixed retrieval from a gallery of images and texts."""

CUTOFFS = (10, 20, 50)

RSUM = Quantity("rsum", "rsum", ("rsum",), unit="of 600", difference_decimals=1)
RECALL = {key: _metric(key, key.split("_")[1]) for key in RECALLS}
NDCG = {(task, k): _metric(f"{task}_NDCG@{k}", f"@{k}") for task in TASKS for k in CUTOFFS}
NDCG_AT_10 = {task: Quantity(f"{task}_ndcg_10", f"{task} NDCG@10", (f"{task}_NDCG@10",)) for task in TASKS}
SINGLE_MODAL = Quantity("single_modal", "mean NDCG@10 of i2i and t2t", ("i2i_NDCG@10", "t2t_NDCG@10"))
MIXED = Quantity("mixed", "mean NDCG@10 of i2it and t2it", ("i2it_NDCG@10", "t2it_NDCG@10"))
NEIGHBOURS = Quantity("neighbours", "kNN@10 overlap with the teachers", ("image_kNN@10", "text_kNN@10"))
ALIGNMENT = Quantity("alignment", "CKA with the teachers", ("image_CKA", "text_CKA"))
DETECTION = (
    Quantity("detection_auc", "AUC, %", ("detection_AUC",)),
    Quantity("estimated_share", "Estimated share, %", ("detection_estimated_share",)),
    Quantity("true_share", "True share, %", ("detection_true_share",)),
)
TEMPERATURE = Quantity("temperature", "temperature τ", ("temperature",), unit="", decimals=3, source="scalars")
GAP = Quantity("gap", "modality gap", ("modality_gap",), unit="", decimals=3)
MIXED_TABLE = (
    *(
        Quantity(f"{prefix}{task}_ndcg_10", f"{task}{', centred' if prefix else ''}", (f"{prefix}{task}_NDCG@10",))
        for task in ("i2it", "t2it")
        for prefix in ("", "centred_")
    ),
    GAP,
    TEMPERATURE,
)
"""Mixed retrieval, and what it depends on."""
DIAGNOSTICS = (
    Quantity("image_knn", "kNN@10 overlap with the image teacher, %", ("image_kNN@10",)),
    Quantity("text_knn", "kNN@10 overlap with the text teacher, %", ("text_kNN@10",)),
    Quantity("image_cka", "CKA with the image teacher, %", ("image_CKA",)),
    Quantity("text_cka", "CKA with the text teacher, %", ("text_CKA",)),
    Quantity("i2t_mdr", "i2t median rank", ("i2t_MdR",), unit=""),
    Quantity("t2i_mdr", "t2i median rank", ("t2i_MdR",), unit=""),
    Quantity("i2t_ties", "i2t tied queries, %", ("i2t_tie_rate",), scale=100.0, decimals=2),
    Quantity("t2i_ties", "t2i tied queries, %", ("t2i_tie_rate",), scale=100.0, decimals=2),
    GAP,
)
