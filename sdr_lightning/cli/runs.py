"""``sdr runs``: list, filter and compare runs."""

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
from rich.markup import escape
from rich.table import Table

from sdr_lightning.paths import read_json
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.results.fields import Fields, flat

_RESULTS = ("results.json", "trial.json", "teacher.json")


@dataclass(frozen=True)
class Outcome:
    """Result of a finished run, study cell or teacher.

    Attributes:
        metrics: metrics of the selected epoch; those of a test as ``test/...``.
        epochs: number of training epochs.
        wall_time_s: duration of the training in seconds, for a cell including its test.
        memory_mib: peak memory in MiB; None if unknown.
    """

    metrics: dict[str, float]
    epochs: int
    wall_time_s: float | None = None
    memory_mib: float | None = None


@dataclass(frozen=True)
class RunFolder:
    """Contents of the folder of a run.

    Attributes:
        folder: path relative to the folder that is searched, or as given.
        options: configuration by dotted name; items of a list by their index.
        commit: of the code; None outside a git checkout.
        is_dirty: whether the code had changes.
        data: SHA-256 of the splits.
        outcome: the result; None if unfinished.
        started: modification time of the configuration.
    """

    folder: str
    options: dict[str, Any]
    commit: str | None
    is_dirty: bool
    data: str
    outcome: Outcome | None
    started: datetime

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the outcome; empty if unfinished."""
        return {} if self.outcome is None else self.outcome.metrics


def parser() -> ArgumentParser:
    """Return the parser of ``sdr runs``."""
    parser = ArgumentParser(
        prog="sdr runs",
        description="List the runs in a folder with their results. For two or more run folders, show the options in which they "
        "differ, and their metrics.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("runs")], help="folder to search (default: runs)"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="only runs with this value, such as data.init_args.batch_size=128; the end of the name is enough",
    )
    parser.add_argument(
        "--sort", default="started", metavar="METRIC", help="started (default), or a metric such as val/rsum"
    )
    return parser


def run(arguments: list[str]) -> int:
    """List or compare runs; see ``sdr runs --help``."""
    options = parser().parse_args(arguments)
    folders = options.folders
    if len(folders) > 1:
        if options.where or options.sort != "started":
            raise ValueError("--where and --sort apply to one folder, got several: leave them out")
        return _compare([_read(folder, str(folder)) for folder in folders])
    if not folders[0].is_dir():
        raise ValueError(f"no folder at {folders[0]}: give a folder that contains runs")
    found = []
    for path in sorted(folders[0].rglob("run.json")):
        try:
            found.append(_read(path.parent, str(path.parent.relative_to(folders[0]))))
        except ValueError as error:  # such as a run that is being restarted
            print(f"sdr runs: {error}", file=sys.stderr)
    for condition in options.where:
        name = condition.partition("=")[0]
        if found and not any(_matches(name, key) for run in found for key in run.options):
            raise ValueError(f"no run has an option {name!r}: --where takes the end of a name, such as batch_size=128")
    chosen = [run for run in found if all(_has(run, condition) for condition in options.where)]
    if options.sort == "started":
        chosen.sort(key=lambda run: run.started)
    else:
        chosen.sort(key=lambda run: run.metrics.get(options.sort, float("-inf")), reverse=True)
    _list(chosen, options.sort)
    print(f"{len(chosen)} of {len(found)} runs in {folders[0]}")
    return 0


def _read(folder: Path, name: str) -> RunFolder:
    path = folder / "run.json"
    record = Fields(read_json(path, "the record of a run, which sdr fit writes"), str(path))
    git, data = record.child("git"), record.optional_child("data")
    commit = git.optional_text("commit")
    configuration = folder / "config.yaml"
    try:
        options = flat(_numbered(yaml.safe_load(configuration.read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(
            f"{configuration} cannot be read ({type(error).__name__}): expected a run's configuration"
        ) from error
    started = datetime.fromtimestamp(configuration.stat().st_mtime)
    digests = " ".join(data.child(split).text("sha256") for split in data.values)
    return RunFolder(name, options, commit, git.flag("dirty", default=False), digests, _outcome(folder), started)


def _outcome(folder: Path) -> Outcome | None:
    """Read ``results.json``, ``trial.json`` or ``teacher.json``; a stage is finished if its cell or trial is."""
    found = [path for path in map(folder.joinpath, _RESULTS) if path.is_file()]
    is_stage = folder.name.startswith("stage-") and any((folder.parent / name).is_file() for name in _RESULTS)
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
    """Replace lists of mappings by mappings from index to item, and lists of one item by the item."""
    if isinstance(value, dict):
        return {key: _numbered(part) for key, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        parts = [_numbered(part) for part in value]
        return parts[0] if len(parts) == 1 else {str(number): part for number, part in enumerate(parts)}
    return value


def _has(run: RunFolder, condition: str) -> bool:
    name, equals, value = condition.partition("=")
    if not equals or not name:
        raise ValueError(f"--where takes OPTION=VALUE, got {condition!r}")
    try:
        wanted: Any = float(value)  # YAML reads 1e-4 as a string
    except ValueError:
        try:
            wanted = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--where {condition}: the value is not YAML; quote it") from error
    return any(found == wanted for key, found in run.options.items() if _matches(name, key))


def _matches(name: str, option: str) -> bool:
    """Return whether a name equals an option or its end, with or without list indices."""
    plain = re.sub(r"\.\d+(?=\.)", "", option)
    return any(full == name or full.endswith(f".{name}") for full in (option, plain))


def _list(runs: Sequence[RunFolder], sort: str) -> None:
    metrics = ["val/rsum", "train/loss"]
    if sort not in ("started", *metrics):
        metrics.insert(0, sort)
    table = Table(
        "run", "started", "state", "epochs", *metrics, "wall time", "memory", "commit", box=None, header_style="bold"
    )
    for run in runs:
        done = run.outcome
        seconds, memory = (None, None) if done is None else (done.wall_time_s, done.memory_mib)
        table.add_row(
            escape(run.folder),
            f"{run.started:%Y-%m-%d %H:%M}",
            "unfinished" if done is None else "finished",
            "" if done is None else str(done.epochs),
            *(f"{run.metrics[name]:.4g}" if name in run.metrics else "" for name in metrics),
            "" if seconds is None else f"{seconds:.0f} s",
            "" if memory is None else f"{memory:,.0f} MiB",
            "" if run.commit is None else run.commit[:8] + ("+" if run.is_dirty else ""),
        )
    _print(table)


def _compare(runs: Sequence[RunFolder]) -> int:
    names = sorted({name for run in runs for name in run.options} - {"run_dir"})
    differing = [name for name in names if len({yaml.safe_dump(run.options.get(name)) for run in runs}) > 1]
    table = Table("", *(escape(run.folder) for run in runs), box=None, header_style="bold")
    for name in [name for name in differing if not name.endswith(("default_root_dir", "save_dir"))]:
        table.add_row(name, *(escape(str(run.options.get(name, ""))) for run in runs))
    for name, values in (("commit", [str(run.commit) for run in runs]), ("data", [run.data for run in runs])):
        if len(set(values)) > 1:
            table.add_row(name, *(value[:12] for value in values))
    table.add_section()
    for metric in sorted({name for run in runs for name in run.metrics}):
        table.add_row(metric, *(f"{run.metrics[metric]:.4g}" if metric in run.metrics else "" for run in runs))
    _print(table)
    return 0


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # no wrapping in files and pipes
    console.print(table)
