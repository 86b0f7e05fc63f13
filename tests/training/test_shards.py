"""Training from shards continues exactly, with a method that measures all pairs before each epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdr_lightning.data.shards.stream import StreamLoader
from sdr_lightning.data.shards.writing import write_shards
from tests.training.ranks import run_ranks
from tests.training.resuming import assert_continues_from, train
from tests.training.shard_ranks import start
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, SCENES

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:.*dirpath has changed")]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(SCENES, tmp_path / "shards", 5, {}, lambda *_: None)
    return tmp_path / "shards"


def test_training_from_shards_continues_exactly(shards: Path, tmp_path: Path) -> None:
    """Within epochs and at their ends."""
    _, data = start(shards)
    data.split("train")
    assert isinstance(data.train_dataloader(), StreamLoader)
    assert_continues_from([2, 5, 7], lambda: start(shards), tmp_path / "runs", max_epochs=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_with_workers_equal_one_and_continue_exactly(shards: Path, tmp_path: Path) -> None:
    """Processes with a worker, continued by processes without."""
    alone = train(*start(shards), tmp_path / "alone", max_epochs=2)
    for result in run_ranks(tmp_path, 2, ["3", "7"], "tests.training.shard_ranks", timeout=550):
        for name, value in alone.items():
            torch.testing.assert_close(result["whole"][name], value, rtol=0, atol=1e-5)
            assert torch.equal(result["3"][name], result["whole"][name])
            assert torch.equal(result["7"][name], result["whole"][name])
