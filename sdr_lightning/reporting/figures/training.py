"""Training curves of a study and of one run."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.figures.curves import Curve, mean_curve, read_curves
from sdr_lightning.reporting.figures.style import CANDIDATE_COLOUR, STYLE, WIDTH, Palette, mark_empty
from sdr_lightning.results.schema import Condition, Study

CURVES = {
    "method/lambda": "λ, weight of the text teacher",
    "method/temperature": "τ, contrastive loss",
    "method/representation_temperature": "τ, representation terms",
    "method/relation_temperature": "τ₂, relations",
}
"""Labels of the columns of a training log that are drawn next to rsum."""


def training_figure(study: Study) -> Figure | None:
    """Draw rsum of the selection split, λ and temperatures by epoch, at the highest ratio of each imbalance.

    Thin lines are seeds, thick lines are means over seeds.

    Returns:
        The figure; None if no run at these ratios has a log.
    """
    labels = _selected_on(study.protocol) | CURVES
    logs = {
        condition: {method: _logs(study, method, condition) for method in study.methods} for condition in study.hardest
    }
    logs = {
        at: by_method for at, by_method in logs.items() if any(labels.keys() & log for log in _logs_of_all(by_method))
    }
    rows = [key for key in labels if any(key in log for by_method in logs.values() for log in _logs_of_all(by_method))]
    if not rows:
        return None
    palette = Palette(study)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 1.9 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(logs), sharex=True, sharey="row", squeeze=False)
        for row, key in zip(axes, rows, strict=True):
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
        methods = [method for method in study.methods if method in handles]
        figure.legend([handles[m] for m in methods], methods, loc="outside upper left", ncols=len(methods))
    return figure


def run_figure(curves: Mapping[str, Curve], protocol: str = "clean") -> Figure | None:
    """Draw recall, loss terms before weighting, λ and temperatures of one run by epoch.

    Args:
        curves: the training log.
        protocol: ``clean`` (selected on validation) or ``paper`` (selected on test).

    Returns:
        The figure; None without curves.
    """
    terms = {key: key.removeprefix("train/") for key in curves if key.startswith("train/")}
    shown = {key: label for key, label in (_selected_on(protocol) | CURVES | terms).items() if key in curves}
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


def _logs(study: Study, method: str, condition: Condition) -> list[dict[str, Curve]]:
    runs = study.runs_of(method, condition)
    return [
        {name: dict(curve) for name, curve in run.curves.items()}
        or read_curves(study.root / run.folder / "metrics.csv")
        for run in runs
    ]


def _selected_on(protocol: str) -> dict[str, str]:
    """Return the metric that selects the epoch and its label; under ``clean``, test metrics exist for one epoch only."""
    return {"test/rsum": "rsum, test (used for selection)"} if protocol == "paper" else {"val/rsum": "rsum, validation"}


def _logs_of_all(by_method: Mapping[str, list[dict[str, Curve]]]) -> list[dict[str, Curve]]:
    return [log for logs in by_method.values() for log in logs]


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
