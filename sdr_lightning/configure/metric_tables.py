"""The metrics of an evaluation as tables in a terminal, for ``sdr test`` and ``sdr evaluate``."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from sdr_lightning.metrics.graded import NDCG_AT, TASKS

_RECALLS = ("R@1", "R@5", "R@10")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print metrics to the standard output.

    Args:
        metrics: as :func:`~sdr_lightning.metrics.evaluation.evaluate` returns them, possibly with more: under a prefix such as
            `reranked_` or `5fold_`, which gets a table of its own, or others, one line each.
    """
    console, rest = Console(), dict(metrics)
    for prefix in [name.removesuffix("i2t_R@1") for name in metrics if name.endswith("i2t_R@1")]:
        console.print(_cross_modal(prefix, rest))
    if any("NDCG" in name for name in rest):
        console.print(_graded(rest))
    for name, value in rest.items():
        console.print(f"{name:<24} {_shown(value, 4)}")


def _cross_modal(prefix: str, rest: dict[str, float]) -> Table:
    """Move the metrics of both directions from `rest` to a table."""
    title = f"Cross-modal retrieval {prefix.strip('_')}".strip()
    table = Table("", *_RECALLS, "MdR", "MnR", "MRR", "ties", title=title)
    for way, label in (("i2t", "image to text"), ("t2i", "text to image")):
        start = f"{prefix}{way}_"
        values = [_shown(rest.pop(start + name), 2) for name in _RECALLS]
        values += [f"{rest.pop(start + 'MdR'):g}", _shown(rest.pop(start + "MnR"), 2)]
        values += [_shown(rest.pop(start + "MRR"), 4), f"{100 * rest.pop(start + 'tie_rate'):.2f} %"]
        table.add_row(label, *values)
    table.caption = f"rsum {rest.pop(f'{prefix}rsum'):.2f}"
    return table


def _graded(rest: dict[str, float]) -> Table:
    """Move the NDCG of all tasks from `rest` to a table."""
    names = [f"NDCG@{k}" for k in NDCG_AT] + ["NDCG_exp@25"]
    about = "i: images, t: captions, it: both; i2t: image queries, captions are ranked"
    table = Table("", *names, title="NDCG in percent", caption=about)
    for task in TASKS:
        found = [rest.pop(f"{task}_{name}", None) for name in names]
        if any(value is not None for value in found):
            table.add_row(task.replace("_", " "), *("" if value is None else _shown(value, 2) for value in found))
    return table


def _shown(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"
