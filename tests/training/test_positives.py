"""Equal captions of different images as positives."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.functional.contrastive import positives
from sdr_lightning.types import Pairs, RetrievalBatch
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, scenes, student, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS


class Seen(pl.Callback):
    """Stores the batches and the inputs of the method."""

    def __init__(self) -> None:
        self.batches: list[RetrievalBatch] = []
        self.pairs: list[Pairs] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.method.register_forward_pre_hook(lambda _, given: self.pairs.append(given[0]))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


@pytest.mark.parametrize("by_text", [False, True])
def test_equal_captions_are_positives_with_image_or_text(by_text: bool) -> None:
    data, seen = scenes(batch_size=60, imbalance=Imbalance("missing", 0.3, "text")), Seen()
    options = {"positives": "image_or_text"} if by_text else {}
    module = student({"itc": 1.0}, fusion=False, **options)
    trainer(max_steps=1, limit_val_batches=0, callbacks=[seen]).fit(module, datamodule=data)
    (batch,), (pairs,) = seen.batches, seen.pairs
    table = data.split("train").table
    captions = [table.captions[row] for row in batch.pair_index.tolist()]
    images = batch.image_index.tolist()
    expected = [
        [images[i] == images[j] or (by_text and captions[i] == captions[j]) for j in range(60)] for i in range(60)
    ]
    same_text = sum(  # for example missing captions
        captions[i] == captions[j] and images[i] != images[j] for i in range(60) for j in range(60)
    )
    assert same_text > 0
    assert torch.equal(positives(pairs.image_index, pairs.image_index), torch.tensor(expected))
