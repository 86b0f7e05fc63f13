"""Training from shards by several gloo processes: ``python -m tests.training.shard_ranks FOLDER SIZE RUNS``.

The folder holds ``shards``.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, ShardSource
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.methods import NCR
from sdr_lightning.training.retrieval_module import RetrievalModule
from tests.training.ranks import main
from tests.training.resuming import checkpoint, train
from tests.training.student import EMBEDDING, ImageTower, TextTower


def start(shards: Path, workers: int = 0) -> Any:
    """Return a student whose method measures all pairs before each epoch, and mismatched scenes in shards."""
    torch.manual_seed(0)
    source = ShardSource(str(shards), streams=6, shuffle_buffer=6)
    noise = Imbalance("mismatch", 0.5)
    data = RetrievalDataModule(source, SceneTokenizer(), 12, 16, imbalance=noise, augmentation="weak", workers=workers)
    return RetrievalModule(DualEncoder(ImageTower(), TextTower(), EMBEDDING), NCR(warmup_epochs=1)), data


def one_rank(rank: int, folder: Path, world_size: int, runs: list[str]) -> None:
    """Train two epochs of five steps; then continue from the third and the seventh step."""
    os.environ["LOCAL_RANK"] = str(rank)
    warnings.simplefilter("ignore")
    options: dict[str, Any] = {"devices": world_size, "strategy": "ddp", "max_epochs": 2}
    result = {"whole": train(*start(folder / "shards", workers=1), folder / "whole", **options)}
    for step in map(int, runs):
        found = train(*start(folder / "shards"), folder / str(step), checkpoint(folder / "whole", step), **options)
        result[str(step)] = found
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], one_rank))
