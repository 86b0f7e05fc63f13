"""Features of whole splits: teachers' banks, and what frozen towers say, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import extract
from sdr_lightning.identity import sha256


def split_bank(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device) -> FeatureBank:
    """A tower's features of one split, imbalance included.

    A frozen tower's features are kept in the data module's cache, under a name that the tower's weights and the items'
    contents decide, and found there the next time.

    Args:
        tower: image or text tower.
        data: the data module.
        name: which split.
        device: where to compute.

    Returns:
        The bank over the split's images or captions.
    """
    split, modality = data.split(name), tower.modality
    ids, content = split.ids(modality), split.content(modality)
    file: Path | None = None
    if tower.frozen:
        key = sha256(tower.fingerprint(), "\n".join(ids), content.tobytes(), split.input_description(modality))
        file = data.cache / f"{modality}-{key[:24]}.safetensors"
        if file.is_file():
            return FeatureBank.load(file, modality)
    bank = extract(tower, data.items(name, modality), ids, content, device)
    if file is not None:
        bank.save(file)
    return bank


def extract_bank(tower: Tower, data: RetrievalDataModule, splits: Sequence[Split], device: torch.device) -> FeatureBank:
    """Run a teacher over splits as a student sees them, imbalance included.

    Args:
        tower: the teacher.
        data: the *student's* data module; its imbalance touches the training split.
        splits: which splits.
        device: where to compute.

    Returns:
        One bank over the items of all the splits.
    """
    banks = [split_bank(tower, data, name, device) for name in splits]
    return FeatureBank(
        tower.modality,
        [item for bank in banks for item in bank.ids],
        np.concatenate([bank.content for bank in banks]),
        torch.cat([bank.features for bank in banks]),
        banks[0].source,
    )
