"""``sdr extract``: write the feature bank of a teacher for a student's data."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sdr_lightning.cli.choices import SPLITS, device
from sdr_lightning.paths import check_output


def parser() -> ArgumentParser:
    """Return the parser of ``sdr extract``."""
    parser = ArgumentParser(
        prog="sdr extract",
        description="Encode a student's data, with its corruption applied, by a teacher and write the features by item id. "
        "Further options (such as --data.init_args.imbalance.kind) are options of the student.",
    )
    parser.add_argument("--config", action="append", required=True, help="student configuration; may be repeated")
    parser.add_argument("--teacher", action="append", required=True, help="teacher configuration; may be repeated")
    parser.add_argument("--ckpt_path", help="teacher checkpoint; default: the weights of its configuration")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["train"], help="splits (default: train)")
    parser.add_argument("--device", type=device, help="device to compute on (default: a GPU if there is one)")
    parser.add_argument("--output", type=Path, required=True, help="feature bank to write, FILE.safetensors")
    parser.add_argument("--placebo", type=Path, help="also write a bank of random features, as a control")
    return parser


def run(arguments: list[str]) -> int:
    """Extract a bank; see ``sdr extract --help``."""
    options, rest = parser().parse_known_args(arguments)
    from sdr_lightning.training.checkpoints.interruption import exit_when_stopped, stopped_by_signals

    with exit_when_stopped(), stopped_by_signals():
        return _extract(options, rest)


def _extract(options: Namespace, rest: list[str]) -> int:
    import torch

    from sdr_lightning.configure import student_data, teacher_tower
    from sdr_lightning.features.bank import is_bank
    from sdr_lightning.training.extraction import extract_bank

    reads = [*options.config, *options.teacher, options.ckpt_path]
    for output in (options.output, options.placebo):
        if output is not None:
            check_output(output, reads, is_bank)
    if options.output == options.placebo:
        raise ValueError(f"--output and --placebo are both {options.output}: choose two different files")
    data = student_data([*(word for config in options.config for word in ("--config", config)), *rest])
    tower = teacher_tower([word for config in options.teacher for word in ("--config", config)], options.ckpt_path)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bank = extract_bank(tower, data, options.splits, torch.device(device))
    if options.placebo is not None:
        bank.placebo().save(options.placebo)
    bank.save(options.output)
    print(
        f"{len(bank.ids)} {bank.modality} features of width {bank.width} in {options.output} ({bank.fingerprint[:12]})"
    )
    return 0
