"""Samplers of the rows that each process reads at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from sdr_lightning.data.datasets import Draw

EpochOrder = Callable[[int, Tensor, int], Tensor]
"""Maps epoch, random permutation of the rows and global batch size to the order of an epoch."""


class TrainingSampler(Sampler[Draw]):
    """Shuffled global batches, divided over the processes.

    The order depends on seed, epoch and ``epoch_order`` only. Process r of W takes every W-th row of each global batch, so the
    global batches are the same for any number of processes. An incomplete last batch is dropped.

    Args:
        size: number of rows.
        batch_size: *global* batch size.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes.
        epoch_order: maps the random permutation of an epoch to its order; None for the permutation itself.

    Attributes:
        first_step: first step of the next iteration.
        resumed_order: order of the next iteration when training resumes within an epoch; None otherwise.
        order: (n,) order of the current epoch if ``epoch_order`` changed the permutation; None otherwise.

    Raises:
        ValueError: the batch size is larger than the data, or not a multiple of the number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        epoch_order: EpochOrder | None = None,
    ) -> None:
        if batch_size > size:
            raise ValueError(
                f"the batch size {batch_size} is larger than the {size} training items: lower data.init_args.batch_size"
            )
        if batch_size % world_size:
            raise ValueError(
                f"the global batch size {batch_size} cannot be divided over {world_size} processes: "
                f"use a multiple of {world_size}"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch_order = epoch_order
        self.epoch = 0
        self.first_step = 0
        self.resumed_order: NDArray[np.int64] | None = None
        self.order: NDArray[np.int64] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        permutation = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        self.order, self.resumed_order = self.resumed_order, None
        if self.first_step == 0 and self.epoch_order is not None:  # within an epoch it was chosen before
            self.order = self._checked_order(self.epoch_order, permutation)
        order = permutation if self.order is None else self.order
        for step in range(self.first_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Draw(self.epoch, batch[self.rank :: self.world_size])

    def _checked_order(self, epoch_order: EpochOrder, permutation: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the order of the epoch, or None if it equals the permutation.

        Raises:
            ValueError: too few rows, rows out of range, or another dtype.
        """
        found = epoch_order(self.epoch, torch.from_numpy(permutation), self.batch_size)
        needed = len(self) * self.batch_size
        if found.dtype != torch.int64 or found.ndim != 1 or len(found) < needed:
            raise ValueError(
                f"epoch_order must return at least {needed} int64 rows, got {tuple(found.shape)} {found.dtype}: an epoch keeps "
                "its number of steps, so repeat pairs"
            )
        order = found[:needed].numpy()
        if order.min() < 0 or order.max() >= self.size:
            raise ValueError(
                f"epoch_order must return rows from 0 to {self.size - 1}, got {order.min()} to {order.max()}"
            )
        return None if np.array_equal(order, permutation[:needed]) else order


class OrderedSampler(Sampler[Draw]):
    """All rows in order, in whole batches; process r of W takes every W-th batch.

    Args:
        size: number of rows.
        batch_size: rows per batch; the last batch may have fewer.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: fewer batches than processes.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if -(-size // batch_size) < world_size:
            raise ValueError(
                f"{size} pairs in batches of {batch_size} cannot be shared by {world_size} processes: lower "
                "data.init_args.batch_size"
            )
        self.batches = [np.arange(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
        self.batches = self.batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Draw]:
        yield from (Draw(0, rows) for rows in self.batches)


class EvaluationSampler(Sampler[Draw]):
    """Every row exactly once over all processes, without padding to equal numbers of rows.

    Args:
        rows: (n,) the rows.
        batch_size: batch size per process.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: fewer rows than processes.
    """

    def __init__(self, rows: NDArray[np.int64], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(rows) < world_size:
            raise ValueError(
                f"{len(rows)} items to evaluate cannot be shared by {world_size} processes: use at most {len(rows)}"
            )
        self.rows = rows[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, len(self.rows), self.batch_size):
            yield Draw(0, self.rows[start : start + self.batch_size])
