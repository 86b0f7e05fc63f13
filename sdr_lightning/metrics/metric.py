"""The evaluation as a torchmetrics ``Metric``: for any training loop, over batches and processes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sdr_lightning.metrics.evaluation import evaluate
from sdr_lightning.metrics.relevance import Relevance


class ImageTextRetrieval(Metric):
    """Collects embeddings by row and evaluates them when all are there.

    Rows are assigned, never summed: an item that a sampler repeats to even out processes counts once. The result is that
    of :func:`~sdr_lightning.metrics.evaluation.evaluate`, whatever the batches, their order and the number of processes.

    Args:
        text_image_index: (C,) integers, the row of the image of each caption; every image has one.
        relevance: of the same images and captions; without it there is no NDCG.
        options: of :func:`~sdr_lightning.metrics.evaluation.evaluate`, such as ``ties`` or ``recall_at``.

    >>> metric = ImageTextRetrieval(torch.arange(3))
    >>> metric.update(torch.arange(3), torch.eye(3), "image")
    >>> metric.update(torch.tensor([2, 0, 1]), torch.eye(3)[[2, 0, 1]], "text")
    >>> metric.compute()["rsum"]
    600.0
    """

    full_state_update = False
    image_rows: list[Tensor]
    image_embeddings: list[Tensor]
    text_rows: list[Tensor]
    text_embeddings: list[Tensor]

    def __init__(self, text_image_index: Tensor, relevance: Relevance | None = None, **options: Any) -> None:
        super().__init__()
        self.text_image_index, self.relevance, self.options = text_image_index.cpu(), relevance, options
        for name in ("image_rows", "image_embeddings", "text_rows", "text_embeddings"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, embeddings: Tensor, modality: Literal["image", "text"]) -> None:
        """Take a batch of one modality.

        Args:
            rows: (B,) int64, which images or captions.
            embeddings: (B, d), kept in fp32.
            modality: which of the two.

        Raises:
            ValueError: another modality, shapes that do not fit, or rows out of range.
        """
        if modality not in ("image", "text"):
            raise ValueError(f"modality must be 'image' or 'text', not {modality!r}")
        if embeddings.ndim != 2 or rows.shape != (len(embeddings),) or rows.is_floating_point():
            raise ValueError(
                f"expected integer rows (B,) and embeddings (B, d), got {tuple(rows.shape)} {rows.dtype} and "
                f"{tuple(embeddings.shape)}"
            )
        size = self._size(modality)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise ValueError(f"{modality} rows must be in [0, {size}), found {int(rows.min())} to {int(rows.max())}")
        getattr(self, f"{modality}_rows").append(rows.long())
        getattr(self, f"{modality}_embeddings").append(embeddings.detach().float())

    def compute(self) -> dict[str, float]:
        """Everything, over all processes.

        Raises:
            ValueError: a row that never came; and as :func:`~sdr_lightning.metrics.evaluation.evaluate`.
        """
        images, texts = self._table("image"), self._table("text")
        return evaluate(images, texts, self.text_image_index.to(images.device), self.relevance, **self.options)

    def _size(self, modality: str) -> int:
        return int(self.text_image_index.max()) + 1 if modality == "image" else len(self.text_image_index)

    def _table(self, modality: str) -> Tensor:
        size, rows = self._size(modality), getattr(self, f"{modality}_rows")
        if not len(rows):
            raise ValueError(f"no {modality} embeddings came: call update before compute")
        rows, embeddings = dim_zero_cat(rows), dim_zero_cat(getattr(self, f"{modality}_embeddings"))
        came = torch.zeros(size, dtype=torch.bool, device=rows.device)
        came[rows] = True
        if not came.all():
            missing = torch.nonzero(~came).flatten()
            raise ValueError(
                f"{len(missing)} of {size} {modality} embeddings never came, the first is row {int(missing[0])}"
            )
        table = embeddings.new_empty(size, embeddings.shape[1])
        table[rows] = embeddings
        return table
