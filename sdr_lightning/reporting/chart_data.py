"""The numbers behind the figures and tables of a study's page, as plain values for its script."""

from collections.abc import Iterator
from typing import Any

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import compare_with_baseline
from sdr_lightning.reporting.figures.curves import logged_labels, mean_curve, training_logs
from sdr_lightning.reporting.quantities import (
    ALIGNMENT,
    DETECTION,
    DIAGNOSTICS,
    MIXED,
    MIXED_TABLE,
    NDCG,
    NDCG_AT_10,
    NEIGHBOURS,
    RECALL,
    RSUM,
    SINGLE_MODAL,
    Quantity,
)
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.results.schema import Condition, Run, Study

CHOICES = {
    RSUM.key: "rsum, cross-modal",
    SINGLE_MODAL.key: "single-modal, mean NDCG@10 of i2i and t2t",
    MIXED.key: "mixed, mean NDCG@10 of i2it and t2it",
    **{key: key.replace("_", " ") for key in RECALL},
    **{quantity.key: quantity.label for quantity in (*NDCG_AT_10.values(), NEIGHBOURS, ALIGNMENT)},
    DETECTION[0].key: "detection of corrupted pairs, AUC",
}
"""Quantities that the main figure offers, in this order, by key and label."""

_DIGITS = 4


def chart_data(study: Study) -> dict[str, Any]:
    """Return methods, conditions, quantities, the numbers of each, and the runs that they come from.

    Returns:
        ``cells`` holds, by quantity, method and condition (both by position), ``mean`` and ``half`` (half-width of the 95 %
        interval, null for fewer than two seeds), ``values`` by seed, and for all but baselines ``difference``: ``mean``, ``half``
        and ``verdict``. Null where no run has the quantity.
    """
    methods, conditions, present = list(study.methods), study.conditions, _present(study)
    return {
        "baseline": methods.index(study.baseline),
        "candidate": methods.index(study.candidate),
        "methods": [
            {
                "name": method.name,
                "description": method.description,
                "baseline": methods.index(study.baseline_of(method.name)),
                "swept": None if method.swept is None else _swept(study, method.name),
            }
            for method in study.methods.values()
        ],
        "conditions": [
            {
                "label": formatting.condition_label(condition),
                "ratio": condition.ratio,
                "degree": study.degree(condition),
            }
            for condition in conditions
        ],
        "curves": [
            {
                "imbalance": formatting.name(imbalance),
                "conditions": [conditions.index(Condition.of(imbalance, r)) for r in study.ratios_of(imbalance)],
            }
            for imbalance in study.imbalances
        ],
        "quantities": {
            quantity.key: {
                "label": CHOICES.get(quantity.key, quantity.label),
                "unit": quantity.unit,
                "decimals": quantity.decimals,
                "differenceDecimals": quantity.difference_decimals,
            }
            for quantity in present.values()
        },
        "choices": [key for key in CHOICES if key in present],
        "cells": {
            quantity.key: [[_cell(study, quantity, m, c) for c in conditions] for m in methods]
            for quantity in present.values()
        },
        "runs": [[[_run(study, run) for run in study.runs_of(m, c)] for c in conditions] for m in methods],
        "training": _training(study),
    }


def _present(study: Study) -> dict[str, Quantity]:
    every = (
        *(RSUM, *RECALL.values(), SINGLE_MODAL, MIXED, *NDCG_AT_10.values(), *NDCG.values(), NEIGHBOURS, ALIGNMENT),
        *(*MIXED_TABLE, *DIAGNOSTICS, *DETECTION),
    )
    by_key = {quantity.key: quantity for quantity in every}
    return {key: quantity for key, quantity in by_key.items() if quantity.present(study)}


def _swept(study: Study, method: str) -> dict[str, Any]:
    """The family of a method, the field in which its members differ, and the value."""
    (family, field), member = next(
        (key, member) for key, members in study.families.items() for member in members if member.name == method
    )
    assert member.swept is not None
    return {"family": family, "field": field, "value": member.swept.value}


def _cell(study: Study, quantity: Quantity, method: str, condition: Condition) -> dict[str, Any] | None:
    values = quantity.by_seed(study, method, condition)
    if not values:
        return None
    found = _interval(quantity.interval(study, method, condition))
    found["values"] = {str(seed): round(value, _DIGITS) for seed, value in values.items()}
    if study.baseline_of(method) != method:
        compared = compare_with_baseline(study, method, condition, quantity)
        if compared.difference.n:
            found["difference"] = _interval(compared.difference) | {"verdict": compared.verdict}
    return found


def _interval(interval: Interval) -> dict[str, Any]:
    return {
        "mean": round(interval.mean, _DIGITS),
        "half": None if interval.half is None else round(interval.half, _DIGITS),
    }


def _run(study: Study, run: Run) -> dict[str, Any]:
    """What identifies a run; ``files`` are those of its folder that are there."""
    folder = study.root / run.folder
    return {
        "seed": run.seed,
        "folder": run.folder.as_posix(),
        "files": [
            name for name in ("config.yaml", "results.json", "metrics.csv", "log.txt") if (folder / name).is_file()
        ],
        "epoch": None if run.selected is None else run.selected.epoch,
        "options": dict(run.options),
        "commit": formatting.short(run.commit) + (" + changes" if run.dirty else ""),
        "seconds": run.wall_time_s,
    }


def _training(study: Study) -> list[dict[str, Any]]:
    """Panels of training curves: one for each curve and condition."""
    logs = training_logs(study, list(study.methods))
    return [
        {
            "condition": formatting.condition_label(condition),
            "label": label,
            "methods": list(_curves(study, found, key)),
        }
        for key, label in logged_labels(study, logs).items()
        for condition, found in logs.items()
    ]


def _curves(study: Study, logs: dict[str, list[dict[str, Any]]], key: str) -> Iterator[dict[str, Any]]:
    for number, method in enumerate(study.methods):
        curves = [log[key] for log in logs[method] if key in log]
        if curves:
            yield {"method": number, "mean": _points(mean_curve(curves)), "seeds": [_points(curve) for curve in curves]}


def _points(curve: dict[int, float]) -> list[list[float]]:
    return [[epoch, round(value, _DIGITS)] for epoch, value in curve.items()]
