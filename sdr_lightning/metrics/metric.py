"""The evaluation as a torchmetrics ``Metric``, accumulated over batches and processes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sdr_lightning.metrics.evaluation import evaluate
from sdr_lightning.metrics.relevance import Relevance


class ImageTextRetrieval(Metric):
    """Collects embeddings by row and evaluates them in :meth:`compute`.

    An item that occurs several times, e.g. as padding of a distributed sampler, counts once. The result equals that of
    :func:`~sdr_lightning.metrics.evaluation.evaluate`, independent of batches, their order and the number of processes.

    Args:
        text_image_index: (C,) integers, the row of the image of each caption; every image has a caption.
        relevance: graded relevance of the same images and captions; no NDCG when None.
        options: options of :func:`~sdr_lightning.metrics.evaluation.evaluate`, such as ``ties`` or ``recall_at``.

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
        """Add a batch of one modality.

        Args:
            rows: (B,) int64 rows of the images or captions.
            embeddings: (B, d), stored in fp32.
            modality: "image" or "text".

        Raises:
            ValueError: the modality is unknown, the shapes do not match, or a row is out of range.
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
        """Evaluate the embeddings of all processes.

        Raises:
            ValueError: embeddings are missing; or as :func:`~sdr_lightning.metrics.evaluation.evaluate`.
        """
        images, texts = self._table("image"), self._table("text")
        return evaluate(images, texts, self.text_image_index.to(images.device), self.relevance, **self.options)

    def _size(self, modality: str) -> int:
        return int(self.text_image_index.max()) + 1 if modality == "image" else len(self.text_image_index)

    def _table(self, modality: str) -> Tensor:
        size, rows = self._size(modality), getattr(self, f"{modality}_rows")
        if not len(rows):
            raise ValueError(f"found no {modality} embeddings: call update before compute")
        rows, embeddings = dim_zero_cat(rows), dim_zero_cat(getattr(self, f"{modality}_embeddings"))
        present = torch.zeros(size, dtype=torch.bool, device=rows.device)
        present[rows] = True
        if not present.all():
            missing = torch.nonzero(~present).flatten()
            raise ValueError(
                f"{len(missing)} of {size} {modality} embeddings are missing, the first is row {int(missing[0])}: call update "
                "with all rows before compute"
            )
        table = embeddings.new_empty(size, embeddings.shape[1])
        table[rows] = embeddings
        return table
