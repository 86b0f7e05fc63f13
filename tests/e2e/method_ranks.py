"""Every method in several gloo processes: ``python -m tests.e2e.method_ranks FOLDER WORLD_SIZE OVERLAY,OVERLAY``."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.features.bank import FeatureBank
from tests.methods.overlays import EPOCHS, student, teachers
from tests.training.ranks import main
from tests.training.student import scenes, trainer

SOURCE = SceneSource(num_train=30, num_val=6, num_test=7, size=16)


def mismatched_scenes(batch_size: int, **options: Any) -> RetrievalDataModule:
    """Return 150 pairs of which 20 % are mismatched, with teachers that agree on the others."""
    data = scenes(source=SOURCE, imbalance=Imbalance("mismatch", 0.2), batch_size=batch_size, **options)
    data.setup("fit")
    train = data.split("train")
    pairs = train.training_pairs()
    image, text = teachers(pairs.image_index, 30, pairs.is_original)
    train.attach_teacher(FeatureBank("image", train.ids("image"), train.content("image"), image, "tower"))
    train.attach_teacher(FeatureBank("text", train.ids("text"), train.content("text"), text, "tower"))
    return data


def trained(overlay: str, **options: Any) -> dict[str, Any]:
    """Train in float64, and return all parameters and buffers, and what was logged."""
    torch.manual_seed(0)
    module, run = student(overlay), trainer(precision="64-true", max_epochs=EPOCHS, limit_val_batches=0, **options)
    run.fit(module, datamodule=mismatched_scenes(50))
    return {"state": module.state_dict(), "logged": dict(run.logged_metrics)}


def one_rank(rank: int, folder: Path, world_size: int, overlays: list[str]) -> None:
    """Train each method. An error of one does not stop the others."""
    os.environ["LOCAL_RANK"] = str(rank)
    warnings.simplefilter("ignore")
    found = {}
    for overlay in overlays:
        try:
            found[overlay] = trained(overlay, devices=world_size, strategy="ddp")
        except Exception:
            found[overlay] = {"error": traceback.format_exc()}
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], one_rank))
