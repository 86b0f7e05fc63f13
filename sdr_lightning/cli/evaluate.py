"""``sdr evaluate``: compute all metrics of any model from embeddings or scores."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sdr_lightning.cli.choices import SIBLINGS, SPLITS, TIES, device
from sdr_lightning.configure.arguments import split_options


def parser() -> ArgumentParser:
    """Return the parser of ``sdr evaluate``."""
    parser = ArgumentParser(
        prog="sdr evaluate",
        description="Compute cross-modal retrieval metrics of any model and, with --relevance, NDCG of single-modal and mixed "
        "retrieval. Arrays are numeric .npy files; embeddings are L2-normalised. With --model and --data, a trained model embeds "
        "a split; options such as --data.init_args.source.init_args.skip_missing true are then accepted.",
    )
    parser.add_argument("--model", help="a trained model: run, checkpoint, exported folder or USER/NAME; needs --data")
    parser.add_argument("--data", type=Path, metavar="FILE", help="data configuration for --model")
    parser.add_argument("--image-embeddings", type=Path, metavar="NPY", help="(N, d)")
    parser.add_argument("--text-embeddings", type=Path, metavar="NPY", help="(C, d)")
    parser.add_argument(
        "--scores", type=Path, nargs="+", metavar="NPY", help="(N, C) image to text; optionally (C, N) text to image"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="images and captions of the rows, in this order"
    )
    parser.add_argument("--split", choices=SPLITS, help="split of the annotations or the data (default: test)")
    parser.add_argument(
        "--caption-order",
        choices=["image", "file"],
        help="order of caption rows: image by image (default), or as in the annotations. They differ if captions of "
        "different images are interleaved there, as in COCO's files",
    )
    parser.add_argument(
        "--captions-per-image", type=int, metavar="K", help="every K consecutive captions belong to one image"
    )
    parser.add_argument("--text-to-image", type=Path, metavar="NPY", help="(C,) row of the image of each caption")
    parser.add_argument(
        "--relevance", type=Path, metavar="FILE", help="(C, N), from sdr relevance, or the raw file of TERN"
    )
    parser.add_argument(
        "--protocol",
        choices=["clean", "paper"],
        default="clean",
        help="paper: as in the authors' public code (default: clean)",
    )
    parser.add_argument(
        "--ties",
        choices=TIES,
        default="index",
        help="which equally scored items rank first in recall and ranks: lower index (default), or all (pessimistic)",
    )
    parser.add_argument(
        "--siblings",
        choices=SIBLINGS,
        default="keep",
        help="captions of the query's image in t2t, t2it (default: keep)",
    )
    parser.add_argument(
        "--folds", type=int, metavar="K", help="also recall averaged over K disjoint folds (COCO 1K: 5)"
    )
    parser.add_argument("--diagnostics", action="store_true", help="also alignment, uniformity and hubness")
    for modality in ("image", "text"):
        parser.add_argument(
            f"--{modality}-teacher",
            type=Path,
            metavar="NPY",
            help=f"teacher features of the same {modality}s: also k-NN overlap and CKA with the embeddings",
        )
    parser.add_argument(
        "--judgements", type=Path, metavar="TXT", help="also correlation with the human judgements of Flickr8k"
    )
    parser.add_argument("--extended", action="store_true", help="also ECCV Caption and CxC, for the test split of COCO")
    parser.add_argument(
        "--training",
        type=Path,
        metavar="YAML",
        help="how the model was trained, for leaderboards: data, model, noise, ratio, seed, trials, command; all optional",
    )
    parser.add_argument("--device", type=device, default="cpu", help="torch device (default: cpu)")
    parser.add_argument(
        "--output", type=Path, metavar="JSON", help="metrics.json; also writes metrics.queries.npz next to it"
    )
    return parser


def run(arguments: list[str]) -> int:
    """Evaluate; return the exit status. See ``sdr evaluate --help``.

    Raises:
        ValueError: options are incompatible, or a file is missing, malformed or of other items.
    """
    data_options, own = split_options(arguments, ("--data.",))
    options = parser().parse_args(own)
    _check_options(options, data_options)
    options.split = options.split or "test"
    from sdr_lightning.cli.evaluation import evaluate

    evaluate(options, data_options)
    return 0


def _check_options(options: Namespace, data_options: list[str]) -> None:
    """Check that options are compatible and have an effect."""
    if data_options and options.data is None:
        raise ValueError(f"{data_options[0]} is an option of --data, which is not given")
    if (options.model is None) != (options.data is None):
        raise ValueError("--model and --data go together: a trained model, and the data whose split it is evaluated on")
    if options.split is not None and options.annotations is None and options.data is None:
        raise ValueError("--split is a split of --annotations or of --data, and neither is given")
    own = ("image_embeddings", "text_embeddings", "scores", "annotations", "captions_per_image", "text_to_image")
    others = [f"--{name.replace('_', '-')}" for name in own if getattr(options, name) is not None]
    if options.model is not None and others:
        raise ValueError(f"--model computes what {others[0]} gives: leave one of them out")
    has_embeddings = any(
        part is not None for part in (options.model, options.image_embeddings, options.text_embeddings)
    )
    if options.scores is not None and has_embeddings and options.protocol == "clean":
        raise ValueError("protocol clean evaluates embeddings or scores, got both: leave out one, or --protocol paper")
    if options.protocol == "paper" and not has_embeddings:
        raise ValueError("protocol paper needs --image-embeddings and --text-embeddings, or --model")
    if options.protocol == "paper" and (options.folds is not None or options.siblings != "keep"):
        raise ValueError("protocol paper does not support --folds or --siblings: leave them out")
    if options.folds is not None and not has_embeddings:
        raise ValueError("--folds needs embeddings, not scores")
    if options.siblings != "keep" and (options.relevance is None or not has_embeddings):
        raise ValueError("--siblings applies to NDCG of t2t and t2it, which needs embeddings and --relevance")
    if options.training is not None and options.output is None:
        raise ValueError("--training is written to --output, which is not given")
    if options.caption_order is not None and options.annotations is None:
        raise ValueError("--caption-order applies to --annotations, which are not given")
