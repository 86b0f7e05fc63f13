"""Figures of a study, made without pyplot: style and figures end with the call that made them."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.curves import Curve, mean_curve, read_curves
from sdr_lightning.reporting.generator import GENERATOR
from sdr_lightning.reporting.quantities import Quantity
from sdr_lightning.results.schema import Condition, Study, StudyMethod

WIDTH = 11.0
"""Inches; the page shows a figure at its full width."""

CANDIDATE_COLOUR, BASELINE_COLOUR = "#0072B2", "#222222"
COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31")
"""Okabe and Ito's palette, told apart by colour-blind readers; methods differ in their markers besides."""
MARKERS = ("s", "^", "D", "v", "P", "X")

CURVES = {
    "method/lambda": "λ, share of the text teacher",
    "method/temperature": "τ, matching",
    "method/relation_temperature": "τ₂, relations",
}
"""Columns of a run's log that are drawn beside its rsum."""

# Any: matplotlib types the keys of its settings differently from one version to the next.
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#333840",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e8ec",
    "xtick.color": "#555b66",
    "ytick.color": "#555b66",
    "legend.frameon": False,
    "svg.fonttype": "path",
    # Without a salt the ids inside an SVG are random, and two reports of one study would differ.
    "svg.hashsalt": "sdr_lightning",
}


class Palette:
    """The look of each method's line, the same in every figure."""

    def __init__(self, study: Study) -> None:
        others = [method for method in study.methods if method not in (study.baseline, study.candidate)]
        self._styles: dict[str, dict[str, Any]] = {
            method: {
                "color": COLOURS[i % len(COLOURS)],
                "marker": MARKERS[i % len(MARKERS)],
                "linewidth": 1.3,
            }
            for i, method in enumerate(others)
        }
        self._styles[study.baseline] = {"color": BASELINE_COLOUR, "marker": "o", "linewidth": 2.2}
        self._styles[study.candidate] = {"color": CANDIDATE_COLOUR, "marker": "o", "linewidth": 2.6}

    def __getitem__(self, method: str) -> dict[str, Any]:
        return self._styles[method]


def ratio_figure(
    study: Study, quantity: Quantity, height: float, references: Mapping[str, float] | None = None
) -> Figure:
    """A quantity against the imbalance ratio: a panel per imbalance, a line per method, shared vertical axis.

    Bars are 95 % intervals of the mean over seeds. Where fewer seeds are in than the study asks for, their
    number stands beside the point; a missing point leaves a gap in the line.

    Args:
        study: the study.
        quantity: what to draw.
        height: of the figure, in inches.
        references: label and value of horizontal lines, for instance a teacher's quality.
    """
    palette = Palette(study)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        columns = min(len(study.imbalances), 4)
        rows = -(-len(study.imbalances) // columns)
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for panel, imbalance in zip(axes, study.imbalances, strict=False):
            _draw_panel(panel, study, quantity, imbalance, palette)
            for value in (references or {}).values():
                panel.axhline(value, color="#8a8f98", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for panel in axes[len(study.imbalances) :]:
            panel.set_visible(False)
        for panel in axes[::columns]:
            panel.set_ylabel(f"{quantity.label} ({quantity.unit})")
        _mark_empty(axes[: len(study.imbalances)])
        handles = {line.get_label(): line for line in axes[0].get_lines() if line.get_label() in study.methods}
        if references:
            handles |= {label: axes[0].get_lines()[-len(references) + i] for i, label in enumerate(references)}
        figure.legend(
            list(handles.values()),
            [str(label) for label in handles],
            loc="outside upper left",
            ncols=len(handles),
            handlelength=2.4,
        )
    return figure


def _draw_panel(panel: Axes, study: Study, quantity: Quantity, imbalance: str, palette: Palette) -> None:
    # Methods stand a little apart so that their bars can be told from each other.
    step = 0.011 * max(study.ratios[-1] - study.ratios[0], 0.1)
    for i, method in enumerate(study.methods):
        shift = (i - (len(study.methods) - 1) / 2) * step
        points = [quantity.interval(study, method, Condition.of(imbalance, ratio)) for ratio in study.ratios]
        x = [100 * (ratio + shift) for ratio in study.ratios]
        front = 4 if method == study.candidate else 3
        style = palette[method]
        panel.plot(x, [p.mean for p in points], label=method, markersize=5, zorder=front, **style)
        panel.errorbar(
            x,
            [p.mean for p in points],
            [math.nan if p.half is None else p.half for p in points],
            fmt="none",
            ecolor=style["color"],
            elinewidth=1,
            capsize=2,
            alpha=0.75,
            zorder=2,
        )
        for at, point in zip(x, points, strict=True):
            if 0 < point.n < len(study.seeds):
                panel.annotate(
                    f"n={point.n}",
                    (at, point.mean),
                    xytext=(6, -9),
                    textcoords="offset points",
                    fontsize=7,
                    color=style["color"],
                )
    panel.set_title(write.name(imbalance), loc="left")
    panel.set_xlabel("affected share of the training data (%)")
    panel.set_xticks([100 * ratio for ratio in study.ratios])


def degree_figure(study: Study, quantity: Quantity) -> Figure | None:
    """A quantity against the measured degree of imbalance: one axis for every kind, a panel per method, a line per imbalance.

    None where no run measured the degree.
    """
    degrees = {condition: study.degree(condition) for condition in study.conditions}
    if sum(degree is not None for degree in degrees.values()) < 2:
        return None
    shown = [method for method in (study.baseline, study.candidate) if method in study.methods]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        panels = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
        for panel, method in zip(panels, shown, strict=True):
            for i, imbalance in enumerate(study.imbalances):
                conditions = [Condition.of(imbalance, ratio) for ratio in study.ratios]
                points = [(degrees[c], quantity.interval(study, method, c).mean) for c in conditions]
                known = sorted((x, y) for x, y in points if x is not None)
                panel.plot(
                    [x for x, _ in known],
                    [y for _, y in known],
                    label=write.name(imbalance),
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    linewidth=1.6,
                )
            panel.set_title(method, loc="left")
            panel.set_xlabel("measured degree of imbalance")
        panels[0].set_ylabel(f"{quantity.label} ({quantity.unit})")
        _mark_empty(panels)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(study.imbalances))
    return figure


def sweep_figure(study: Study, family: Sequence[StudyMethod], quantities: Sequence[Quantity]) -> Figure:
    """Quantities against the field that a family of methods sweeps: a row per imbalance, a panel per quantity, a line per ratio.

    Bars are 95 % intervals of the mean over seeds; the best point of each line is ringed.
    """
    values = [method.swept.value for method in family if method.swept is not None]
    shown = [quantity for quantity in quantities if quantity.present(study)]
    rows = list(study.imbalances)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 2.5 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(shown), sharex=True, sharey="col", squeeze=False)
        for row, imbalance in zip(axes, rows, strict=True):
            for panel, quantity in zip(row, shown, strict=True):
                _draw_sweep(panel, study, quantity, [Condition.of(imbalance, r) for r in study.ratios], family, values)
            row[0].set_ylabel(write.name(imbalance))
        for panel, quantity in zip(axes[0], shown, strict=True):
            panel.set_title(quantity.label, loc="left", fontsize=9)
        for panel in axes[-1]:
            panel.set_xlabel(family[0].swept.field if family[0].swept else "")
            if min(values) > 0:
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
        _mark_empty(axes.ravel())
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def _draw_sweep(
    panel: Axes,
    study: Study,
    quantity: Quantity,
    conditions: Sequence[Condition],
    family: Sequence[StudyMethod],
    values: Sequence[float],
) -> None:
    for number, condition in enumerate(conditions):
        points = [quantity.interval(study, method.name, condition) for method in family]
        means = [point.mean for point in points]
        colour = colormaps["cividis"](0.85 * number / max(1, len(conditions) - 1))
        label = f"ratio {condition.ratio:g}"
        panel.plot(values, means, marker="o", color=colour, markersize=4, linewidth=1.6, label=label)
        halves = [math.nan if point.half is None else point.half for point in points]
        panel.errorbar(values, means, halves, fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.6)
        known = [i for i, mean in enumerate(means) if not math.isnan(mean)]
        if known:
            best = max(known, key=lambda i: means[i])
            panel.plot(values[best], means[best], "o", markersize=10, fillstyle="none", color=colour)


