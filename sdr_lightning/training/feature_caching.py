"""Callback that computes the features of frozen towers and teachers once before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import lightning.pytorch as pl

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.head import HeadTower
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.paths import expand
from sdr_lightning.training.checkpoints.student import load_frozen_towers, read_student
from sdr_lightning.training.distributed.collectives import in_first_process
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.types import Modality


class CacheFeatures(pl.Callback):
    """Encodes the data once by each frozen tower and by each teacher that the method needs.

    Features of frozen towers replace pixels and tokens in every split of the stage, unless a fusion encoder reads the
    tower's tokens. A teacher that trains a head on a frozen tower (``HeadTower``) gets the features of that tower, unless its
    images are augmented. Teacher features of the training split are added to each pair. Both are cached by the data module; the
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
            ValueError: teachers were given for a module that is no student, the tokenizer does not fit a text tower, a
                bank belongs to other data, or the checkpoint to start from cannot be used.
        """
        if not isinstance(pl_module, RetrievalModule):
            if self.teachers:
                raise ValueError(
                    f"--{min(self.teachers)}_teacher is for students, and the model is a {type(pl_module).__name__}"
                )
            if isinstance(pl_module, TeacherModule) and stage == "fit":
                _cache_backbone(trainer, pl_module)
            return
        data = pl_module.data
        if stage == "fit":
            for modality in pl_module.teachers:
                if modality in self.teachers:
                    data.split("train").attach_teacher(_features(trainer, data, self.teachers[modality](), "train"))
            if pl_module.start_from is not None:  # the module loads the rest in its own setup, which follows
                load_frozen_towers(read_student(Path(expand(pl_module.start_from))), pl_module.encoder)
        pl_module.cache_features = partial(_cache_towers, trainer, pl_module)
        pl_module.cache_features()


def _cache_towers(trainer: pl.Trainer, module: RetrievalModule) -> None:
    for name, split in module.data.splits.items():
        for tower in module.encoder.cached_towers().values():
            split.uncache(tower.modality)  # a tower would return the features of the earlier weights as they are
            split.cache(_features(trainer, module.data, tower, name))


def _cache_backbone(trainer: pl.Trainer, module: TeacherModule) -> None:
    """Return the features of a teacher's frozen backbone instead of the training items, unless these are augmented."""
    data: RetrievalDataModule = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(module.tower, HeadTower) and data.augmentation == "none":
        data.split("train").cache(_features(trainer, data, module.tower.backbone, "train"))


def _features(trainer: pl.Trainer, data: RetrievalDataModule, tower: Tower, name: Split) -> FeatureBank:
    bank = partial(split_bank, tower, data, name, trainer.strategy.root_device)
    in_first_process(trainer, bank)
    return bank()
