"""``sdr reproduce``: a whole study from one YAML."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from sdr_lightning.studies.hub_needs import check_hub


def parser() -> ArgumentParser:
    """Return the parser of ``sdr reproduce``."""
    parser = ArgumentParser(
        prog="sdr reproduce",
        description="Train the teachers, run every cell of a study and write its report. Finished jobs are not run "
        "again: the same command continues an interrupted study.",
    )
    parser.add_argument("study", type=Path, help="the study, STUDY.yaml")
    parser.add_argument("--output", type=Path, help="folder of the study (default: runs/NAME)")
    parser.add_argument("--protocol", choices=("clean", "paper"), help="see docs/sdr.md (default: that of the study)")
    parser.add_argument("--jobs", type=int, help="cells that run at a time (default: those of the study)")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the commands and run nothing")
    return parser


def run(arguments: list[str]) -> int:
    """Run a study; see ``sdr reproduce --help``."""
    options = parser().parse_args(arguments)
    if not options.dry_run:
        check_hub(options.study)
    from sdr_lightning.studies.plan import plan_with_trials
    from sdr_lightning.studies.runner import Runner
    from sdr_lightning.studies.spec import read_study

    study = read_study(options.study)
    if options.protocol is not None:
        study = replace(study, protocol=options.protocol)
    folder = options.output or Path("runs") / (study.name + ("-paper" if study.protocol == "paper" else ""))
    jobs = options.jobs if options.jobs is not None else study.jobs
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {jobs}")
    work = plan_with_trials(study, folder)
    if options.dry_run:
        print(work.commands())
        trials = f"{len(work.trials)} trials, then one cell for each method, condition and seed"
        print(
            f"sdr reproduce: {trials if work.trials else f'{len(work.cells)} cells'}; nothing was run", file=sys.stderr
        )
        return 0
    report = Runner(study, work, folder, jobs).run()
    print(f"report in {report}")
    return 0
