"""``sdr sweep``: a sweep in W&B's format, run on this machine."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path


def parser() -> ArgumentParser:
    """Return the parser of ``sdr sweep``."""
    parser = ArgumentParser(
        prog="sdr sweep",
        description="Run the file of a W&B sweep without a server. Grid, random and hyperband follow W&B; bayes is the "
        "tree-structured Parzen estimator of Optuna. Interrupt with Ctrl-C or SIGTERM, continue with --resume.",
    )
    parser.add_argument("file", type=Path, help="the sweep, in W&B's format")
    parser.add_argument("--output", type=Path, help="folder of the sweep (default: runs/sweeps/NAME)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--resume", action="store_true", help="continue the sweep in the folder; finished runs stay")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="check the file, print the number of runs, run nothing"
    )
    return parser


def run(arguments: list[str]) -> int:
    """Run a sweep; see ``sdr sweep --help``."""
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    from sdr_lightning.reporting.sweep import build_sweep_report
    from sdr_lightning.sweeps.runner import SweepRunner
    from sdr_lightning.sweeps.search import grid_size
    from sdr_lightning.sweeps.spec import Sweep

    sweep = Sweep.load(options.file)
    runner = SweepRunner(sweep, options.output or Path("runs/sweeps") / sweep.name, options.jobs)
    if options.dry_run:
        over, size = ", ".join(sweep.distributions), grid_size(sweep) or sweep.run_cap
        print(f"{sweep.name}: {sweep.method} over {over}; {size} runs")
        return 0
    runs = runner.run(options.resume)
    failed = [run for run in runs if run.state == "failed"]
    for run in failed:
        print(f"sdr sweep: run {run.number} failed, {run.folder / 'log.txt'}: {run.failure}", file=sys.stderr)
    if any(run.state == "finished" for run in runs):
        print(f"report in {build_sweep_report(runner.folder)}")
    return 1 if failed else 0
