"""``sdr clean``: find the wrong pairs of a data set, its duplicates, leakage and uninformative captions."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from rich.console import Console

from sdr_lightning.cli.choices import LEVELS, NEAR_COSINE, REMOVABLE, SPLITS, device
from sdr_lightning.configure.arguments import split_options


def parser() -> ArgumentParser:
    """Return the parser of ``sdr clean``."""
    parser = ArgumentParser(
        prog="sdr clean",
        description="Estimate for each image-caption pair the probability that it is wrong, and find duplicates, images that "
        "are in two splits, and captions that say little or nothing. No file of the data is changed. Wrong captions that "
        "resemble the right ones are hardly found: see docs/clean.md. Options of the data, such as "
        "--data.init_args.source.init_args.skip_missing true, are also accepted; --data.help lists them.",
    )
    parser.add_argument("--data", required=True, metavar="FILE", help="data configuration")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="for pairs.csv, kept.csv, kept.yaml, summary.json, report.html",
    )
    parser.add_argument("--split", choices=SPLITS, default="train", help="split to judge (default: train)")
    for modality, default in (("image", "EfficientNet-lite2"), ("text", "MiniLM")):
        parser.add_argument(
            f"--{modality}-teacher",
            metavar="CONFIG",
            help=f"configuration of a teacher, as for sdr extract (default: {default}, of pip install "
            "'sdr_lightning[towers]')",
        )
        parser.add_argument(
            f"--{modality}-bank",
            nargs="+",
            type=Path,
            default=[],
            metavar="FILE",
            help="features of sdr extract instead",
        )
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="caption",
        help="judge each pair (default), or each image with all its captions",
    )
    parser.add_argument(
        "--threshold",
        type=_threshold,
        default="auto",
        metavar="P",
        help="probability from which a pair is mismatched; auto (default): as many pairs as are estimated to be wrong, and "
        "none that is more likely right than wrong",
    )
    parser.add_argument(
        "--near-duplicates",
        type=float,
        default=NEAR_COSINE,
        metavar="COSINE",
        help=f"cosine of image features from which images are near duplicates (default: {NEAR_COSINE})",
    )
    parser.add_argument(
        "--remove",
        nargs="*",
        choices=REMOVABLE,
        default=["mismatch"],
        help="what kept.csv does without, besides empty captions (default: mismatch)",
    )
    parser.add_argument("--device", type=device, help="device to compute on (default: a GPU if there is one)")
    return parser


def run(arguments: list[str]) -> int:
    """Clean; return the exit status. See ``sdr clean --help``."""
    rest, own = split_options(arguments, ("--data.",))
    options = parser().parse_args(own)
    from sdr_lightning.training.checkpoints.interruption import exit_when_stopped, stopped_by_signals

    with exit_when_stopped(), stopped_by_signals():
        return _clean(options, rest)


def _clean(options: Namespace, rest: list[str]) -> int:
    import torch

    from sdr_lightning.cleaning import TeacherChoice, clean, write_folder
    from sdr_lightning.cleaning.output import KEPT, PAIRS, REPORT, check_folder_output
    from sdr_lightning.cleaning.page import sentences, unjudged
    from sdr_lightning.configure import build_data
    from sdr_lightning.configure.parts import run_sections

    check_folder_output(options.output)
    data = build_data(["--data", options.data, *rest])
    found = clean(
        data,
        options.split,
        TeacherChoice(options.image_teacher, options.image_bank),
        TeacherChoice(options.text_teacher, options.text_bank),
        options.level,
        None if options.threshold == "auto" else options.threshold,
        options.near_duplicates,
        options.remove,
        options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        Console(stderr=True),
    )
    summary = write_folder(found, options.output)
    for note in found.notes:
        print(f"note: {note}")
    print("\n".join(sentences(found, summary)))
    print(f"ids and probabilities in {options.output / PAIRS}, pictures in {options.output / REPORT}")
    if unjudged(found):
        print(unjudged(found))
    if summary["overlay"] is not None:
        run_dir = str(options.output.parent / "run")
        given = (
            ["--config", options.data]
            if run_sections(Path(options.data))
            else ["--config", "EXPERIMENT.yaml", "--data", options.data]
        )
        words = shlex.join([*given, *rest, "--config", summary["overlay"], "--run_dir", run_dir])
        print(f"train on {options.output / KEPT}: sdr fit {words}")
    return 0


def _threshold(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected auto or a probability, got {text!r}") from None
