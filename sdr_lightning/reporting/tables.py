"""The report's tables of results: claims, comparisons and means."""

import math
from collections.abc import Sequence
from dataclasses import replace

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.claims import CLAIMS, Comparison, claims, compare
from sdr_lightning.reporting.quantities import (
    CUTOFFS,
    DIAGNOSTICS,
    NDCG,
    NDCG_AT_10,
    RECALL,
    RSUM,
    TASKS,
    Quantity,
)
from sdr_lightning.reporting.results import Suite
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.reporting.table import Block, Cell, Table


def claims_table(suite: Suite) -> Table:
    """Candidate minus baseline for each claim (columns) under each condition (rows), with verdicts."""
    comparisons = claims(suite)
    return Table(
        key="claims",
        caption=f"{suite.candidate} − {suite.baseline}, mean over seeds [95{write.NBSP}% interval]",
        headings=("Condition", *(f"{title}: {CLAIMS[title].label}" for title in comparisons)),
        blocks=_by_condition(suite, list(comparisons.values())),
    )


def claims_by_task(suite: Suite) -> Table | None:
    """The same differences for each retrieval task alone."""
    quantities = [quantity for quantity in NDCG_AT_10.values() if quantity.present(suite)]
    if not quantities:
        return None
    columns = [[compare(suite, suite.candidate, c, quantity) for c in suite.conditions] for quantity in quantities]
    return Table(
        key="claims-by-task",
        caption=f"{suite.candidate} − {suite.baseline} by task, NDCG@10 in percent",
        headings=("Condition", *(quantity.label for quantity in quantities)),
        blocks=_by_condition(suite, columns),
    )


def against_baseline(suite: Suite) -> Table | None:
    """Every method minus the baseline in rsum; None where the table of claims says it all."""
    others = [method for method in suite.methods if method != suite.baseline]
    if others in ([], [suite.candidate]) or not RSUM.present(suite):
        return None
    columns = [[compare(suite, method, c, RSUM) for c in suite.conditions] for method in others]
    return Table(
        key="against-baseline",
        caption=f"Each method − {suite.baseline}, rsum",
        headings=("Condition", *(f"{method} − {suite.baseline}" for method in others)),
        blocks=_by_condition(suite, columns),
    )


def _by_condition(suite: Suite, columns: Sequence[Sequence[Comparison]]) -> tuple[Block, ...]:
    rows = zip(suite.conditions, *columns, strict=True)
    return (Block(tuple((Cell(write.condition_label(c)), *(_difference(suite, x) for x in row)) for c, *row in rows)),)


def _difference(suite: Suite, comparison: Comparison) -> Cell:
    difference, decimals = comparison.difference, comparison.quantity.difference_decimals
    few = f"n={difference.n}" if 2 <= difference.n < len(suite.seeds) else ""
    return Cell(
        text=write.signed(difference.mean, decimals),
        detail=" ".join(filter(None, (write.bounds(difference, decimals), few))),
        tag=write.verdict_text(difference),
    )


def means_tables(suite: Suite) -> tuple[Table, ...]:
    """Mean ± half interval of every main metric, by condition and method; diagnostics last."""
    recalls, ndcg = list(RECALL.values()), list(NDCG.values())
    tables = (
        _means(
            suite,
            "recall",
            "Cross-modal retrieval: recall and rsum",
            [*recalls, RSUM],
            (("", 1), ("i2t: image to text, %", 3), ("t2i: text to image, %", 3), ("", 1)),
        ),
        _means(
            suite,
            "ndcg",
            "Single-modal and mixed retrieval: NDCG@K in percent",
            ndcg,
            (("", 1), *((f"{task}: {words}", len(CUTOFFS)) for task, words in TASKS.items())),
        ),
        _means(suite, "diagnostics", "Diagnostics", list(DIAGNOSTICS), (), best=False),
    )
    return tuple(table for table in tables if table is not None)


def _means(
    suite: Suite,
    key: str,
    caption: str,
    quantities: list[Quantity],
    groups: tuple[tuple[str, int], ...],
    best: bool = True,
) -> Table | None:
    if not any(quantity.present(suite) for quantity in quantities):
        return None
    blocks = []
    for condition in suite.conditions:
        columns = []
        for quantity in quantities:
            intervals = [quantity.interval(suite, method, condition) for method in suite.methods]
            highest = max((i.mean for i in intervals if i.n), default=math.nan)
            columns.append(
                [
                    replace(_mean(suite, quantity, interval), strong=best and interval.mean == highest)
                    for interval in intervals
                ]
            )
        rows = tuple((Cell(method), *row) for method, *row in zip(suite.methods, *columns, strict=True))
        blocks.append(Block(rows, write.condition_label(condition)))
    return Table(key, caption, ("Method", *(q.label for q in quantities)), tuple(blocks), groups)


def _mean(suite: Suite, quantity: Quantity, interval: Interval) -> Cell:
    spread = "" if interval.half is None else f"±{write.NBSP}{write.number(interval.half, quantity.decimals)}"
    few = f"n={interval.n}" if 0 < interval.n < len(suite.seeds) else ""
    return Cell(write.number(interval.mean, quantity.decimals), " ".join(filter(None, (spread, few))))
