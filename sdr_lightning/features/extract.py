"""Run an encoder over a split, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.types import UnimodalBatch

OnBatch = Callable[[Tensor, Tensor], None]
"""Takes the (B,) int64 rows of a batch and their (B, D) features on the CPU."""


@torch.no_grad()
def encode(
    encoder: Callable[[Any], Tensor],
    batches: Iterable[UnimodalBatch],
    rows: NDArray[np.int64],
    device: torch.device,
    description: str = "",
    on_batch: OnBatch | None = None,
) -> Tensor:
    """Encode some items of a split, each once.

    Args:
        encoder: a batch of inputs in, (B, D) out.
        batches: batches that together hold each of the rows.
        rows: (n,) rows of the split.
        device: where the encoder lives.
        description: shown beside a progress bar of items with the time left; no bar when empty.
        on_batch: called after each batch.

    Returns:
        (n, D) float32 on the CPU, in the order of the rows.

    Raises:
        ValueError: rows that no batch held.
    """
    features: Tensor | None = None
    place = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
    place[torch.from_numpy(rows)] = torch.arange(len(rows))
    seen = torch.zeros(len(rows), dtype=torch.bool)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, speed_estimate_period=600, disable=not description) as progress:
        bar = progress.add_task(description, total=len(rows))
        for batch in batches:
            inputs = batch.inputs
            inputs = inputs.to(device) if isinstance(inputs, Tensor) else type(inputs)(*(t.to(device) for t in inputs))
            encoded = encoder(inputs).float().cpu()
            if features is None:
                features = encoded.new_empty(len(rows), encoded.shape[1])
            features[place[batch.rows]] = encoded
            seen[place[batch.rows]] = True
            progress.advance(bar, len(batch.rows))
            if on_batch is not None:
                on_batch(batch.rows, encoded)
    if features is None or not bool(seen.all()):
        raise ValueError(f"{int((~seen).sum())} of {len(rows)} items were not encoded")
    return features


def extract(
    tower: Tower,
    batches: Iterable[UnimodalBatch],
    rows: NDArray[np.int64],
    ids: Sequence[str],
    content: NDArray[np.int64],
    device: torch.device,
    on_batch: OnBatch | None = None,
) -> FeatureBank:
    """Compute a bank of a tower's features.

    Args:
        tower: any image or text tower; used in evaluation mode and left in the mode it was in.
        batches: batches that together hold each of the rows.
        rows: (n,) rows of the split that are wanted.
        ids: N ids of the split, by row.
        content: (N,) int64 hash of each item's content.
        device: where to compute.
        on_batch: called after each batch.

    Returns:
        The bank, keyed by id, with the tower's fingerprint.
    """
    was_training = tower.training
    home = next((weights.device for weights in tower.parameters()), device)  # pooling alone has no weights
    source = tower.fingerprint()
    tower.to(device).eval()
    try:
        features = encode(tower, batches, rows, device, f"{tower.modality} features", on_batch)
    finally:
        tower.to(home).train(was_training)
    return FeatureBank(tower.modality, [ids[row] for row in rows], content[rows], features, source)
