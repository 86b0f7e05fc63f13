"""Everything that crosses processes: gathering with the single-process gradient, and tables of embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.distributed import _InfiniteBarrier
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sdr_lightning.training.checkpoints.interruption import Interruption, Stopped
from sdr_lightning.types import Encoded

T = TypeVar("T", Tensor, Tensor | None)
S = TypeVar("S")


Gather = Literal["exact", "albef"]


def gather(module: pl.LightningModule, tensor: T, how: Gather = "exact") -> T:
    """Concatenate the ranks' tensors; every rank then computes the same loss over the global batch.

    Args:
        module: attached to a trainer.
        tensor: (B, ...) of this rank, the same shape on all, or None.
        how: ``exact``: gradients flow back to every rank's slice, so that, after DDP's averaging, they are those of one
            process with the whole batch. ``albef``: to this rank's slice alone, as in the public code and in ALBEF, whose
            averaged gradients are 1 / W of that.

    Returns:
        (W B, ...) ordered by rank; the tensor itself when there is one process.
    """
    if tensor is None or module.trainer.world_size == 1:
        return tensor
    with_gradient = tensor.requires_grad and how == "exact"
    gathered = module.all_gather(tensor, sync_grads=with_gradient)
    assert isinstance(gathered, Tensor)
    if tensor.requires_grad and not with_gradient:
        rank = module.trainer.global_rank
        gathered = torch.cat([gathered[:rank], tensor.unsqueeze(0), gathered[rank + 1 :]])
    return gathered.flatten(0, 1)


def gather_encoded(module: pl.LightningModule, encoded: Encoded) -> Encoded:
    """Concatenate what the ranks' encoders say, with the exact gradient; shorter captions are padded to the longest."""
    if module.trainer.world_size == 1:
        return encoded
    tokens, mask = encoded.tokens, encoded.mask
    if tokens is not None and mask is not None:
        longest = int(gather(module, torch.tensor([tokens.shape[1]], device=tokens.device)).max())
        more = longest - tokens.shape[1]
        tokens, mask = F.pad(tokens, (0, 0, 0, more)), F.pad(mask, (0, more))
    return Encoded(gather(module, encoded.embedding), gather(module, tokens), gather(module, mask))


def gather_objects(trainer: pl.Trainer, mine: S) -> list[S]:
    """What each process has, by rank; called in all of them, outside training steps."""
    if trainer.world_size == 1:
        return [mine]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    return found


def in_first_process(trainer: pl.Trainer, action: Callable[[], object]) -> None:
    """Let the first process do something, however long it takes, while the others wait; called in all of them.

    Raises:
        ValueError: in every process, where the action raised it or an ``OSError``: none is left waiting.
        Stopped: in every process, where the action was stopped by a signal, which the others do not act on while they wait.
    """
    failure: ValueError | Stopped | None = None
    with contextlib.nullcontext() if trainer.is_global_zero else Interruption():
        with _InfiniteBarrier() as barrier:
            if trainer.is_global_zero:
                try:
                    action()
                except (ValueError, OSError) as error:
                    failure = ValueError(str(error))
                except Stopped as stopped:
                    failure = stopped
            barrier()
        failure = trainer.strategy.broadcast(failure)
        if failure is not None:
            raise failure


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
