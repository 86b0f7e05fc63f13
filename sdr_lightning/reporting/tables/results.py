"""Tables of results: paired comparisons and means over seeds."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import CLAIMS, PairedComparison, compare_claims, compare_with_baseline
from sdr_lightning.reporting.quantities import (
    CUTOFFS,
    DETECTION,
    DIAGNOSTICS,
    MIXED_TABLE,
    NDCG,
    NDCG_AT_10,
    RECALL,
    RSUM,
    TASKS,
    Quantity,
)
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.reporting.tables.table import Block, Cell, Table
from sdr_lightning.results.schema import Condition, Study


def claims_table(study: Study) -> Table:
    """Candidate minus baseline, with verdicts: one row per condition, one column per claim."""
    comparisons = compare_claims(study)
    return Table(
        key="claims",
        caption=f"{study.candidate} − {study.reference}, mean over seeds [95{formatting.NBSP}% interval]",
        headings=("Condition", *(f"{title}: {CLAIMS[title].label}" for title in comparisons)),
        blocks=_by_condition(study, list(comparisons.values())),
    )


def claims_by_task_table(study: Study) -> Table | None:
    """Candidate minus baseline in NDCG@10, by task; None without NDCG."""
    quantities = [quantity for quantity in NDCG_AT_10.values() if quantity.present(study)]
    if not quantities:
        return None
    columns = [
        [compare_with_baseline(study, study.candidate, c, quantity) for c in study.conditions]
        for quantity in quantities
    ]
    return Table(
        key="claims-by-task",
        caption=f"{study.candidate} − {study.reference} by task: NDCG@10, %",
        headings=("Condition", *(quantity.label for quantity in quantities)),
        blocks=_by_condition(study, columns),
    )


def against_baseline_table(study: Study) -> Table | None:
    """Every method minus its baseline in rsum: one row per method, that of the highest mean rsum first.

    None if the candidate is the only other method.
    """
    others = [method for method in RSUM.ranking(study, study.conditions) if method != study.baseline_of(method)]
    if others in ([], [study.candidate]) or not RSUM.present(study):
        return None
    rows = tuple(
        (
            Cell(f"{method} − {study.baseline_of(method)}"),
            *(_difference(study, compare_with_baseline(study, method, c, RSUM)) for c in study.conditions),
        )
        for method in others
    )
    return Table(
        key="against-baseline",
        caption="Each method − its baseline, rsum",
        headings=("Methods", *map(formatting.condition_label, study.conditions)),
        blocks=(Block(rows),),
    )


def _by_condition(study: Study, columns: Sequence[Sequence[PairedComparison]]) -> tuple[Block, ...]:
    rows = zip(study.conditions, *columns, strict=True)
    return (
        Block(tuple((Cell(formatting.condition_label(c)), *(_difference(study, x) for x in row)) for c, *row in rows)),
    )


def _difference(study: Study, comparison: PairedComparison) -> Cell:
    difference, decimals = comparison.difference, comparison.quantity.difference_decimals
    few = f"n={difference.n}" if 2 <= difference.n < len(study.seeds) else ""
    return Cell(
        text=formatting.signed(difference.mean, decimals),
        detail=" ".join(filter(None, (formatting.bounds(difference, decimals), few))),
        tag=formatting.verdict_text(difference),
        runs=formatting.runs_key(comparison.quantity.key, comparison.method, comparison.condition),
    )


def means_tables(study: Study) -> tuple[Table, ...]:
    """Means ± half-width of the interval, by condition and method: recall, NDCG, mixed retrieval, diagnostics."""
    recalls, ndcg = list(RECALL.values()), list(NDCG.values())
    tables = (
        _means(
            study,
            "recall",
            "Cross-modal retrieval: recall and rsum",
            [*recalls, RSUM],
            (("", 1), ("i2t: image to text, %", 3), ("t2i: text to image, %", 3), ("", 1)),
        ),
        _means(
            study,
            "ndcg",
            "Single-modal and mixed retrieval: NDCG@K, %",
            ndcg,
            (("", 1), *((f"{task}: {words}", len(CUTOFFS)) for task, words in TASKS.items())),
        ),
        _means(study, "mixed", _MIXED, list(MIXED_TABLE), (), best=False) if _centred(study) else None,
        _means(study, "diagnostics", "Diagnostics", [q for q in DIAGNOSTICS if q.present(study)], (), best=False),
    )
    return tuple(table for table in tables if table is not None)


def detection_table(study: Study) -> Table | None:
    """Detection of corrupted training pairs by the methods that estimate them; None if there are none."""
    methods = [m for m in study.methods if any(q.interval(study, m, c).n for q in DETECTION for c in study.conditions)]
    blocks = []
    for condition in study.conditions:
        rows = [(m, [q.interval(study, m, condition) for q in DETECTION]) for m in methods]
        cells = tuple(
            (Cell(m), *(_mean(study, q, m, condition, i) for q, i in zip(DETECTION, intervals, strict=True)))
            for m, intervals in rows
        )
        blocks.append(Block(cells, formatting.condition_label(condition)))
    headings = ("Method", *(quantity.label for quantity in DETECTION))
    return Table("detection", "Detection of corrupted pairs", headings, tuple(blocks)) if methods else None


_MIXED = (
    "Mixed retrieval, NDCG@10, %: with the embeddings as trained, and with the mean of each modality subtracted (centred); and "
    "the temperature of the tested epoch"
)


def _centred(study: Study) -> bool:
    return any(quantity.present(study) for quantity in MIXED_TABLE if quantity.key.startswith("centred"))


def _means(
    study: Study,
    key: str,
    caption: str,
    quantities: list[Quantity],
    groups: tuple[tuple[str, int], ...],
    best: bool = True,
) -> Table | None:
    if not any(quantity.present(study) for quantity in quantities):
        return None
    blocks = []
    for condition in study.conditions:
        columns = []
        for quantity in quantities:
            intervals = {method: quantity.interval(study, method, condition) for method in study.methods}
            highest = max((i.mean for i in intervals.values() if i.n), default=math.nan)
            columns.append(
                [
                    replace(
                        _mean(study, quantity, method, condition, interval), strong=best and interval.mean == highest
                    )
                    for method, interval in intervals.items()
                ]
            )
        rows = tuple((Cell(method), *row) for method, *row in zip(study.methods, *columns, strict=True))
        blocks.append(Block(rows, formatting.condition_label(condition)))
    return Table(key, caption, ("Method", *(q.label for q in quantities)), tuple(blocks), groups)


def _mean(study: Study, quantity: Quantity, method: str, condition: Condition, interval: Interval) -> Cell:
    spread = "" if interval.half is None else f"±{formatting.NBSP}{formatting.number(interval.half, quantity.decimals)}"
    few = f"n={interval.n}" if 0 < interval.n < len(study.seeds) else ""
    return Cell(
        formatting.number(interval.mean, quantity.decimals),
        " ".join(filter(None, (spread, few))),
        runs=formatting.runs_key(quantity.key, method, condition) if interval.n else "",
    )
