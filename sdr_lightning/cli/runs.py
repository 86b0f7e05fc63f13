"""``sdr runs``: list, filter and compare the runs on this machine."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from sdr_lightning.paths import read_json
from sdr_lightning.reporting.curves import read_curves
from sdr_lightning.reporting.sweep import flat
from sdr_lightning.results.fields import Fields


@dataclass(frozen=True)
class Outcome:
    """What a run, a cell of a study, or a teacher of a study came to.

    Attributes:
        metrics: of the epoch that was kept, and of a test as ``test/...``.
        epochs: how many it was trained for.
        wall_time_s: of the training; of a cell, of its test too.
        memory_mib: the most it held; None where it is not known.
    """

    metrics: dict[str, float]
    epochs: int
    wall_time_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: relative to where runs were looked for, or as it was given.
        options: the configuration by dotted names; the parts of a list by their number.
        record: of ``run.json``.
        outcome: what it came to; None while it is not finished.
        started: when its configuration was written.
    """

    folder: str
    options: dict[str, Any]
    record: dict[str, Any]
    outcome: Outcome | None
    started: datetime

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the outcome."""
        return {} if self.outcome is None else self.outcome.metrics


def run(arguments: list[str]) -> int:
    """List or compare runs; see ``sdr runs --help``."""
    parser = ArgumentParser(
        prog="sdr runs",
        description="List the runs below a folder with what they came to. Two or more run folders are compared instead: the "
        "options they differ in, and their metrics.",
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], help="where to look (default: runs)")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="only runs whose configuration has this, such as data.init_args.batch_size=128; a suffix of the name will do",
    )
    parser.add_argument("--sort", default="started", metavar="METRIC", help="started, or a metric such as val/rsum")
    options = parser.parse_args(arguments)
    folders = options.folders
    if len(folders) > 1:
        if options.where or options.sort != "started":
            raise ValueError("--where and --sort are for the runs of one folder, and several were given")
        return _compare([_read(folder, str(folder)) for folder in folders])
    if not folders[0].is_dir():
        raise ValueError(f"no folder at {folders[0]}: name the one that holds runs")
    found = []
    for path in sorted(folders[0].rglob("run.json")):
        try:
            found.append(_read(path.parent, str(path.parent.relative_to(folders[0]))))
        except ValueError as error:  # such as a run that is just starting again
            print(f"sdr runs: {error}", file=sys.stderr)
    for condition in options.where:
        name = condition.partition("=")[0]
        if found and not any(_is(name, key) for run in found for key in run.options):
            raise ValueError(f"no run has an option {name!r}: --where takes the end of a name, such as batch_size=128")
    chosen = [run for run in found if all(_has(run, condition) for condition in options.where)]
    if options.sort == "started":
        chosen.sort(key=lambda run: run.started)
    else:
        chosen.sort(key=lambda run: run.metrics.get(options.sort, float("-inf")), reverse=True)
    _list(chosen, options.sort)
    print(f"{len(chosen)} of {len(found)} runs in {folders[0]}")
    return 0


def _read(folder: Path, name: str) -> Run:
    record = read_json(folder / "run.json", "the record of a run, which sdr fit writes")
    configuration = folder / "config.yaml"
    try:
        options = flat(_numbered(yaml.safe_load(configuration.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(
            f"{configuration} cannot be read ({type(error).__name__}): expected a run's configuration"
        ) from error
    started = datetime.fromtimestamp(configuration.stat().st_mtime)
    return Run(name, options, record, _outcome(folder), started)


def _outcome(folder: Path) -> Outcome | None:
    """Read what was written last: ``results.json`` of a run or a cell, ``teacher.json``, or, of a stage, its cell's."""
    found = [path for path in (folder / "results.json", folder / "teacher.json") if path.is_file()]
    is_stage = folder.name.startswith("stage-") and (folder.parent / "results.json").is_file()
    if not found and not is_stage:
        return None
    results = Fields.read(found[0]) if found else Fields({}, str(folder))
    tested = {f"test/{name}": value for name, value in results.optional_child("metrics").table().items()}
    if "training" in results:
        training = results.child("training")
        metrics = training.child("kept").table() | tested
        seconds, memory = (training.optional_number(name) for name in ("wall_time_s", "peak_memory_mib"))
        return Outcome(metrics, training.integer("epochs"), seconds, memory)
    curves = read_curves(folder / "metrics.csv")
    selected = results.optional_child("selected")
    epoch, epochs = selected.optional_integer("epoch"), selected.optional_integer("epochs")
    kept = {name: curve[epoch] for name, curve in curves.items() if epoch is not None and epoch in curve}
    trained = 1 + max(curves.get("train/loss", ()), default=-1)
    return Outcome(kept | tested, trained if epochs is None else epochs, results.optional_number("wall_time_s"))


