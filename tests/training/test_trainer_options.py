"""Checks of Trainer options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from sdr_lightning.methods import OGMGE
from sdr_lightning.training.checkpoints.best import BestCheckpoint, best_checkpoint
from sdr_lightning.training.distributed.strategies import Bf16GradientsDDP, FullySharded, named_strategy
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.training.trainer_options import CheckGalleryAndMonitors, check_trainer
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, scenes, student, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "bf16-true"}, "precision bf16-true would round the weights"),
        ({"overfit_batches": 1}, "overfit_batches replaces the samplers"),
        ({"strategy": "ddp_spawn", "devices": 2}, "may not fork or spawn"),
        ({"callbacks": [LearningRateFinder()]}, "LearningRateFinder is not supported"),
        ({"strategy": ModelParallelStrategy()}, "ModelParallelStrategy is not supported: use ddp, ddp_bf16 or fsdp"),
        ({"strategy": FullySharded(), "precision": "bf16-true"}, "precision bf16-true would round the weights"),
    ],
    ids=["precision", "overfit_batches", "spawn", "finder", "strategy", "precision of fsdp"],
)
def test_unsupported_options_are_rejected(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_trainer(trainer(**options))


def test_supported_precisions() -> None:
    for precision in ("32-true", "64-true", "bf16-mixed"):
        check_trainer(trainer(precision=precision))


def fit(**options: Any) -> Any:
    """Train with a gallery of three batches of images and 15 of captions."""
    options = {"max_epochs": 1, **options, "callbacks": [*options.get("callbacks", []), CheckGalleryAndMonitors()]}
    module = student({"itc": 1.0}, fusion=False)
    trainer(**options).fit(module, datamodule=scenes(evaluation_batch_size=2))
    return module


@pytest.mark.parametrize("options", [{"limit_val_batches": 14}, {"limit_val_batches": 0.5}])
def test_partial_galleries_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"limit_val_batches leaves out a part of the gallery \(15 batches\)"):
        fit(**options)


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ({"limit_val_batches": 15}, True),
        ({"limit_val_batches": 0}, False),
        ({"fast_dev_run": True}, False),
        ({"num_sanity_val_steps": 1}, True),
    ],
    ids=str,
)
def test_recall_is_computed_over_the_whole_gallery_or_not_at_all(options: dict[str, Any], measured: bool) -> None:
    assert (fit(**options).val_embeddings is not None) == measured


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (
            BestCheckpoint("val/r_sum"),
            "BestCheckpoint monitors 'val/r_sum', which is never logged; did you mean 'val/rsum'",
        ),
        (EarlyStopping("validation"), "EarlyStopping monitors 'validation'"),
        (
            ModelCheckpoint(monitor="train/kd"),
            r"logged are .*val/rsum_best, train/loss, train/itc, method/temperature",
        ),
    ],
    ids=["best", "early stopping", "another checkpoint"],
)
def test_unknown_monitors_are_rejected(callback: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(callbacks=[callback], enable_checkpointing=True)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
@pytest.mark.parametrize("monitor", ["val/rsum_best", "train/itc", "method/temperature"])
def test_logged_metrics_can_be_monitored(monitor: str, tmp_path: Path) -> None:
    other, best = ModelCheckpoint(tmp_path / "other", monitor="val/i2t_R@1"), BestCheckpoint(monitor)
    stopping = EarlyStopping(monitor, check_on_train_epoch_end=True)
    fit(callbacks=[stopping, other, best], enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=2)
    assert best.best_model_path == str(tmp_path / "checkpoints/best.ckpt")
    assert best_checkpoint(trainer(callbacks=[other, best], enable_checkpointing=True)) is best


def test_named_strategies() -> None:
    found = {name: type(named_strategy(name)) for name in ("fsdp", "ddp_bf16", "ddp")}
    assert found == {"fsdp": FullySharded, "ddp_bf16": Bf16GradientsDDP, "ddp": str}
    for name in ("fsdp", "ddp_bf16"):
        check_trainer(trainer(strategy=named_strategy(name), devices=2))


def with_batch_norm() -> RetrievalModule:
    module = student({"itc": 1.0}, fusion=False)
    module.encoder.image_tower.patch = nn.Sequential(module.encoder.image_tower.patch, nn.BatchNorm1d(8))  # type: ignore[assignment]
    return module


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: student({"itc": 1.0}, fusion=False, micro_batch=5), "micro_batch encodes chunks again"),
        (
            lambda: RetrievalModule(student(fusion=False).encoder, OGMGE()),
            "OGMGE changes gradients, .* has parts: use ddp",
        ),
        (with_batch_norm, "its own statistics of ImageTower's batch norm: freeze the tower"),
    ],
    ids=["micro_batch", "gradients", "batch norm"],
)
def test_what_fsdp_does_not_go_with_is_refused(make: Any, said: str) -> None:
    module = make()
    module.trainer = trainer(strategy=FullySharded())
    with pytest.raises(ValueError, match=said):
        module.configure_model()


def test_fsdp_of_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="fsdp divides students, and the model is a TeacherModule: use ddp"):
        trainer(strategy=FullySharded(), max_epochs=1).fit(
            TeacherModule(student().encoder.image_tower), datamodule=scenes()
        )
