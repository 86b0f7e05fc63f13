"""Report of a sweep: validation metrics against the swept parameters, with intervals over seeds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from sdr_lightning.paths import check_output, write_atomically, write_text
from sdr_lightning.reporting.figures.style import COLOURS, MARKERS, STYLE, to_png
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.pages.html import render_page
from sdr_lightning.reporting.statistics import Interval, mean_interval
from sdr_lightning.reporting.wandb_file import read_tracked
from sdr_lightning.results.fields import Fields, flat

_RATIO, _SEEDS, _PANELS = "ratio", ("seed_everything", "seed"), ("kind", "modality")
_SHOWN = ("val/rsum", "val/i2t_R@1", "val/t2i_R@1", "val/i2t_R@10", "val/t2i_R@10", "val/modality_gap")


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        name: name of its folder, or its W&B id.
        parameters: values of the parameters that differ between runs, by dotted name.
        state: finished, running, failed or stopped.
        metrics: metrics of the selected epoch.
    """

    name: str
    parameters: dict[str, Any]
    state: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class SweepAxes:
    """Role of each swept parameter in the figure.

    Attributes:
        x: parameters on the x-axis, one panel each: the imbalance ratio, else all numeric parameters, else one
            categorical parameter.
        panel: parameter that differs between panels, or None.
        seed: parameter that is averaged over, or None.
        lines: parameters that differ between lines.
        categories: sorted values of a categorical x; empty if numeric.
        files: label of each YAML file among the values: its name without folder and suffix, if no other file has it.
    """

    x: tuple[str, ...]
    panel: str | None
    seed: str | None
    lines: tuple[str, ...]
    categories: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def label(self, value: Any) -> str:
        """Format a value. Different values have different labels."""
        return _label(value, self.files)

    def place(self, run: SweepRun, name: str) -> float:
        """Return the position of a run on an x-axis."""
        value = run.parameters[name]
        return float(self.categories.index(self.label(value)) if self.categories else value)

    @property
    def are_curves(self) -> bool:
        """Whether points are connected: only against the imbalance ratio."""
        return len(self.x) == 1 and _last(self.x[0]) == _RATIO


def build_sweep_report(folder: Path) -> Path:
    """Write ``sweep.html``, ``sweep.csv`` and ``sweep.png``.

    Args:
        folder: folder of ``sdr sweep``, or with ``.wandb`` files of offline W&B runs.

    Returns:
        The path of the HTML page.

    Raises:
        ValueError: no run is finished, no parameter or no metric can be drawn, or a file of other origin would be
            overwritten.
    """
    check_sweep_report(folder)
    title, runs = load_sweep(folder)
    finished = [run for run in runs if run.state == "finished" and run.metrics]
    if not finished:
        raise ValueError(f"no run of the sweep in {folder} is finished: run the report again after the first one")
    axes = axes_of(finished)
    metrics = [name for name in _SHOWN if all(name in run.metrics for run in finished)]
    if not metrics:
        raise ValueError(f"the runs in {folder} have no validation metric in common")
    picture = to_png(draw_sweep(finished, axes, metrics[0]))
    write_atomically(folder / "sweep.png", lambda part: _write(part, picture))
    write_text(folder / "sweep.csv", _csv(runs, axes, metrics))
    data = {
        "metrics": metrics,
        "x": list(axes.x),
        "panel": axes.panel,
        "curves": axes.are_curves,
        "categories": axes.categories,
        "points": [
            {
                "panel": _panel(run, axes),
                "line": _line(run, axes),
                "x": {name: axes.place(run, name) for name in axes.x},
                "seed": run.parameters.get(axes.seed) if axes.seed else None,
                "name": run.name,
                "metrics": {name: run.metrics[name] for name in metrics},
            }
            for run in finished
        ],
        "intervals": {name: _intervals(finished, axes, name) for name in metrics},
    }
    page = render_page(
        "sweep.html",
        title=title,
        runs=runs,
        finished=len(finished),
        names=[name for name in (*axes.lines, axes.panel, *axes.x, axes.seed) if name],
        metrics=metrics,
        data=json.dumps(data).replace("<", "\\u003c"),
        label=axes.label,
        last=_last,
        colours=json.dumps(COLOURS),
    )
    write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def check_sweep_report(folder: Path) -> None:
    """Check that a sweep report would overwrite no file of other origin.

    Raises:
        ValueError: names the first such file.
    """
    for name in ("sweep.html", "sweep.csv", "sweep.png"):
        check_output(folder / name, is_own=is_generated)