def _numbered(value: Any) -> Any:
    """A configuration in which the parts of a list go by their number; a list of one is that one."""
    if isinstance(value, dict):
        return {key: _numbered(part) for key, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        parts = [_numbered(part) for part in value]
        return parts[0] if len(parts) == 1 else {str(number): part for number, part in enumerate(parts)}
    return value


def _has(run: Run, condition: str) -> bool:
    name, equals, value = condition.partition("=")
    if not equals or not name:
        raise ValueError(f"--where takes OPTION=VALUE, got {condition!r}")
    try:
        wanted: Any = float(value)  # 1e-4 is a number to people, and to YAML a word
    except ValueError:
        wanted = yaml.safe_load(value)
    return any(found == wanted for key, found in run.options.items() if _is(name, key))


def _is(name: str, option: str) -> bool:
    """Whether a name is an option's or its end, with or without the numbers of the parts of lists."""
    plain = re.sub(r"\.\d+(?=\.)", "", option)
    return any(full == name or full.endswith(f".{name}") for full in (option, plain))


def _list(runs: Sequence[Run], sort: str) -> None:
    metrics = ["val/rsum", "train/loss"]
    if sort not in ("started", *metrics):
        metrics.insert(0, sort)
    table = Table(
        "run", "started", "state", "epochs", *metrics, "wall time", "memory", "commit", box=None, header_style="bold"
    )
    for run in runs:
        done = run.outcome
        seconds, memory = (None, None) if done is None else (done.wall_time_s, done.memory_mib)
        commit = run.record["git"]["commit"]
        table.add_row(
            run.folder,
            f"{run.started:%Y-%m-%d %H:%M}",
            "unfinished" if done is None else "finished",
            "" if done is None else str(done.epochs),
            *(f"{run.metrics[name]:.4g}" if name in run.metrics else "" for name in metrics),
            "" if seconds is None else f"{seconds:.0f} s",
            "" if memory is None else f"{memory:,.0f} MiB",
            "" if commit is None else commit[:8] + ("+" if run.record["git"]["dirty"] else ""),
        )
    _print(table)


def _compare(runs: Sequence[Run]) -> int:
    names = sorted({name for run in runs for name in run.options} - {"run_dir"})
    differing = [name for name in names if len({yaml.safe_dump(run.options.get(name)) for run in runs}) > 1]
    table = Table("", *(run.folder for run in runs), box=None, header_style="bold")
    for name in [name for name in differing if not name.endswith(("default_root_dir", "save_dir"))]:
        table.add_row(name, *(str(run.options.get(name, "")) for run in runs))
    for what in ("commit", "data"):
        values = [run.record["git"]["commit"] if what == "commit" else _data(run) for run in runs]
        if len(set(values)) > 1:
            table.add_row(what, *(str(value)[:12] for value in values))
    table.add_section()
    for metric in sorted({name for run in runs for name in run.metrics}):
        table.add_row(metric, *(f"{run.metrics[metric]:.4g}" if metric in run.metrics else "" for run in runs))
    _print(table)
    return 0


def _data(run: Run) -> str:
    return " ".join(str(split["sha256"]) for split in run.record["data"].values())


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a file or a pipe has no edge
    console.print(table)
