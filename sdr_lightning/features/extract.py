"""Run an encoder over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.progress import progress
from sdr_lightning.types import UnimodalBatch

OnBatch = Callable[[Tensor, Tensor], None]
"""Callback with the (B,) int64 rows of a batch and their (B, D) features on the CPU."""


@torch.no_grad()
def encode(
    encoder: Callable[[Any], Tensor],
    batches: Iterable[UnimodalBatch],
    rows: NDArray[np.int64],
    device: torch.device,
    description: str = "",
    on_batch: OnBatch | None = None,
) -> Tensor:
    """Encode some items of a split.

    Args:
        encoder: maps a batch of inputs to (B, D) features.
        batches: batches that together contain all rows.
        rows: (n,) int64 rows of the split.
        device: device of the encoder.
        description: label of the progress; none is shown when empty.
        on_batch: callback after each batch.

    Returns:
        (n, D) float32 on the CPU, in the order of the rows. No gradient.

    Raises:
        ValueError: a row is in no batch.
    """
    features: Tensor | None = None
    place = torch.empty(int(rows.max()) + 1, dtype=torch.int64)
    place[torch.from_numpy(rows)] = torch.arange(len(rows))
    seen = torch.zeros(len(rows), dtype=torch.bool)
    with progress(description, len(rows), console=None if description else Console(quiet=True)) as advance:
        for batch in batches:
            inputs = batch.inputs
            inputs = inputs.to(device) if isinstance(inputs, Tensor) else type(inputs)(*(t.to(device) for t in inputs))
            encoded = encoder(inputs).float().cpu()
            if features is None:
                features = encoded.new_empty(len(rows), encoded.shape[1])
            features[place[batch.rows]] = encoded
            seen[place[batch.rows]] = True
            advance(len(batch.rows))
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
        tower: image or text tower; used in evaluation mode, then restored to its previous mode and device.
        batches: batches that together contain all rows.
        rows: (n,) int64 rows of the split to encode.
        ids: N ids of the split, by row.
        content: (N,) int64 content hashes, by row.
        device: device of the computation.
        on_batch: callback after each batch.

    Returns:
        The bank of n items, with the tower's fingerprint.

    Raises:
        ValueError: a row is in no batch, or a feature is not finite.
    """
    was_training = tower.training
    home = next((weights.device for weights in tower.parameters()), device)  # a tower may have no weights
    source = tower.fingerprint()
    tower.to(device).eval()
    try:
        features = encode(tower, batches, rows, device, f"{tower.modality} features", on_batch)
    finally:
        tower.to(home).train(was_training)
    return FeatureBank(tower.modality, [ids[row] for row in rows], content[rows], features, source)
