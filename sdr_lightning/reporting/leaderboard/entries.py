"""Rows of a leaderboard, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdr_lightning.reporting.comparison import Estimate
from sdr_lightning.reporting.quantities import DETECTION, MIXED, NDCG_AT_10, RECALL, RSUM, SINGLE_MODAL, Quantity
from sdr_lightning.reporting.statistics import Interval

METRICS: dict[str, tuple[Quantity, str]] = {
    RSUM.key: (RSUM, "rsum, of 600"),
    **{key: (quantity, f"{key.replace('_', ' ')}, %") for key, quantity in RECALL.items()},
    SINGLE_MODAL.key: (SINGLE_MODAL, "single-modal: mean NDCG@10 of i2i and t2t, %"),
    MIXED.key: (MIXED, "mixed: mean NDCG@10 of i2it and t2it, %"),
    **{quantity.key: (quantity, f"{quantity.label}, %") for quantity in NDCG_AT_10.values()},
    DETECTION[0].key: (DETECTION[0], "detection of corrupted pairs: AUC, %"),
}
"""Metrics of a leaderboard with their names, by key."""

SHOWN = {RSUM.key: "rsum", SINGLE_MODAL.key: "single-modal NDCG@10", MIXED.key: "mixed NDCG@10"}
"""The metrics of the Markdown tables, with their headings."""


@dataclass(frozen=True)
class Link:
    """A text that refers to a file, or to a line of it.

    Attributes:
        text: what is shown.
        path: the file; None for a text without link.
        line: its line, from 1.
    """

    text: str
    path: Path | None = None
    line: int | None = None


@dataclass(frozen=True)
class Score:
    """A metric of an entry.

    Attributes:
        mean: mean over seeds with its interval.
        difference: from the baseline of the study, paired by seed; None for the baseline, and where there is none.
    """

    mean: Interval
    difference: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method under one condition: one row, with all its metrics.

    Attributes:
        group: title of its study, or ``Evaluations of others``; rows of one group are comparable.
        method: name in its study.
        overlays: stems of its overlays that lie in a folder ``methods``, such as experiments/methods.
        data: the data set.
        student: the student.
        noise: what the corruption of the training data means, such as ``mismatch, caption level``.
        ratio: share of corrupted items; None if it is not stated.
        seeds: number of seeds.
        tuning: how its options were chosen.
        scores: by key of :data:`METRICS`; absent where no run has the metric.
        baseline: name of the baseline; empty without one.
        cost: wall time relative to InfoNCE in the same study; None if it is not known.
        options: options that the trials chose; empty if none.
        command: command that makes the result; empty if it is not known.
        configuration: its files.
        records: of its runs, one each.
    """

    group: str
    method: str
    overlays: tuple[str, ...] = ()
    data: str = ""
    student: str = ""
    noise: str
    ratio: float | None
    seeds: int
    tuning: str
    scores: Mapping[str, Score]
    baseline: str = ""
    cost: float | None = None
    options: str = ""
    command: str = ""
    configuration: tuple[Link, ...] = ()
    records: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Aggregate:
    """A metric of a method over the conditions of a study.

    Attributes:
        method: name in its study.
        metric: key of :data:`METRICS`.
        conditions: number of conditions.
        runs: number of runs.
        normalised: interquartile mean of the scores, each divided by the baseline's mean of its condition.
        improvement: probability that a run has a greater score than one of the baseline, in [0, 1]; None for the baseline.
    """

    method: str
    metric: str
    conditions: int
    runs: int
    normalised: Estimate
    improvement: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Entries that are comparable, with what they have in common.

    Attributes:
        title: of the study.
        about: sentences about the study: data, student, seeds, tuning, code.
        report: its report.
        baseline: the method that the others are compared with; empty for evaluations.
        entries: by condition, then by method.
        aggregates: over its conditions.
        outdated: number of cells that were made with other code or options and are in no number.
    """

    title: str
    about: str
    report: Link | None = None
    baseline: str = ""
    entries: tuple[Entry, ...]
    aggregates: tuple[Aggregate, ...] = field(default=())
    outdated: int = 0
