"""Training two networks: their checkpoints, exact continuation, and detection of corrupted pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.encoders import TwinEncoder
from sdr_lightning.methods import BiCro, CoTeachingNCR, InfoNCE, Method
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from tests.training.resuming import assert_continues_from
from tests.training.student import EMBEDDING, LIGHTNINGS_OWN_WARNINGS, ImageTower, TextTower, scenes, trainer

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:.*exists and is not empty")]


def student(method: Method, frozen: bool = True, **options: Any) -> RetrievalModule:
    torch.manual_seed(0)
    encoder = TwinEncoder(ImageTower(frozen), TextTower(), EMBEDDING, dropout=0.2)
    return RetrievalModule(encoder, method, Optimisation(learning_rate=1e-2), **options)


@pytest.mark.filterwarnings("ignore:.*dirpath has changed")
@pytest.mark.parametrize("kind", [CoTeachingNCR, BiCro])
def test_training_continues_exactly_and_stores_no_frozen_tower(
    kind: type[CoTeachingNCR | BiCro], tmp_path: Path
) -> None:
    def start() -> Any:
        return student(kind(noisy_from=2)), scenes(augmentation="weak", imbalance=Imbalance("mismatch", 0.5))

    assert_continues_from([5], start, tmp_path, max_epochs=3)  # within the second of three epochs of three steps
    stored = torch.load(next(tmp_path.rglob("step-5.ckpt")), weights_only=True)["state_dict"]
    assert {"encoder.second_text_tower.mix.weight", "method.network_probability"} < stored.keys()
    assert stored["method.network_probability"].std(dim=1).min() > 0
    assert not [name for name in stored if "image_tower" in name]


@pytest.mark.parametrize("frozen", [False, True])
def test_both_networks_learn_and_evaluation_ranks_by_the_mean_of_their_cosines(frozen: bool) -> None:
    module = student(InfoNCE(), frozen, micro_batch=7)
    before = {name: value.clone() for name, value in module.encoder.state_dict().items()}
    run = trainer(max_epochs=2)
    run.fit(module, datamodule=scenes())
    unchanged = {name for name, value in module.encoder.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == ({"image_tower.patch.weight", "image_tower.patch.bias"} if frozen else set())
    assert module.val_embeddings is not None
    assert module.val_embeddings[0].shape[1] == 2 * EMBEDDING
    assert run.logged_metrics["val/rsum"] > 0


def test_detection_by_both_networks_is_logged() -> None:
    module = student(CoTeachingNCR())
    run = trainer(max_epochs=2, limit_val_batches=0)
    run.fit(module, datamodule=scenes(imbalance=Imbalance("mismatch", 0.5)))
    names = {"method/clean_share", "method/agreement", "method/detection_AUC", "method/detection_estimated_share"}
    assert names < run.logged_metrics.keys()
    estimated = 100 * (1 - module.method.clean_probability.mean().item())
    assert run.logged_metrics["method/detection_estimated_share"].item() == pytest.approx(estimated, rel=1e-5)
