"""Collectives: gathering with the single-process gradient, and tables of embeddings."""

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
    """Concatenate the tensors of all W processes, so that each computes the same loss over the global batch.

    Args:
        module: attached to a trainer.
        tensor: (B, ...), the same shape in all processes, or None.
        how: ``exact``: gradient flows to the slices of all processes; averaged by DDP, it equals that of one process with the
            global batch. ``albef``: gradient flows only to the slice of this process, as in ALBEF and the public code;
            averaged by DDP, it is 1 / W of the exact one.

    Returns:
        (W B, ...) in order of rank; the tensor itself in a single process.
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
    """Concatenate the encoder outputs of all processes with the exact gradient; pad captions to the longest."""
    if module.trainer.world_size == 1:
        return encoded
    tokens, mask = encoded.tokens, encoded.mask
    if tokens is not None and mask is not None:
        longest = int(gather(module, torch.tensor([tokens.shape[1]], device=tokens.device)).max())
        more = longest - tokens.shape[1]
        tokens, mask = F.pad(tokens, (0, 0, 0, more)), F.pad(mask, (0, more))
    return Encoded(gather(module, encoded.embedding), gather(module, tokens), gather(module, mask))


def gather_objects(trainer: pl.Trainer, mine: S) -> list[S]:
    """Return the objects of all processes, by rank. Must be called in all processes, outside training steps."""
    if trainer.world_size == 1:
        return [mine]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, mine)
    return found


def in_first_process(trainer: pl.Trainer, action: Callable[[], object]) -> None:
    """Run an action in the first process while the others wait without timeout. Must be called in all processes.

    Raises:
        ValueError: in all processes, if the action raised it or an ``OSError``.
        Stopped: in all processes, if the action was stopped by a signal. Waiting processes defer signals.
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
    """Collects embeddings over batches and processes, and sorts them by row.

    Each row must be added exactly once; rows that a sampler repeats or leaves out raise an error.
    """

    full_state_update = False
    index: list[Tensor]
    embeddings: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, embeddings: Tensor) -> None:
        """Add a batch.

        Args:
            index: (B,) int64 rows.
            embeddings: (B, d); detached and converted to float32.
        """
        self.index.append(index)
        self.embeddings.append(embeddings.detach().float())

    def table(self, size: int) -> Tensor:
        """Call :meth:`compute` and reset.

        Args:
            size: N, the expected number of rows.

        Returns:
            (N, d) float32 on the CPU.

        Raises:
            ValueError: rows are missing or were added twice.
        """
        embeddings: Tensor = self.compute()
        self.reset()
        if len(embeddings) != size:
            raise ValueError(f"evaluation needs {size} rows, got {len(embeddings)}")
        return embeddings.cpu()

    def compute(self) -> Tensor:
        """Return the (N, d) float32 embeddings of all processes, in order of rows.

        Raises:
            ValueError: rows below the greatest one are missing, or rows were added twice.
        """
        index, embeddings = dim_zero_cat(self.index), dim_zero_cat(self.embeddings)
        order = index.argsort()
        if not torch.equal(index[order], torch.arange(len(index), device=index.device)):
            raise ValueError(
                f"evaluation needs every row once, got {len(index)} items with rows up to {int(index.max())}"
            )
        return embeddings[order]
