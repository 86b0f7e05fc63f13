"""Starting from an earlier stage, resuming, and non-finite losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.feature_caching import CacheFeatures
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from tests.training.student import (
    EMBEDDING,
    IMAGE_TEACHER,
    LIGHTNINGS_OWN_WARNINGS,
    FixedBatches,
    pairs,
    scenes,
    student,
    trainer,
)

pytestmark = [
    *LIGHTNINGS_OWN_WARNINGS,
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path."),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]
BATCHES = [pairs((0, 1, 2, 3, 4, 5), (3, 5, 2, 4, 6, 3))]
STAGE_1: dict[str, Any] = {"weights": {"itc": 1.0, "iic": 1.0, "itm": 1.0}, "seed": 1}
STAGE_2: dict[str, Any] = {"weights": {"itc": 1.0, "itm": 1.0, "ttc": 1.0, "kd": 1.0}, "relation": "fused", "seed": 2}


class Started(pl.Callback):
    """Stores the weights at the start of training."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def fit(
    module: RetrievalModule,
    folder: Path,
    epochs: int = 1,
    ckpt_path: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, Tensor]:
    """Train, save the last checkpoint, and return the weights at the start of training."""
    started = Started()
    run = trainer(
        max_epochs=epochs,
        limit_val_batches=0,
        enable_checkpointing=True,
        default_root_dir=folder,
        callbacks=[started, BestCheckpoint(None), *callbacks],
    )
    run.fit(module, datamodule=FixedBatches(BATCHES), ckpt_path=ckpt_path)
    return started.state


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a first stage of two epochs."""
    folder = tmp_path_factory.mktemp("stage_1")
    fit(student(**STAGE_1), folder, epochs=2)
    return folder / "checkpoints/last.ckpt"


def weights_of(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_start_from_loads_encoder_and_shared_method_parameters(
    stage_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGE", str(stage_1.parent))
    initial = {name: value.clone() for name, value in student(**STAGE_2).state_dict().items()}
    module = student(**STAGE_2, start_from="${STAGE}/last.ckpt")
    assert torch.equal(
        module.state_dict()["encoder.image_tower.patch.weight"], initial["encoder.image_tower.patch.weight"]
    )
    started, before = fit(module, tmp_path), weights_of(stage_1)
    encoder = {name for name in started if name.startswith("encoder.")}
    assert encoder == {name for name in before if name.startswith("encoder.")}
    both = {"method.temperature.value"}
    new = {"method.structure.text_share.value", "method.structure.temperature.value"}
    new |= {f"method.project_text_teacher.{kind}" for kind in ("weight", "bias")}
    assert set(started) == encoder | both | new
    for name in encoder | both:
        assert torch.equal(started[name], before[name]), name
        assert not torch.equal(before[name], initial[name]), name
    for name in new:
        assert torch.equal(started[name], initial[name]), name


def test_start_from_is_ignored_in_testing(stage_1: Path, tmp_path: Path) -> None:
    """The checkpoint of the earlier stage need not exist."""
    fit(student(**STAGE_2), tmp_path)
    last = tmp_path / "checkpoints/last.ckpt"
    module = student(**{**STAGE_2, "seed": 7}, start_from=str(tmp_path / "gone.ckpt"))
    trainer().test(module, datamodule=scenes(), ckpt_path=last, verbose=False)
    for name, value in weights_of(last).items():
        if name.startswith("encoder."):
            assert torch.equal(module.state_dict()[name], value), name


def test_start_from_does_not_restore_the_optimiser(stage_1: Path, tmp_path: Path) -> None:
    """The second stage starts at step and epoch 0."""
    fit(student(**STAGE_2, start_from=str(stage_1)), tmp_path, epochs=1)
    now = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert (now["epoch"], now["global_step"]) == (0, 1)
    assert {int(state["step"]) for state in now["optimizer_states"][0]["state"].values()} == {1}


def test_resuming_ignores_start_from(stage_1: Path, tmp_path: Path) -> None:
    fit(student(**STAGE_2, start_from=str(stage_1)), tmp_path, epochs=2)
    last = tmp_path / "checkpoints/last.ckpt"
    before = weights_of(last)
    continued = fit(student(**{**STAGE_2, "seed": 9}, start_from=str(stage_1)), tmp_path, epochs=3, ckpt_path=last)
    for name, value in continued.items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(
        before["encoder.image_tower.patch.weight"], weights_of(stage_1)["encoder.image_tower.patch.weight"]
    )


def test_missing_checkpoint_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint to start from at .*none\.ckpt: run the earlier stage first"):
        fit(student(**STAGE_2, start_from=str(tmp_path / "none.ckpt")), tmp_path)


@pytest.mark.parametrize("what", ["text", "state dict", "truncated"])
def test_invalid_checkpoint_files_are_rejected(what: str, stage_1: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ckpt"
    if what == "text":
        path.write_text("no weights")
    elif what == "state dict":
        torch.save(weights_of(stage_1), path)
    else:
        path.write_bytes(stage_1.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"wrong\.ckpt") as refused:
        fit(student(**STAGE_2, start_from=str(path)), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", ["without fusion", "another width"])
def test_checkpoints_of_another_encoder_are_rejected(change: str, tmp_path: Path) -> None:
    if change == "without fusion":
        other = student({"itc": 1}, fusion=False)
    else:
        other = student({"itc": 1})
        other.encoder.image_projection = torch.nn.Sequential(torch.nn.Dropout(0), torch.nn.Linear(8, EMBEDDING + 1))
        other.encoder.text_projection = torch.nn.Sequential(torch.nn.Dropout(0), torch.nn.Linear(8, EMBEDDING + 1))
    fit(other, tmp_path / "other")
    path = tmp_path / "other/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match="is of another encoder") as refused:
        fit(student(**STAGE_2, start_from=str(path)), tmp_path)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 500
    assert ("fusion" if change == "without fusion" else "image_projection") in message


def test_checkpoints_of_other_method_widths_are_rejected(stage_1: Path, tmp_path: Path) -> None:
    """The message does not name the encoder, which fits."""
    module = student(**{**STAGE_2, "weights": {"itc": 1.0, "iic": 1.0, "itm": 1.0}}, start_from=str(stage_1))
    module.method.project_image_teacher = torch.nn.Linear(IMAGE_TEACHER + 1, EMBEDDING)
    with pytest.raises(ValueError, match="project_image_teacher") as refused:
        fit(module, tmp_path)
    assert "another encoder" not in str(refused.value)


def test_fixed_scalars_are_not_loaded(stage_1: Path, tmp_path: Path) -> None:
    """The first stage learned its temperature; the second one fixes it."""
    module = student(**STAGE_2, start_from=str(stage_1))
    module.method.temperature = Temperature(0.05, learnable=False)
    assert fit(module, tmp_path)["method.temperature.value"] == pytest.approx(0.05)


def test_frozen_towers_must_equal_those_of_the_checkpoint(tmp_path: Path) -> None:
    """The checkpoint holds their fingerprint instead of their weights."""
    fit(student(**STAGE_1, frozen=["text"]), tmp_path / "one")
    path = tmp_path / "one/checkpoints/last.ckpt"
    assert not [name for name in weights_of(path) if "text_tower" in name]
    same = student(**{**STAGE_2, "seed": 1}, frozen=["text"], start_from=str(path))
    started = fit(same, tmp_path / "two")
    assert torch.equal(
        started["encoder.image_tower.patch.weight"], weights_of(path)["encoder.image_tower.patch.weight"]
    )
    with pytest.raises(ValueError, match="another frozen text_tower"):
        fit(student(**STAGE_2, frozen=["text"], start_from=str(path)), tmp_path / "three")


def test_tower_frozen_in_the_second_stage_is_loaded(stage_1: Path, tmp_path: Path) -> None:
    started = fit(student(**STAGE_2, frozen=["text"], start_from=str(stage_1)), tmp_path)
    assert torch.equal(started["encoder.text_tower.mix.weight"], weights_of(stage_1)["encoder.text_tower.mix.weight"])


def test_features_of_a_tower_frozen_in_the_second_stage_are_those_of_the_first(tmp_path: Path) -> None:
    """They are cached before Lightning loads a checkpoint, which holds their weights, because no configuration gives them."""

    def train(module: RetrievalModule, name: str) -> Path:
        run = trainer(
            max_epochs=3,
            enable_checkpointing=True,
            default_root_dir=tmp_path / name,
            callbacks=[CacheFeatures(), BestCheckpoint(None)],
        )
        run.fit(module, datamodule=scenes(cache=str(tmp_path / "cache")))
        return tmp_path / name / "checkpoints/last.ckpt"

    def features(module: RetrievalModule, data: RetrievalDataModule) -> tuple[Tensor, Tensor]:
        """Cached, and computed."""
        cached = torch.cat([batch.inputs.values for batch in data.items("test", "text")])
        batches = scenes(cache=str(tmp_path / "other")).items("test", "text")
        return cached, torch.cat([module.encoder.text_tower(batch.inputs) for batch in batches]).detach()

    itc = {"weights": {"itc": 1.0}, "fusion": False}
    first = train(student(**itc, seed=1, optimisation=Optimisation(learning_rate=0.05)), "one")
    second = train(student(**itc, seed=2, frozen=["text"], start_from=str(first)), "two")
    again, data = student(**itc, seed=2, frozen=["text"], start_from="gone.ckpt"), scenes(cache=str(tmp_path / "cache"))
    trainer(callbacks=[CacheFeatures()]).test(again, datamodule=data, ckpt_path=second, verbose=False)
    assert torch.equal(again.encoder.text_tower.mix.weight, weights_of(first)["encoder.text_tower.mix.weight"])
    cached, computed = features(again, data)
    assert torch.allclose(cached, computed, atol=1e-5)


def test_a_tower_frozen_in_the_first_stage_may_be_trained_in_the_second(tmp_path: Path) -> None:
    fit(student(**STAGE_1, frozen=["text"]), tmp_path / "one")
    path = tmp_path / "one/checkpoints/last.ckpt"
    assert fit(student(**{**STAGE_2, "seed": 1}, start_from=str(path)), tmp_path / "two")
    with pytest.raises(ValueError, match="another frozen text_tower"):
        fit(student(**STAGE_2, start_from=str(path)), tmp_path / "three")


class Saved(BestCheckpoint):
    """Stores the batch after which the last checkpoint was written."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.after: list[int] = []

    def _save_last(self, trainer: pl.Trainer) -> None:
        super()._save_last(trainer)
        self.after.append(trainer.fit_loop.batch_idx)