def load_sweep(folder: Path) -> tuple[str, list[SweepRun]]:
    """Read the title and the runs of a sweep.

    Raises:
        ValueError: the folder has neither ``sweep.json`` nor ``.wandb`` files, or a file is malformed.
    """
    record = folder / "sweep.json"
    if record.is_file():
        sweep = Fields.read(record)
        runs = []
        for number, values in enumerate(sweep.items("runs")):
            part = Fields(values, f"{record}: runs[{number}]")
            name, parameters = part.text("folder"), dict(part.child("parameters").values)
            results = folder / name / "results.json"
            training = Fields.read(results).optional_child("training") if results.is_file() else Fields({}, "")
            runs.append(SweepRun(name, parameters, part.text("state"), training.optional_child("kept").table()))
        return sweep.text("name"), runs
    tracked = sorted(folder.rglob("*.wandb"))
    if not tracked:
        raise ValueError(f"no sweep in {folder}: expected sweep.json of sdr sweep, or .wandb files of offline W&B runs")
    found: dict[str, tuple[dict[str, Any], dict[str, float]]] = {}
    for path in tracked:  # a resumed run has several files
        run = read_tracked(path)
        configuration = flat(run.config["run"]) if isinstance(run.config.get("run"), dict) else {}
        best = {name.removeprefix("best/"): value for name, value in run.summary.items() if name.startswith("best/")}
        best = Fields(best, str(path)).table()
        before = found.get(run.id, ({}, {}))
        found[run.id] = (configuration or before[0], best or before[1])
    names = {name for parameters, _ in found.values() for name in parameters}
    varied = {name for name in names if len({_key(part.get(name)) for part, _ in found.values()}) > 1} - {"run_dir"}
    varied = {name for name in varied if _last(name) != "save_dir" and name != "trainer.default_root_dir"}
    return folder.name, [
        SweepRun(key, {name: parameters.get(name) for name in sorted(varied)}, "finished" if best else "failed", best)
        for key, (parameters, best) in sorted(found.items())
    ]


def axes_of(runs: Sequence[SweepRun]) -> SweepAxes:
    """Assign each parameter its role in the figure, from its name and values. Those of a single run are taken as varied.

    Raises:
        ValueError: no parameter differs between the runs.
    """
    names = sorted({name for run in runs for name in run.parameters})
    varied = [n for n in names if len(runs) == 1 or len({_key(run.parameters.get(n)) for run in runs}) > 1]
    paths = {str(run.parameters.get(name)) for run in runs for name in varied if _is_yaml(run.parameters.get(name))}
    stems = Counter(Path(path).stem for path in paths)
    files = {path: Path(path).stem if stems[Path(path).stem] == 1 else path for path in sorted(paths)}
    seed = next((name for name in varied if _last(name) in _SEEDS), None)
    varied = [name for name in varied if _last(name) not in _SEEDS]  # the seed of the data follows seed_everything
    numbers = tuple(name for name in varied if all(_is_number(run.parameters.get(name)) for run in runs))
    ratio = next((name for name in numbers if _last(name) == _RATIO), None)
    panel = next((name for name in varied if _last(name) in _PANELS), None)
    if x := numbers if ratio is None else (ratio,):
        return SweepAxes(x, panel, seed, tuple(name for name in varied if name not in (*x, panel)), files=files)
    categorical = [name for name in varied if name != panel] or [name for name in (panel, seed) if name]
    if not categorical:
        raise ValueError("no parameter differs between the runs: a report needs at least one that does")
    first, *lines = categorical
    panel, seed = (None if first == name else name for name in (panel, seed))
    values = tuple(sorted({_label(run.parameters.get(first), files) for run in runs}))
    return SweepAxes((first,), panel, seed, tuple(lines), values, files)


