"""``sdr extract``: a teacher's feature bank for a student's data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from sdr_lightning.configure import student_data, teacher_tower
from sdr_lightning.configure.help import help_text
from sdr_lightning.data.table import SPLITS
from sdr_lightning.features.bank import is_bank
from sdr_lightning.paths import check_output
from sdr_lightning.training.checkpoints.interruption import exit_when_stopped, stopped_by_signals
from sdr_lightning.training.extraction import extract_bank


def run(arguments: list[str]) -> int:
    """Extract a bank; see ``sdr extract --help``."""
    if "--data.help" in arguments or "--model.help" in arguments:
        print(help_text("extract", arguments))
        return 0
    parser = ArgumentParser(
        prog="sdr extract",
        description="Run a teacher over a student's data, imbalance included, and write its features keyed by id. "
        "Further options (such as --data.init_args.imbalance.kind) go to the student's configuration.",
    )
    parser.add_argument("--config", action="append", required=True, help="the student's configuration; may be repeated")
    parser.add_argument(
        "--teacher", action="append", required=True, help="the teacher's configuration; may be repeated"
    )
    parser.add_argument("--ckpt_path", help="the teacher's checkpoint; without one its tower is used as configured")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["train"], help="which splits (default: train)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--output", type=Path, required=True, help="the bank, FILE.safetensors")
    parser.add_argument("--placebo", type=Path, help="also write a bank of random features, for a control")
    options, rest = parser.parse_known_args(arguments)
    with exit_when_stopped(), stopped_by_signals():
        return _extract(options, rest)


def _extract(options: Namespace, rest: list[str]) -> int:
    reads = [*options.config, *options.teacher, options.ckpt_path]
    for output in (options.output, options.placebo):
        if output is not None:
            check_output(output, reads, is_bank)
    if options.output == options.placebo:
        raise ValueError(f"--output and --placebo both name {options.output}: give the two banks two names")
    data = student_data([*(word for config in options.config for word in ("--config", config)), *rest])
    tower = teacher_tower([word for config in options.teacher for word in ("--config", config)], options.ckpt_path)
    bank = extract_bank(tower, data, options.splits, torch.device(options.device))
    if options.placebo is not None:
        bank.placebo().save(options.placebo)
    bank.save(options.output)
    print(
        f"{len(bank.ids)} {bank.modality} features of width {bank.width} in {options.output} ({bank.fingerprint[:12]})"
    )
    return 0
