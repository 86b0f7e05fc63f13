"""``sdr runs``: list, filter and compare the runs on this machine."""

from __future__ import annotations

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
from sdr_lightning.reporting.fields import Fields
from sdr_lightning.reporting.sweep import flat


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        folder: relative to where runs were looked for, or as it was given.
        options: the configuration by dotted names.
        record: of ``run.json``.
        training: of ``results.json``; None while the run is not finished, and for the cells and teachers of a study.
        finished: whether it is.
        started: when its configuration was written.
    """

    folder: str
    options: dict[str, Any]
    record: dict[str, Any]
    training: dict[str, Any] | None
    finished: bool
    started: datetime

    @property
    def kept(self) -> dict[str, float]:
        """Metrics of the epoch that was kept."""
        return {} if self.training is None else Fields(self.training["kept"], self.folder).table()


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
        chosen.sort(key=lambda run: run.kept.get(options.sort, float("-inf")), reverse=True)
    _list(chosen, options.sort)
    print(f"{len(chosen)} of {len(found)} runs in {folders[0]}")
    return 0


def _read(folder: Path, name: str) -> Run:
    record = read_json(folder / "run.json", "the record of a run, which sdr fit writes")
    configuration = folder / "config.yaml"
    try:
        options = flat(yaml.safe_load(configuration.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(
            f"{configuration} cannot be read ({type(error).__name__}): expected a run's configuration"
        ) from error
    results = folder / "results.json"
    finished = results.is_file() or (folder / "teacher.json").is_file()
    training = read_json(results, "results of a run").get("training") if results.is_file() else None
    started = datetime.fromtimestamp(configuration.stat().st_mtime)
    return Run(name, options, record, training, finished, started)


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
    return option == name or option.endswith(f".{name}")


def _list(runs: Sequence[Run], sort: str) -> None:
    metrics = ["val/rsum", "train/loss"]
    if sort not in ("started", *metrics):
        metrics.insert(0, sort)
    table = Table(
        "run", "started", "state", "epochs", *metrics, "wall time", "memory", "commit", box=None, header_style="bold"
    )
    for run in runs:
        done = run.training
        commit = run.record["git"]["commit"]
        table.add_row(
            run.folder,
            f"{run.started:%Y-%m-%d %H:%M}",
            "finished" if run.finished else "unfinished",
            "" if done is None else str(done["epochs"]),
            *(f"{run.kept[name]:.4g}" if name in run.kept else "" for name in metrics),
            "" if done is None else f"{done['wall_time_s']:.0f} s",
            "" if done is None else f"{done['peak_memory_mib']:,.0f} MiB",
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
    for metric in sorted({name for run in runs for name in run.kept}):
        table.add_row(metric, *(f"{run.kept[metric]:.4g}" if metric in run.kept else "" for run in runs))
    _print(table)
    return 0


def _data(run: Run) -> str:
    return " ".join(str(split["sha256"]) for split in run.record["data"].values())


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 10_000  # a file or a pipe has no edge
    console.print(table)
