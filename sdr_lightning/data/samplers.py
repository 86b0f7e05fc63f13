"""Which rows a rank sees, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from sdr_lightning.data.datasets import Draw


class TrainingSampler(Sampler[Draw]):
    """Shuffled global batches, divided over the ranks.

    The order is a function of seed and epoch alone, and rank r of W takes every W-th row of each global batch, so the
    union over ranks is the same at any world size. The incomplete last batch of an epoch is left out. ``first_step`` is the
    step that iteration starts at.

    Args:
        size: number of rows.
        batch_size: rows of a *global* batch.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ValueError: a batch larger than the data, or one that the ranks cannot share evenly.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
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
        self.epoch = 0
        self.first_step = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for step in range(self.first_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield Draw(self.epoch, batch[self.rank :: self.world_size])


class EvaluationSampler(Sampler[Draw]):
    """Every row exactly once over all ranks, in batches; nothing is repeated to even out the ranks.

    Args:
        rows: (n,) the rows.
        batch_size: rows of a batch of one rank.
        rank: of this process.
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
