"""Callback that computes the features of frozen towers and teachers once before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import lightning.pytorch as pl

from sdr_lightning.data.table import Split
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.training.distributed.collectives import in_first_process
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Modality


class CacheFeatures(pl.Callback):
    """Encodes the data once by each frozen tower and by each teacher that the method needs.

    Features of frozen towers replace pixels and tokens in every split of the stage, unless a fusion encoder reads the
    tower's tokens. Teacher features of the training split are added to each pair. Both are cached by the data module; the
    first process writes the cache and all processes read it. Without this callback, frozen towers encode every batch again,
    and teachers need a feature bank.

    Args:
        teachers: functions that build the frozen tower of each teacher. A teacher without one is read from the data
            module's bank.
    """

    def __init__(self, teachers: Mapping[Modality, Callable[[], Tower]] | None = None) -> None:
        self.teachers = dict(teachers or {})

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compute the features, or read them from the cache.

        Raises:
            ValueError: teachers were given for a module that is no student, the tokenizer does not fit a text tower, or a
                bank belongs to other data.
        """
        if not isinstance(pl_module, RetrievalModule):
            if self.teachers:
                raise ValueError(
                    f"--{min(self.teachers)}_teacher is for students, and the model is a {type(pl_module).__name__}"
                )
            return
        data = pl_module.data
        if stage == "fit":
            for modality in pl_module.teachers:
                if modality in self.teachers:
                    data.split("train").attach_teacher(
                        _features(trainer, pl_module, self.teachers[modality](), "train")
                    )
        for name, split in data.splits.items():
            for tower in pl_module.encoder.cached_towers().values():
                split.cache(_features(trainer, pl_module, tower, name))


def _features(trainer: pl.Trainer, module: RetrievalModule, tower: Tower, name: Split) -> FeatureBank:
    bank = partial(split_bank, tower, module.data, name, trainer.strategy.root_device)
    in_first_process(trainer, bank)
    return bank()
