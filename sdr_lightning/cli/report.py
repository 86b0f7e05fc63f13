"""``sdr report``: the report of a study from its run folders, or the curves of one run."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from sdr_lightning.reporting import build_report, draw_run


def run(arguments: list[str]) -> int:
    """Write a report; see ``sdr report --help``."""
    parser = ArgumentParser(
        prog="sdr report",
        description="Write report.html and report.md into a study's folder, or training.png into a run's.",
    )
    parser.add_argument("folder", type=Path, help="folder of a study, such as runs/scenes, or of a run")
    folder = parser.parse_args(arguments).folder
    is_study = (folder / "suite.json").is_file() or not (folder / "metrics.csv").is_file()
    print(f"report in {build_report(folder)}" if is_study else f"curves in {draw_run(folder)}")
    return 0
