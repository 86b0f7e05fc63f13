"""Training curves of a study and of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.figures.curves import Curve, curve_labels, logged_labels, mean_curve, training_logs
from sdr_lightning.reporting.figures.style import (
    CANDIDATE_COLOUR,
    COLOURS,
    STYLE,
    WIDTH,
    Palette,
    legend_above,
    mark_empty,
)
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.results.schema import Study


def training_figure(study: Study) -> Figure | None:
    """Draw rsum of the selection split, λ and temperatures by epoch, at the highest ratio of each imbalance.

    Thin lines are seeds, thick lines are means over seeds. The methods are those of :func:`methods_in_curves`.

    Returns:
        The figure; None if no run at these ratios has a log.
    """
    methods = methods_in_curves(study)
    logs = training_logs(study, methods)
    labels = logged_labels(study, logs)
    if not labels:
        return None
    palette = Palette(study, methods)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 1.9 * len(labels)), layout="constrained")
        axes = figure.subplots(len(labels), len(logs), sharex=True, sharey="row", squeeze=False)
        for row, key in zip(axes, labels, strict=True):
            row[0].set_ylabel(labels[key])
            for panel, by_method in zip(row, logs.values(), strict=True):
                for method, seeds in by_method.items():
                    _draw_curves(panel, [log[key] for log in seeds if key in log], palette[method], method)
        for panel, condition in zip(axes[0], logs, strict=True):
            panel.set_title(formatting.condition_label(condition), loc="left")
        for panel in axes[-1]:
            panel.set_xlabel("epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
        mark_empty(axes.ravel())
        figure.align_ylabels()
        handles = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
        drawn = [method for method in methods if method in handles]
        legend_above(figure, [handles[method] for method in drawn], drawn)
    return figure


def methods_in_curves(study: Study) -> list[str]:
    """Return the methods whose curves are drawn: baseline, candidate, and those of the highest mean rsum, one for each colour."""
    compared = {study.baseline, study.candidate}
    best = [method for method in RSUM.ranking(study, study.conditions) if method not in compared]
    shown = compared.union(best[: len(COLOURS)])
    return [method for method in study.methods if method in shown]


def run_figure(curves: Mapping[str, Curve], protocol: str = "clean") -> Figure | None:
    """Draw recall, loss terms before weighting, λ and temperatures of one run by epoch.

    Args:
        curves: the training log.
        protocol: ``clean`` (selected on validation) or ``paper`` (selected on test).

    Returns:
        The figure; None without curves.
    """
    terms = {key: key.removeprefix("train/") for key in curves if key.startswith("train/")}
    shown = {key: label for key, label in (curve_labels(protocol) | terms).items() if key in curves}
    if not shown:
        return None
    with rc_context(STYLE):
        columns = min(4, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(WIDTH, 0.4 + 2.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for panel, (key, label) in zip(panels, shown.items(), strict=False):
            curve = curves[key]
            panel.plot(list(curve), list(curve.values()), color=CANDIDATE_COLOUR, linewidth=1.8, marker=_marker(curve))
            panel.set_title(label, loc="left")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.tick_params(labelbottom=True)
        for panel in panels[-columns:]:
            panel.set_xlabel("epoch")
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
    return figure


def _draw_curves(panel: Axes, curves: Sequence[Curve], style: Mapping[str, Any], label: str) -> None:
    if not curves:
        return
    for curve in curves:
        x, y = list(curve), list(curve.values())
        panel.plot(x, y, color=style["color"], linewidth=0.6, alpha=0.4, marker=_marker(curve))
    mean = mean_curve(curves)
    x, y = list(mean), list(mean.values())
    panel.plot(x, y, color=style["color"], linewidth=style["linewidth"], marker=_marker(mean), label=label)


def _marker(curve: Curve) -> str:
    """Return a marker for a single point, of which no line is visible."""
    return "o" if len(curve) == 1 else ""
