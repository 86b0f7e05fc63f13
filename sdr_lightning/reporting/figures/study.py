"""Figures of a study: quantities against imbalance ratio, degree of imbalance and swept field."""

import math
from collections.abc import Mapping, Sequence

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.figures.style import (
    COLOURS,
    MARKERS,
    MUTED,
    STYLE,
    WIDTH,
    Palette,
    legend_above,
    mark_empty,
)
from sdr_lightning.reporting.quantities import Quantity
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.results.schema import Condition, Study, StudyMethod


def ratio_figure(
    study: Study, quantity: Quantity, height: float, references: Mapping[str, float] | None = None
) -> Figure:
    """Draw a quantity against the imbalance ratio: one panel per imbalance, one line per method, shared y-axis.

    Error bars are 95 % intervals of the mean over seeds. A point with fewer seeds than the study is annotated
    with their number; a missing point leaves a gap in the line.

    Args:
        study: the study.
        quantity: the quantity on the y-axis.
        height: height of the figure in inches.
        references: value of horizontal reference lines by label, such as the quality of a teacher.
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
                panel.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for panel in axes[len(study.imbalances) :]:
            panel.set_visible(False)
        for panel in axes[::columns]:
            panel.set_ylabel(f"{quantity.label} ({quantity.unit})")
        mark_empty(axes[: len(study.imbalances)])
        handles = {line.get_label(): line for line in axes[0].get_lines() if line.get_label() in study.methods}
        if references:
            handles |= {label: axes[0].get_lines()[-len(references) + i] for i, label in enumerate(references)}
        legend_above(figure, list(handles.values()), [str(label) for label in handles])
    return figure


def _draw_panel(panel: Axes, study: Study, quantity: Quantity, imbalance: str, palette: Palette) -> None:
    # Shift the methods horizontally so that their error bars do not overlap.
    ratios = study.ratios_of(imbalance)
    step = 0.011 * max(ratios[-1] - ratios[0], 0.1)
    for i, method in enumerate(study.methods):
        shift = (i - (len(study.methods) - 1) / 2) * step
        points = [quantity.interval(study, method, Condition.of(imbalance, ratio)) for ratio in ratios]
        x = [100 * (ratio + shift) for ratio in ratios]
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
            _annotate_seeds(panel, study, point, (at, point.mean), style["color"])
    panel.set_title(formatting.name(imbalance), loc="left")
    panel.set_xlabel("imbalance ratio (% of the training data)")
    panel.set_xticks([100 * ratio for ratio in ratios])


def _annotate_seeds(panel: Axes, study: Study, point: Interval, at: tuple[float, float], colour: str) -> None:
    """Write the number of seeds at a point that has fewer than the study."""
    if 0 < point.n < len(study.seeds):
        panel.annotate(f"n={point.n}", at, xytext=(6, -9), textcoords="offset points", fontsize=7, color=colour)


def method_figure(study: Study, quantity: Quantity, references: Mapping[str, float] | None = None) -> Figure:
    """Draw a quantity of many methods: one panel per condition, one row per method, shared axes.

    The rows are in the order of the mean over conditions, the highest first. Error bars are 95 % intervals of the mean over
    seeds. A vertical line is the mean of the baseline.

    Args:
        study: the study.
        quantity: the quantity on the x-axis.
        references: value of vertical reference lines by label, such as the quality of a teacher.
    """
    palette = Palette(study)
    columns = min(len(study.conditions), 4)
    rows = -(-len(study.conditions) // columns)
    methods = quantity.ranking(study, study.conditions)
    with rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, rows * (0.7 + 0.19 * len(methods))), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, condition in zip(axes, study.conditions, strict=False):
            _draw_rows(panel, study, quantity, condition, methods, palette)
            drawn = [
                panel.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
                for value in (references or {}).values()
            ]
        for panel in axes[len(study.conditions) :]:
            panel.set_visible(False)
        for panel in axes[len(study.conditions) - columns : len(study.conditions)]:
            panel.set_xlabel(f"{quantity.label} ({quantity.unit})")
            panel.tick_params(labelbottom=True)
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].set_ylim(len(methods) - 0.5, -0.5)
        for panel in axes[::columns]:
            for label in panel.get_yticklabels():
                if label.get_text() in (study.baseline, study.candidate):
                    label.set(color=palette[label.get_text()]["color"], fontweight="bold")
        mark_empty(axes[: len(study.conditions)])
        if references:
            legend_above(figure, drawn, list(references))
    return figure


def _draw_rows(
    panel: Axes, study: Study, quantity: Quantity, condition: Condition, methods: Sequence[str], palette: Palette
) -> None:
    for row, method in enumerate(methods):
        point = quantity.interval(study, method, condition)
        panel.errorbar(
            point.mean,
            row,
            xerr=math.nan if point.half is None else point.half,
            color=palette[method]["color"] if method in (study.baseline, study.candidate) else MUTED,
            marker="o",
            markersize=5,
            elinewidth=1.4,
            linestyle="none",
        )
        _annotate_seeds(panel, study, point, (point.mean, row), MUTED)
    panel.axvline(
        quantity.interval(study, study.baseline, condition).mean,
        color=palette[study.baseline]["color"],
        linewidth=1,
        zorder=1,
    )
    panel.set_title(formatting.condition_label(condition), loc="left")


def degree_figure(study: Study, quantity: Quantity) -> Figure | None:
    """Draw a quantity against the measured degree of imbalance: one panel per method, one line per imbalance.

    Returns:
        The figure; None if the degree was measured under fewer than two conditions.
    """
    degrees = {condition: study.degree(condition) for condition in study.conditions}
    if sum(degree is not None for degree in degrees.values()) < 2:
        return None
    shown = [method for method in (study.reference, study.candidate) if method in study.methods]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        panels = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
        for panel, method in zip(panels, shown, strict=True):
            for i, imbalance in enumerate(study.imbalances):
                conditions = [Condition.of(imbalance, ratio) for ratio in study.ratios_of(imbalance)]
                points = [(degrees[c], quantity.interval(study, method, c).mean) for c in conditions]
                known = sorted((x, y) for x, y in points if x is not None)
                panel.plot(
                    [x for x, _ in known],
                    [y for _, y in known],
                    label=formatting.name(imbalance),
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    linewidth=1.6,
                )
            panel.set_title(method, loc="left")
            panel.set_xlabel("measured degree of imbalance")
        panels[0].set_ylabel(f"{quantity.label} ({quantity.unit})")
        mark_empty(panels)
        legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def family_figure(study: Study, family: Sequence[StudyMethod], quantities: Sequence[Quantity]) -> Figure:
    """Draw quantities against the swept field: one row per imbalance, one column per quantity, one line per ratio.

    Error bars are 95 % intervals of the mean over seeds; a ring marks the best point of each line.

    Args:
        study: the study.
        family: methods that differ in one field, in the order of its value.
        quantities: candidates for the columns; those without metrics are left out.
    """
    values = [method.swept.value for method in family if method.swept is not None]
    shown = [quantity for quantity in quantities if quantity.present(study)]
    rows = list(study.imbalances)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.7 + 2.5 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(shown), sharex=True, sharey="col", squeeze=False)
        for row, imbalance in zip(axes, rows, strict=True):
            conditions = [Condition.of(imbalance, ratio) for ratio in study.ratios_of(imbalance)]
            for panel, quantity in zip(row, shown, strict=True):
                _draw_family(panel, study, quantity, conditions, family, values)
            row[0].set_ylabel(formatting.name(imbalance))
        for panel, quantity in zip(axes[0], shown, strict=True):
            panel.set_title(quantity.label, loc="left", fontsize=9)
        for panel in axes[-1]:
            panel.set_xlabel(family[0].swept.field if family[0].swept else "")
            if min(values) > 0:
                panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
        mark_empty(axes.ravel())
        legend_above(figure, *axes[0][0].get_legend_handles_labels())
    return figure


def _draw_family(
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
