"""``sdr report``: report of a study or sweep, training curves of a run, comparison of evaluations, or a leaderboard."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from sdr_lightning.reporting import build_report, draw_run
from sdr_lightning.results.loading import load_study

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from sdr_lightning.reporting.tables.table import Table

DESCRIPTION = """Write report.html and report.md into the folder of a study; sweep.html, sweep.png and sweep.csv into that
of a sweep (of sdr sweep, or of offline W&B runs); or training.png into that of a run. For files of sdr evaluate --output:
print metrics with 95 % intervals and differences to a baseline. For folders of studies with --output: write leaderboard.html and
leaderboard.md of all their methods, and of evaluations if there are any."""

_UNBOUNDED = 10_000  # columns: a width that no table exceeds


def parser() -> ArgumentParser:
    """Return the parser of ``sdr report``."""
    parser = ArgumentParser(prog="sdr report", description=DESCRIPTION)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="FOLDER | [NAME=]FILE[,FILE...]",
        help="folder of a study (such as runs/scenes), sweep or run; evaluations, one file per seed; or several of these",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="system that the others are compared with (default: the first)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="of comparison.html and comparison.md, or of the leaderboard"
    )
    parser.add_argument(
        "--quoted",
        type=Path,
        metavar="YAML",
        help="numbers that others published, for tables of their own in the leaderboard, see docs/published_numbers.yaml",
    )
    parser.add_argument("--replicates", type=int, metavar="N", help="bootstrap replicates (default: 2000)")
    return parser


def run(arguments: list[str]) -> int:
    """Write a report or compare evaluations; see ``sdr report --help``.

    Returns:
        The exit status 0.

    Raises:
        ValueError: the arguments or a file are invalid.
    """
    options = parser().parse_args(arguments)
    folders = [name for name in options.inputs if Path(name).is_dir()]
    if folders or (len(options.inputs) == 1 and not _is_evaluation(options.inputs[0])):
        given = [name for name in ("baseline", "replicates") if getattr(options, name) is not None]
        if given:
            raise ValueError(
                f"--{given[0]} applies to evaluations only, and {(folders or options.inputs)[0]} is not one: leave it out"
            )
        if options.output is not None:
            return _leaderboard(options.inputs, options.output, options.quoted)
        if len(options.inputs) > 1:
            raise ValueError(
                f"{folders[0]} is a folder: give one folder, --output for a leaderboard of several studies, or metrics.json of "
                "each test to compare them"
            )
    if options.quoted is not None:
        raise ValueError("--quoted applies to a leaderboard: give folders of studies and --output")
    if folders or not _is_evaluation(options.inputs[0]):
        return _report(Path(options.inputs[0]))
    return _compare(options.inputs, options.baseline, options.output, options.replicates)


def _is_evaluation(name: str) -> bool:
    return Path(name).is_file() or "=" in name or name.endswith(".json")


def _report(folder: Path) -> int:
    if not any((folder / name).is_file() for name in ("study.json", "metrics.csv")) and _is_sweep(folder):
        from sdr_lightning.reporting.sweep import build_sweep_report

        print(f"report in {build_sweep_report(folder)}")
        return 0
    if (folder / "metrics.csv").is_file() and not (folder / "study.json").is_file():
        print(f"curves in {draw_run(folder)}")
        return 0
    study = load_study(folder)
    outdated = (
        f"{len(study.outdated)} of {study.num_expected} cells were made with other code or options than the study"
    )
    if study.outdated and not study.runs:
        raise ValueError(f"{outdated}, and no cell with its code: sdr reproduce runs them again")
    print(f"report in {build_report(folder)}")
    if study.outdated:
        print(f"sdr report: {outdated} and are in no number: sdr reproduce runs them again", file=sys.stderr)
    return 1 if study.outdated else 0


def _leaderboard(inputs: list[str], output: Path, quoted: Path | None) -> int:
    from sdr_lightning.reporting.evaluation_files import load_systems
    from sdr_lightning.reporting.leaderboard.evaluations import evaluations_group
    from sdr_lightning.reporting.leaderboard.output import (
        Leaderboard,
        check_leaderboard,
        leaderboard_files,
        write_leaderboard,
    )
    from sdr_lightning.reporting.leaderboard.quoted import read_quoted
    from sdr_lightning.reporting.leaderboard.studies import distinct, study_group

    if output.is_file():
        raise ValueError(f"--output must be a folder, but {output} is a file")
    check_leaderboard(output)
    folders = [name for name in inputs if Path(name).is_dir()]
    groups = distinct([(study_group(load_study(Path(name))), Path(name)) for name in folders])
    if files := [name for name in inputs if name not in folders]:
        groups.append(evaluations_group(load_systems(files, comparable=False)))
    numbers = None if quoted is None else read_quoted(quoted)
    write_leaderboard(Leaderboard(tuple(groups), numbers), output)
    print(f"leaderboard in {leaderboard_files(output)[1]}")
    outdated = {group.title: group.outdated for group in groups if group.outdated}
    for title, cells in outdated.items():
        print(
            f"sdr report: {cells} cells of {title} were made with other code or options than the study and are in no number: "
            "sdr reproduce runs them again",
            file=sys.stderr,
        )
    return 1 if outdated else 0


def _is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").is_file() or next(folder.rglob("*.wandb"), None) is not None


def _compare(inputs: list[str], baseline: str | None, output: Path | None, replicates: int | None) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    from sdr_lightning.functional.bootstrap import REPLICATES
    from sdr_lightning.reporting.comparison import (
        check_comparison,
        compare_systems,
        further_tables,
        main_tables,
        notes,
        summary,
        write_comparison,
    )
    from sdr_lightning.reporting.evaluation_files import load_systems

    if output is not None and output.is_file():
        raise ValueError(f"--output must be a folder, but {output} is a file")
    if output is not None:
        check_comparison(output)
    comparison = compare_systems(load_systems(inputs), baseline, REPLICATES if replicates is None else replicates)
    if output is not None:
        write_comparison(comparison, output)
    console = Console()
    console.print(summary(comparison), markup=False, highlight=False, soft_wrap=True)
    for table in main_tables(comparison):
        shown = _rich(table)
        width = Measurement.get(console, console.options.update(width=_UNBOUNDED), shown).maximum
        if not console.is_terminal:
            console.width = max(console.width, width)  # no wrapping in files and pipes
        elif width > console.width:
            shown = _rich(table, between="\n")
        console.print()
        console.print(shown)
    console.print()
    for note in notes(comparison):
        console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        last = f"comparison in {output / 'comparison.html'}"
    else:
        further = sum(len(block.rows) for table in further_tables(comparison) for block in table.blocks)
        last = f"{further} more metrics in the page that --output FOLDER writes" if further else ""
    if last:
        console.print(f"\n{last}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _rich(table: Table, between: str = " ") -> RichTable:
    """Convert a table for the terminal, with `between` separating value and interval."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, title=Text(table.caption), title_justify="left", pad_edge=False)
    groups = [group for group, span in table.groups for _ in range(span)] or [""] * len(table.headings)
    for i, (group, heading) in enumerate(zip(groups, table.headings, strict=True)):
        repeated = i > 0 and groups[i - 1] == group
        title = Text("\n".join(("" if repeated else group, heading)) if table.groups else heading)
        shown.add_column(title, justify="right" if i else "left", vertical="middle")
    for block in table.blocks:
        if block.title:
            shown.add_row(Text(block.title, style="dim"))
        for row in block.rows:
            entries = [Text(between.join(part for part in (cell.text, cell.detail) if part)) for cell in row]
            for entry, cell in zip(entries, row, strict=True):
                entry.append({"higher": " ▲", "lower": " ▼"}.get(cell.tag, "  " if cell.detail else ""))
                entry.stylize({"higher": "bold green", "lower": "bold red"}.get(cell.tag, ""))
            shown.add_row(*entries)
        shown.add_section()
    return shown