def training_figure(study: Study) -> Figure | None:
    """rsum of the split that selects, λ and the temperatures by epoch at the highest ratio of each imbalance.

    Thin lines are seeds, thick lines their mean. None when no run there has a log.
    """
    labels = _selected_on(study.protocol) | CURVES
    logs = {
        condition: {method: _logs(study, method, condition) for method in study.methods} for condition in study.hardest
    }
    logs = {at: by_method for at, by_method in logs.items() if any(labels.keys() & log for log in _all(by_method))}
    rows = [key for key in labels if any(key in log for by_method in logs.values() for log in _all(by_method))]
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
            panel.set_title(write.condition_label(condition), loc="left")
        for panel in axes[-1]:
            panel.set_xlabel("epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
        _mark_empty(axes.ravel())
        handles = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
        methods = [method for method in study.methods if method in handles]
        figure.legend([handles[m] for m in methods], methods, loc="outside upper left", ncols=len(methods))
    return figure


def run_figure(curves: Mapping[str, Curve], protocol: str = "clean") -> Figure | None:
    """One run by epoch: recall, the loss and each of its terms unweighted, lambda and the temperatures. None without a log.

    Args:
        curves: the run's log.
        protocol: the run's, which says whether it was selected on validation or on test.
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
        {k: dict(c) for k, c in run.curves.items()} or read_curves(study.root / run.folder / "metrics.csv")
        for run in runs
    ]


def _selected_on(protocol: str) -> dict[str, str]:
    """The column by which an epoch is selected, and its label: a clean run's log has the final test as well, at one epoch."""
    return {"test/rsum": "rsum, test (selected on)"} if protocol == "paper" else {"val/rsum": "rsum, validation"}


def _all(by_method: Mapping[str, list[dict[str, Curve]]]) -> list[dict[str, Curve]]:
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
    """A line through one point cannot be seen, a marker can."""
    return "o" if len(curve) == 1 else ""


def _mark_empty(panels: Iterable[Axes]) -> None:
    for panel in panels:
        points = [np.asarray(line.get_ydata(), dtype=float) for line in panel.get_lines()]
        if not any(np.isfinite(values).any() for values in points):
            panel.text(0.5, 0.5, "no run yet", transform=panel.transAxes, ha="center", va="center", color="#8a8f98")


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=150, metadata={"Comment": GENERATOR})
    return buffer.getvalue()