def draw_sweep(runs: Sequence[SweepRun], axes: SweepAxes, metric: str) -> Figure:
    """Draw a metric against each x, one panel per value of ``axes.panel``, with intervals for two or more seeds."""
    panels = sorted({_panel(run, axes) for run in runs})
    lines = sorted({_line(run, axes) for run in runs})
    columns = [(panel, x) for panel in panels for x in axes.x]
    intervals = _intervals(runs, axes, metric)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(4.6, 3.7 * len(columns)), 3.6), layout="constrained")
        drawn = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axis, (panel, x) in zip(drawn, columns, strict=True):
            for number, line in enumerate(lines):
                style: dict[str, Any] = {
                    "color": COLOURS[number % len(COLOURS)],
                    "marker": MARKERS[number % len(MARKERS)],
                }
                some = [part for part in intervals if (part["panel"], part["line"], part["name"]) == (panel, line, x)]
                places = [part["x"] for part in some]
                if not axes.are_curves:
                    style["linestyle"] = "none"
                axis.plot(places, [part["mean"] for part in some], label=line or None, markersize=5, **style)
                if axes.categories:
                    axis.set_xticks(range(len(axes.categories)), axes.categories)
                    axis.set_xlim(-0.5, len(axes.categories) - 0.5)
                    for part in some:
                        if part["low"] is not None:
                            axis.vlines(part["x"], part["low"], part["high"], color=style["color"], linewidth=1.5)
                if axes.are_curves and all(part["low"] is not None for part in some):
                    low, high = [part["low"] for part in some], [part["high"] for part in some]
                    axis.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axis.set_title(panel)
            axis.set_xlabel(_last(x))
        drawn[0].set_ylabel(f"{metric}, selected epoch")
        if len(lines) > 1:
            figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(lines)))
    return figure


def _intervals(runs: Sequence[SweepRun], axes: SweepAxes, metric: str) -> list[dict[str, Any]]:
    """Average over the runs that differ in nothing but the seed. A run that a search repeated counts once."""
    found: dict[tuple[str, str, str, float, tuple[float, ...]], dict[str, float]] = {}
    for run in runs:
        for name in axes.x:
            others = tuple(run.parameters[other] for other in axes.x if other != name)
            key = (_panel(run, axes), _line(run, axes), name, axes.place(run, name), others)
            seed = _key(run.parameters.get(axes.seed)) if axes.seed else ""
            found.setdefault(key, {})[seed] = run.metrics[metric]
    rows = []
    for (panel, line, name, x, _), values in sorted(found.items()):
        interval: Interval = mean_interval(list(values.values()))
        part = {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}
        rows.append({"panel": panel, "line": line, "name": name, "x": x, **part})
    return rows


def _panel(run: SweepRun, axes: SweepAxes) -> str:
    return axes.label(run.parameters.get(axes.panel)) if axes.panel else ""


def _line(run: SweepRun, axes: SweepAxes) -> str:
    parts = [(name, axes.label(run.parameters.get(name))) for name in axes.lines]
    return ", ".join(value if name == "config" else f"{_last(name)} {value}" for name, value in parts)


def _csv(runs: Sequence[SweepRun], axes: SweepAxes, metrics: Sequence[str]) -> str:
    names = [name for name in (*axes.lines, axes.panel, *axes.x, axes.seed) if name]
    rows = [["run", "state", *names, *metrics]]
    for run in runs:
        rows.append(
            [
                run.name,
                run.state,
                *(str(run.parameters.get(name)) for name in names),
                *(repr(run.metrics.get(name, math.nan)) for name in metrics),
            ]
        )
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _label(value: Any, files: Mapping[str, str]) -> str:
    if _is_number(value):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return files.get(str(value), str(value))


def _is_yaml(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _key(value: Any) -> str:
    return yaml.safe_dump(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _write(part: Path, content: bytes) -> None:
    part.write_bytes(content)
