"""Students trained by several gloo processes under a strategy: ``python -m tests.training.strategy_ranks FOLDER SIZE RUNS``."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch

from sdr_lightning.data import SceneSource
from sdr_lightning.encoders import DualEncoder, FusionEncoder, TimmImageTower, TransformersTextTower
from sdr_lightning.methods import SDR
from sdr_lightning.training import matching
from sdr_lightning.training.checkpoints.continuation import CheckpointFiles, Continuation
from sdr_lightning.training.distributed.strategies import named_strategy
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from tests.training.ranks import main
from tests.training.student import hardest, scenes, trainer

STEPS = 10
SOURCE = SceneSource(
    num_train=12, num_val=5, num_test=5, size=16
)  # two processes validate 2 batches and 1 batch of images
BERT: dict[str, Any] = {
    **{"model_type": "bert", "vocab_size": 80, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 64, "initializer_range": 0.5},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


def module(recompute: bool = False) -> RetrievalModule:
    """Return a student with towers of several layers, a fusion encoder and a learned temperature."""
    torch.manual_seed(0)
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    images = TimmImageTower("vit_tiny_patch16_224", model_args=vit)
    texts = TransformersTextTower(config=BERT)
    fusion = FusionEncoder(8, config=BERT, first_layer=0)
    encoder = DualEncoder(images, texts, 6, fusion=fusion, activation_checkpointing=recompute)
    method = SDR({"itc": 1.0, "itm": 1.0}, 6)
    return RetrievalModule(encoder, method, Optimisation(1e-3), negatives="global")


class KeepStep(pl.Callback):
    """Saves the checkpoint of one step as ``begun.ckpt``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "begun.ckpt")


def train(folder: Path, strategy: str, size: int, ckpt_path: Path | None = None, recompute: bool = False) -> pl.Trainer:
    """Train two epochs of five steps with validation, and write ``last.ckpt`` and the checkpoint of the third step."""
    torch.manual_seed(1)
    chosen: dict[str, Any] = {"strategy": named_strategy(strategy), "devices": size} if size > 1 else {}
    callbacks = [Continuation(), KeepStep(3)]
    with patch.object(matching, "draw_negatives", hardest):
        fit = trainer(**chosen, max_steps=STEPS, gradient_clip_val=0.5, callbacks=callbacks, default_root_dir=folder)
        fit.strategy.checkpoint_io = CheckpointFiles()
        data = scenes(source=SOURCE, batch_size=12, evaluation_batch_size=2)
        fit.fit(module(recompute), datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        fit.save_checkpoint(folder / "last.ckpt")
    return fit


def one_rank(rank: int, folder: Path, world_size: int, runs: list[str]) -> None:
    """Do the runs: ``STRATEGY``, ``STRATEGY recomputed``, or ``STRATEGY continued`` from the third step of ``fsdp``."""
    os.environ["LOCAL_RANK"] = str(rank)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {}
    for run in runs:
        strategy, _, how = run.partition(" ")
        begun = folder / "fsdp/begun.ckpt" if how == "continued" else None
        done = train(folder / run, strategy, world_size, begun, how == "recomputed")
        result[run] = done.global_step
    torch.save(result, folder / f"{rank}.pt")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], one_rank))
