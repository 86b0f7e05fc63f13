"""Features of whole splits: teachers' banks, and what frozen towers say, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank, Modality
from sdr_lightning.features.extract import extract
from sdr_lightning.identity import sha256


def split_bank(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device) -> FeatureBank:
    """A tower's features of one split, imbalance included.

    A frozen tower's features are kept in the data module's cache, under a name that the tower's weights and the items'
    contents decide. What was kept of the same items under another imbalance is used again: only items that are in another
    state than ever before are encoded.

    Args:
        tower: image or text tower.
        data: the data module.
        name: which split.
        device: where to compute.

    Returns:
        The bank over the split's images or captions, by row.
    """
    split, modality = data.split(name), tower.modality
    ids, content = split.ids(modality), split.content(modality)
    if not tower.frozen:
        rows = np.arange(len(ids))
        return extract(tower, data.items(name, modality), rows, ids, content, device)
    family = f"{modality}-{sha256(tower.fingerprint(), data.source.name, name, split.input_description(modality))[:24]}"
    file = data.cache / f"{family}-{sha256(chr(10).join(ids), content.tobytes())[:24]}.safetensors"
    if file.is_file():
        return FeatureBank.load(file, modality)
    parts = list(_kept(data, family, modality, ids, content))
    known = {item for part in parts for item in part.ids}
    rows = np.array([row for row, item in enumerate(ids) if item not in known], dtype=np.int64)
    if len(rows):
        parts.append(extract(tower, data.items(name, modality, rows=rows), rows, ids, content, device))
    found = FeatureBank.union(parts)
    bank = FeatureBank(modality, list(ids), content, found.rows(ids, content), found.source)
    bank.save(file)
    return bank


def extract_bank(tower: Tower, data: RetrievalDataModule, splits: Sequence[Split], device: torch.device) -> FeatureBank:
    """Run a teacher over splits as a student sees them, imbalance included.

    Args:
        tower: the teacher.
        data: the *student's* data module.
        splits: which splits.
        device: where to compute.

    Returns:
        One bank over the items of all the splits.
    """
    return FeatureBank.union([split_bank(tower, data, name, device) for name in splits])


def _kept(
    data: RetrievalDataModule, family: str, modality: Modality, ids: Sequence[str], content: NDArray[np.int64]
) -> Iterator[FeatureBank]:
    """What the cache holds of items as they are now, each item once."""
    wanted = dict(zip(ids, content.tolist(), strict=True))
    for file in sorted(data.cache.glob(f"{family}-*.safetensors")):
        part = FeatureBank.load(file, modality).having(
            list(wanted), np.fromiter(wanted.values(), dtype=np.int64, count=len(wanted))
        )
        if len(part.ids):
            yield part
        for item in part.ids:
            del wanted[item]
        if not wanted:
            return
