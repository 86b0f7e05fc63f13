"""Captions of the same text, of two images."""

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
    """The batches, and what the method is told of them."""

    def __init__(self) -> None:
        self.batches: list[RetrievalBatch] = []
        self.pairs: list[Pairs] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.method.register_forward_pre_hook(lambda _, given: self.pairs.append(given[0]))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


@pytest.mark.parametrize("by_text", [False, True])
def test_pairs_with_the_same_caption_are_positives_where_it_is_asked_for(by_text: bool) -> None:
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
    same_text = sum(  # those that are missing, for one
        captions[i] == captions[j] and images[i] != images[j] for i in range(60) for j in range(60)
    )
    assert same_text > 0  # or this data tells nothing
    assert torch.equal(positives(pairs.image_index, pairs.image_index), torch.tensor(expected))


def test_an_unknown_word() -> None:
    with pytest.raises(ValueError, match="positives is image or image_or_text, got 'text'"):
        student(positives="text")
