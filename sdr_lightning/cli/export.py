"""``sdr export``: write a trained model as a folder that stands alone."""

from __future__ import annotations

from argparse import ArgumentParser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sdr_lightning.data.module import RetrievalDataModule
    from sdr_lightning.retrieval.retriever import Retriever

_RECALLS = ("i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "rsum")


def parser() -> ArgumentParser:
    """Return the parser of ``sdr export``."""
    parser = ArgumentParser(
        prog="sdr export",
        description="Write a trained model as a folder that stands alone: weights of all towers, configuration, tokenizer and "
        "model card. sdr_lightning.load(FOLDER) reads it in Python; sdr push uploads it to the hub.",
    )
    parser.add_argument("model", type=Path, help="run folder of sdr fit, or one of its checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--format",
        choices=["safetensors", "onnx"],
        default="safetensors",
        help="onnx: also write onnx/image.onnx, onnx/text.onnx, and onnx/fusion.onnx for a model with a fusion encoder",
    )
    parser.add_argument("--int8", action="store_true", help="also write the ONNX graphs with weights in 8 bits")
    parser.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        default=[],
        metavar="JSON",
        help="metrics.json of sdr test for the model card, one per training seed",
    )
    parser.add_argument(
        "--data", metavar="YAML", help="data whose test split the recall of the ONNX graphs is measured on"
    )
    parser.add_argument(
        "--wandb",
        action="store_true",
        help="also log the folder to the W&B run of the training, as an artifact of type model",
    )
    return parser


def run(arguments: list[str]) -> int:
    """Export a model; see ``sdr export --help``.

    Raises:
        ValueError: there is no such model, a file is missing or malformed, or the output exists.
    """
    options, rest = parser().parse_known_args(arguments)
    if rest and options.data is None:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if options.format != "onnx" and (options.int8 or options.data is not None):
        raise ValueError("--int8 and --data are for --format onnx: add it, or leave them out")
    from sdr_lightning.configure import build_data
    from sdr_lightning.retrieval.artifact import log_model, tracking
    from sdr_lightning.retrieval.card import model_card
    from sdr_lightning.retrieval.export import export
    from sdr_lightning.retrieval.loading import load, run_files

    data = None if options.data is None else build_data(["--data", options.data, *rest])
    configuration, _ = run_files(options.model)
    tracked = tracking(configuration.parent) if options.wandb else None
    model = load(options.model, device="cpu")
    card = model_card(configuration.parent, options.output.name, options.metrics)
    onnx = partial(_onnx, model, options.int8, data) if options.format == "onnx" else None
    export(model, options.output, card, onnx)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 2**20:.1f} MiB; sdr_lightning.load({str(options.output)!r}) reads it")
    if tracked is not None:
        try:
            print(f"logged to W&B as {log_model(tracked, options.output)}")
        except ValueError as error:
            raise ValueError(
                f"{error}; {options.output} is written: wandb artifact put --type model logs it later"
            ) from error
    return 0


def _onnx(model: Retriever, int8: bool, data: RetrievalDataModule | None, folder: Path) -> None:
    from sdr_lightning.retrieval.onnx import export_onnx, quantize, recalls

    for parity in export_onnx(model, folder):
        cosine = "" if parity.cosine != parity.cosine else f", least cosine {parity.cosine:.7f}"
        print(f"{parity.graph}: largest difference from torch {parity.difference:.1e}{cosine}")
    if int8:
        quantize(folder)
    if data is not None:
        measured = recalls(model, folder, data)
        table = Table("", *measured, title="Recall on the test split, percent")
        for key in _RECALLS:
            table.add_row(key, *(f"{metrics[key]:.2f}" for metrics in measured.values()))
        Console().print(table)
