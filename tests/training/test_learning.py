"""A student with a fusion encoder can overfit 32 pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.configure import build
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.methods import SDR
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Encoded, RetrievalBatch, Tokens
from tests.training.student import (
    BERT,
    LIGHTNINGS_OWN_WARNINGS,
    FixedBatches,
    ImageTower,
    TextTower,
    pairs,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
PAIRS = 32
CHANCE = 0.6365  # cross-entropy of a constant prediction of 1/3 matched pairs


def train(module: RetrievalModule, batch: RetrievalBatch, steps: int) -> dict[str, float]:
    """Train epochs of 25 steps and return the mean losses of the last one."""
    run = trainer(max_epochs=steps // 25, limit_val_batches=0)
    run.fit(module, datamodule=FixedBatches([batch] * 25))
    return {name: float(value) for name, value in run.callback_metrics.items()}


@torch.no_grad()
def scored(module: RetrievalModule, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
    """Return the logits of all pairs, (images, captions, 2), and the cosines."""
    fusion = module.encoder.fusion
    assert fusion is not None
    assert isinstance(batch.texts, Tokens)
    image, text = module.encoder.image(batch.images), module.encoder.text(batch.texts)
    contexts, all_images = fusion.contexts(image.tokens), torch.arange(PAIRS)
    columns = []
    for row in range(PAIRS):
        one = Encoded(*(part[row : row + 1].expand(PAIRS, *part.shape[1:]) for part in text))
        columns.append(fusion.head(fusion(one, contexts, all_images)))
    return torch.stack(columns, dim=1), image.embedding @ text.embedding.T


def recall_at_1(scores: Tensor) -> float:
    right = torch.arange(len(scores))
    return min(float((scores.argmax(dim=way) == right).double().mean()) for way in (0, 1))


@pytest.mark.slow
def test_student_overfits_32_pairs() -> None:
    torch.manual_seed(0)
    config = {**BERT, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    encoder = DualEncoder(
        ImageTower(width=32), TextTower(width=32), 32, fusion=FusionEncoder(32, config=config, first_layer=0)
    )
    module = RetrievalModule(encoder, SDR({"itc": 1, "itm": 2}), Optimisation(3e-3))
    batch = pairs(range(PAIRS), [4 + row % 3 for row in range(PAIRS)])
    before, _ = scored(module, batch)
    losses = train(module, batch, 250)
    after, cosines = scored(module, batch)
    assert losses["train/itm"] < 0.05 * CHANCE
    assert losses["train/itc"] < 0.01
    matched = torch.eye(PAIRS, dtype=torch.bool)
    assert torch.equal(after.argmax(dim=2).bool(), matched)  # all 1,024 pairs
    assert recall_at_1(after[..., 1]) == recall_at_1(cosines) == 1.0
    assert recall_at_1(before[..., 1]) < 0.3


@pytest.mark.slow
def test_small_swin_bert_student_overfits_32_scenes(experiments: Path, tmp_path: Path) -> None:
    """All matched pairs and nearly all unmatched pairs are classified correctly."""
    files = ("--model", experiments / "models/tiny_fusion.yaml", "--data", experiments / "data/scenes.yaml")
    more = ("--data.init_args.source.init_args.num_train=32", "--run_dir", tmp_path)
    weights = ("--model.init_args.method.init_args.weights", '{"itc": 1, "itm": 2}')
    cli = build([str(part) for part in (*files, *more, *weights)])
    rows = np.arange(PAIRS)
    split, module = cli.datamodule.split("train"), cli.model
    assert isinstance(module, RetrievalModule)
    index = torch.from_numpy(rows)
    batch = RetrievalBatch(split.images(rows), split.texts(5 * rows), index, 5 * index)
    losses = train(module, batch, 500)
    after, cosines = scored(module, batch)
    predicted, matched = after.argmax(dim=2).bool(), torch.eye(PAIRS, dtype=torch.bool)
    assert losses["train/itm"] < 0.05 * CHANCE
    assert predicted[matched].all()
    assert (predicted == matched).double().mean() > 0.97
    assert recall_at_1(cosines) == 1.0
