"""Data loaders of whole batches, one of which resumes within an epoch."""

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
    """Loads one batch per draw of the sampler.

    It uses its own random generator, so that iterating does not change torch's global one.

    Args:
        dataset: returns a batch per draw.
        sampler: yields one draw per batch.
        workers: number of worker processes; 0 to read in the main process.
    """

    dataset: BatchDataset

    def __init__(self, dataset: BatchDataset, sampler: Sampler[Draw], workers: int) -> None:
        super().__init__(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=_identity,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
            worker_init_fn=_ignore_signals,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers and self.dataset.reads_texts:
            self.dataset.split.share_tokens()
        return super().__iter__()


class ResumableLoader(BatchLoader):
    """A loader of training batches that can resume within an epoch.

    Attributes:
        limit: maximum number of batches per epoch.
    """

    sampler: TrainingSampler

    def __init__(self, dataset: BatchDataset, sampler: TrainingSampler, workers: int) -> None:
        super().__init__(dataset, sampler, workers)
        self.limit = math.inf
        self._position = 0
        self._first_step = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that nothing is read before Lightning has set the epoch.
        self._position, self._first_step = self._first_step, 0
        self.sampler.first_step = self._position
        for batch in super().__iter__():
            self._position += 1
            yield batch

    @property
    def exhausted(self) -> bool:
        """Whether the last batch of the epoch was returned."""
        return self._position >= min(len(self.sampler), self.limit)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and its order if a method changed it. Lightning saves it in checkpoints."""
        if self.exhausted:
            return {"position": 0}
        order = self.sampler.order
        chosen = {} if order is None else {"order": torch.from_numpy(order)}
        return {"position": self._position, **chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration at the saved position."""
        self._first_step = state["position"]
        order = state.get("order")
        self.sampler.resumed_order = None if order is None else order.numpy()


def _ignore_signals(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM in workers; the main process saves its work first and then stops them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    return batch
