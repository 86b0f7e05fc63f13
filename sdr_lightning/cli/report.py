"""``sdr report``: the report of a study from its run folders."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from sdr_lightning.reporting import build_report


def run(arguments: list[str]) -> int:
    """Write a report; see ``sdr report --help``."""
    parser = ArgumentParser(prog="sdr report", description="Write report.html and report.md into a study's folder.")
    parser.add_argument("folder", type=Path, help="folder of a study, such as runs/scenes")
    options = parser.parse_args(arguments)
    print(f"report in {build_report(options.folder)}")
    return 0