def test_validation_between_accumulated_batches_writes_no_last_checkpoint(tmp_path: Path) -> None:
    """It would lack the gradients of the first of them."""
    saved = Saved()
    run = trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=3,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        callbacks=[saved],
    )
    run.fit(student({"itc": 1.0}, fusion=False), datamodule=scenes(batch_size=10))
    assert saved.after == [5]


class Poisoned(pl.Callback):
    """Sets a parameter to NaN in the second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            assert isinstance(pl_module, RetrievalModule)
            with torch.no_grad():
                pl_module.encoder.text_tower.mix.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]


def test_non_finite_loss_names_step_terms_and_images(tmp_path: Path) -> None:
    data = scenes()
    run = trainer(
        max_epochs=3,
        limit_val_batches=0,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        callbacks=[BestCheckpoint(None), Poisoned()],
    )
    with pytest.raises(ValueError, match="the loss is not finite") as raised:
        run.fit(student({"itc": 1.0, "itm": 2.0}), datamodule=data)
    message = str(raised.value)
    assert "at step 3 (itc nan, itm nan), images " in message  # three batches an epoch
    assert message.endswith("lower the learning rate; checkpoints of earlier epochs are kept")
    named = message.split("images ")[1].split(" and 12 more: ")[0].split(", ")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    batch = next(iter(loader))
    ids = data.split("train").table.image_ids
    assert named == [ids[row] for row in batch.image_index[:8].tolist()]
    for name in ("last", "final"):
        kept = torch.load(tmp_path / f"checkpoints/{name}.ckpt", weights_only=True)
        assert kept["epoch"] == 0
        assert all(bool(torch.isfinite(value).all()) for value in kept["state_dict"].values())


def test_non_finite_loss_names_all_images_of_small_batches(tmp_path: Path) -> None:
    module = student({"itc": 1.0})
    torch.nn.init.constant_(module.method.temperature.value, torch.nan)
    data = scenes(batch_size=4)
    with pytest.raises(ValueError, match=r"at step 0 \(itc nan\), images (\d+, ){3}\d+: lower"):
        trainer(max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
