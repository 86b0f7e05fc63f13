"""The loss of teachers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from sdr_lightning.functional.contrastive import ambiguity_penalty, nt_xent
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.types import UnimodalBatch
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, ImageTower, pictures, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
BATCH = UnimodalBatch(pictures([0, 1, 2, 3, 4, 5]), torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2]))


def teacher(regulariser: float, frozen: bool = False) -> TeacherModule:
    torch.manual_seed(0)
    module: Any = TeacherModule(ImageTower(frozen), 4, temperature=0.2, regulariser=regulariser)
    for p in module.parameters():  # otherwise all similarities are near 1
        torch.nn.init.normal_(p, std=0.5 if p.ndim > 1 else 0.0)
    module._trainer = SimpleNamespace(world_size=1)
    module.log = lambda *_, **__: None
    return module


def embeddings(module: TeacherModule) -> torch.Tensor:
    return F.normalize(module.projection(module.tower(BATCH.inputs)), dim=1)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_loss_is_nt_xent_plus_weighted_penalty(weight: float) -> None:
    module = teacher(weight)
    found = embeddings(module)
    assert ambiguity_penalty(found) > 0.005
    expected = nt_xent(found, BATCH.group, 0.2) + weight * ambiguity_penalty(found)
    torch.testing.assert_close(module.training_step(BATCH, 0), expected)


def test_penalty_has_gradient_to_the_tower() -> None:
    gradients = []
    for weight in (0.0, 1.0):
        module: Any = teacher(weight)
        module.training_step(BATCH, 0).backward()
        gradients.append(module.tower.patch.weight.grad)
    module = teacher(1.0)
    ambiguity_penalty(embeddings(module)).backward()
    torch.testing.assert_close(gradients[1] - gradients[0], module.tower.patch.weight.grad, rtol=1e-4, atol=1e-7)
    assert module.tower.patch.weight.grad.abs().max() > 1e-5


@pytest.mark.parametrize("weight", [-0.1, float("inf")])
def test_invalid_weights_are_rejected(weight: float) -> None:
    with pytest.raises(ValueError, match="the regulariser's weight must be finite and >= 0, got"):
        teacher(weight)


def test_frozen_tower_is_rejected() -> None:
    with pytest.raises(ValueError, match="a frozen tower has nothing to train: run sdr extract on it as it is"):
        teacher(0.0, frozen=True).configure_optimizers()


def test_training_reduces_the_penalty() -> None:
    after = []
    for weight in (0.0, 20.0):
        module = teacher(weight)
        del module._trainer, module.log
        module._trainer = None
        loader: Any = DataLoader([BATCH] * 60, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
        trainer(max_epochs=1).fit(module, loader)
        after.append(embeddings(module).detach())
    assert ambiguity_penalty(after[1]) < 0.5 * ambiguity_penalty(after[0])
