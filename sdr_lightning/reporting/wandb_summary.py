"""Log the result of a finished training to W&B: best metrics, curves and example queries."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sdr_lightning.configure.lightning_cli import SdrCLI
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.functional.search import top_k
from sdr_lightning.paths import read_json
from sdr_lightning.training.retrieval_module import RetrievalModule

_QUERIES, _RESULTS = 8, 5


def publish(cli: SdrCLI) -> None:
    """Log best metrics, curves and examples of the last validation to the W&B runs of a training, and end the runs."""
    if cli.subcommand != "fit" or not cli.trainer.is_global_zero:
        return
    with cli.tracking():
        for tracked in cli.tracked():
            kept = read_json(cli.run_dir / "results.json", "the results of the training")["training"]["kept"]
            from sdr_lightning.reporting.study_report import draw_run  # imports matplotlib

            pictures = {"curves": draw_run(cli.run_dir)} if kept else {}
            tracked.conclude(kept, pictures, examples(cli.model, cli.datamodule))
    cli.end_tracking()


def examples(module: Any, data: RetrievalDataModule) -> list[list[Any]]:
    """Retrieve captions for images of the last validation.

    Args:
        module: the trained module.
        data: its data.

    Returns:
        A row of headings and one row per query: image (H, W, 3) and the top captions, marked ✓ if they belong to the
        image, else ✗. Empty without validation and for data of image features.
    """
    if not isinstance(module, RetrievalModule) or module.val_embeddings is None or data.image_size is None:
        return []
    image, text = module.val_embeddings
    split = data.split(data.select_on)
    rows = np.linspace(0, len(image) - 1, min(_QUERIES, len(image))).astype(int)
    found = top_k(image[rows], text, _RESULTS)
    table: list[list[Any]] = [["image", *(f"caption {place + 1}" for place in range(found.items.shape[1]))]]
    for row, items in zip(rows.tolist(), found.items, strict=True):
        table.append([split.original(row), *(_marked(split.table.captions, split.caption_image, row, items))])
    return table


def _marked(captions: Any, caption_image: Tensor, row: int, items: Tensor) -> list[str]:
    return [f"{'✓' if caption_image[item] == row else '✗'} {captions[item]}" for item in items.tolist()]
