"""Loaders of whole batches, one of which continues in mid-epoch."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from sdr_lightning.data.datasets import BatchDataset, Draw
from sdr_lightning.data.samplers import TrainingSampler
from sdr_lightning.types import RetrievalBatch, UnimodalBatch

Loader = DataLoader[RetrievalBatch | UnimodalBatch]


class BatchLoader(Loader):
    """Hands out what a data set makes of each draw of a sampler.

    It has a generator of its own, so that going over data leaves torch's alone and does not change what a model draws.

    Args:
        dataset: asked for a batch at a time.
        sampler: asks for whole batches.
        workers: worker processes; 0 reads in the training process.
    """

    def __init__(self, dataset: BatchDataset, sampler: Sampler[Draw], workers: int) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_as_it_is,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
            worker_init_fn=_leave_signals_to_the_main_process,
        )


class ResumableLoader(BatchLoader):
    """Knows how many batches of the epoch it has handed out, and can go on from there.

    Attributes:
        limit: how many batches of an epoch are asked for, where that is fewer than there are.
    """

    sampler: TrainingSampler

    def __init__(self, dataset: BatchDataset, sampler: TrainingSampler, workers: int) -> None:
        super().__init__(dataset, sampler, workers)
        self.limit = math.inf
        self._position = 0
        self._first_step = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is read before the first batch is asked for, when Lightning has set the epoch.
        self._position, self._first_step = self._first_step, 0
        self.sampler.first_step = self._position
        for batch in super().__iter__():
            self._position += 1
            yield batch

    @property
    def exhausted(self) -> bool:
        """Whether the epoch's last batch has been handed out."""
        return self._position >= min(len(self.sampler), self.limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and the order of the epoch if it is not the sampler's own.

        Lightning keeps it in checkpoints.
        """
        if self.exhausted:
            return {"position": 0}
        order = self.sampler.order
        chosen = {} if order is None else {"order": torch.from_numpy(order)}
        return {"position": self._position, **chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next epoch start where the state was taken."""
        self._first_step = state["position"]
        order = state.get("order")
        self.sampler.resumed_order = None if order is None else order.numpy()


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ctrl-C and SIGTERM often go to all processes of a job; the main one saves its work and then ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch
