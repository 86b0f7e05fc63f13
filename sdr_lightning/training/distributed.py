"""Everything that crosses processes: gathering with the single-process gradient, and tables of embeddings."""

from __future__ import annotations

from typing import TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

T = TypeVar("T", Tensor, Tensor | None)


def gather(module: pl.LightningModule, tensor: T) -> T:
    """Concatenate the ranks' tensors; every rank then computes the same loss over the global batch.

    Gradients flow back to every rank's slice, so that, after DDP's averaging, they are those of one process with the
    whole batch.

    Args:
        module: attached to a trainer.
        tensor: (B, ...) of this rank, the same B on all, or None.

    Returns:
        (W B, ...) ordered by rank; the tensor itself when there is one process.
    """
    if tensor is None or module.trainer.world_size == 1:
        return tensor
    gathered = module.all_gather(tensor, sync_grads=tensor.requires_grad)
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)


class EmbeddingTable(Metric):
    """Collects (row, embedding) over batches and ranks and puts every embedding into its own row.

    Rows are assigned, never summed, and each must come exactly once: an item that a sampler repeats to even out the
    ranks would be noticed, not counted twice.
    """

    full_state_update = False
    index: list[Tensor]
    embeddings: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, embeddings: Tensor) -> None:
        """Take a batch.

        Args:
            index: (B,) int64 rows.
            embeddings: (B, d).
        """
        self.index.append(index)
        self.embeddings.append(embeddings.detach().float())

    def table(self, size: int) -> Tensor:
        """:meth:`compute`, and start again.

        Args:
            size: N, the number of rows there must be.

        Returns:
            (N, d) float32 on the CPU.

        Raises:
            ValueError: rows that came twice, or are missing.
        """
        embeddings: Tensor = self.compute()
        self.reset()
        if len(embeddings) != size:
            raise ValueError(f"evaluation needs {size} rows, got {len(embeddings)}")
        return embeddings.cpu()

    def compute(self) -> Tensor:
        """(N, d) float32, the rows of all ranks in order.

        Raises:
            ValueError: rows that came twice, or are missing below the greatest that came.
        """
        index, embeddings = dim_zero_cat(self.index), dim_zero_cat(self.embeddings)
        order = index.argsort()
        if not torch.equal(index[order], torch.arange(len(index), device=index.device)):
            raise ValueError(
                f"evaluation needs every row once, got {len(index)} items with rows up to {int(index.max())}"
            )
        return embeddings[order]
