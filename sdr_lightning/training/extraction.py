"""A teacher's bank for a student's data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import extract


def extract_bank(
    tower: Tower, data: RetrievalDataModule, splits: Sequence[Split], device: torch.device
) -> FeatureBank:
    """Run a teacher over splits as a student sees them, imbalance included.

    Args:
        tower: the teacher.
        data: the *student's* data module; its imbalance touches the training split.
        splits: which splits.
        device: where to compute.

    Returns:
        One bank over the items of all the splits.
    """
    modality = tower.modality
    banks = []
    for name in splits:
        split = data.split(name)
        loader = data.items(name, modality)
        banks.append(extract(tower, modality, loader, split.ids(modality), split.content(modality), device))
    return FeatureBank(
        modality,
        [item for bank in banks for item in bank.ids],
        np.concatenate([bank.content for bank in banks]),
        torch.cat([bank.features for bank in banks]),
        banks[0].source,
    )
