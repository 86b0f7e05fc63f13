"""Training from shards continues exactly, with methods that measure all pairs as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, ShardSource
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.shards.stream import StreamLoader
from sdr_lightning.data.shards.writing import write_shards
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.methods import NCR
from sdr_lightning.training.retrieval_module import RetrievalModule
from tests.training.resuming import assert_continues_from
from tests.training.student import EMBEDDING, LIGHTNINGS_OWN_WARNINGS, SCENES, ImageTower, TextTower

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:The dirpath has changed")]


def test_training_from_shards_continues_exactly(tmp_path: Path) -> None:
    """Within epochs and at their ends, with a state per pair that is measured before each epoch."""
    write_shards(SCENES, tmp_path / "shards", 5, {}, lambda *_: None)

    def start() -> Any:
        torch.manual_seed(0)
        encoder = DualEncoder(ImageTower(), TextTower(), EMBEDDING)
        source = ShardSource(str(tmp_path / "shards"), streams=4, shuffle_buffer=6)
        data = RetrievalDataModule(
            source, SceneTokenizer(), 20, 16, imbalance=Imbalance("mismatch", 0.5), augmentation="weak"
        )
        data.split("train")
        assert isinstance(data.train_dataloader(), StreamLoader)
        return RetrievalModule(encoder, NCR(warmup_epochs=1)), data

    assert_continues_from([2, 3, 4], start, tmp_path / "runs", max_epochs=2)
