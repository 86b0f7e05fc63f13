"""``sdr relevance``: compute graded relevance between captions and images."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from sdr_lightning.cli.choices import SPLITS, TOKENIZERS
from sdr_lightning.paths import check_output
from sdr_lightning.progress import progress


def parser() -> ArgumentParser:
    """Return the parser of ``sdr relevance``."""
    parser = ArgumentParser(
        prog="sdr relevance",
        description="ROUGE-L between every caption and the captions of every image, (C, N), as .npy with a .json record.",
    )
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="in the format of Karpathy or COCO, or a list"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="split of the annotations (default: test)")
    parser.add_argument("--tokenizer", choices=TOKENIZERS, default="stripped", help="tern keeps punctuation")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="float16 halves the file")
    parser.add_argument("--workers", type=int, default=1, help="number of threads; -1 for all cores")
    parser.add_argument("--output", type=Path, required=True, metavar="NPY")
    return parser


def run(arguments: list[str]) -> int:
    """Write relevance; return the exit status. See ``sdr relevance --help``."""
    options = parser().parse_args(arguments)
    from sdr_lightning.data.annotations import read_annotations
    from sdr_lightning.metrics.files import is_relevance, record_path, save_relevance
    from sdr_lightning.metrics.relevance import RougeLRelevance

    if options.output.suffix != ".npy":
        raise ValueError(f"--output should end with .npy, got {options.output}")
    for output in (options.output, record_path(options.output)):
        check_output(output, [options.annotations], is_relevance)
    table = read_annotations(options.annotations, options.split).table
    with progress("ROUGE-L of captions", len(table.captions)) as advance:
        relevance = RougeLRelevance(
            list(table.captions),
            table.caption_image,
            len(table.image_ids),
            options.tokenizer,
            workers=options.workers,
            advance=advance,
        )
    save_relevance(
        options.output, relevance.scores, list(table.caption_ids), list(table.image_ids), relevance.kind, options.dtype
    )
    print(
        f"ROUGE-L of {relevance.num_texts} captions x {relevance.num_images} images in {options.output}, ids and hash in "
        f"{record_path(options.output).name}"
    )
    return 0
