"""A stage that starts from an earlier one, continued training, and training that fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.training.checkpoints.best import BestCheckpoint
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
    """The weights that training starts with."""

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
    """Train, keep the last checkpoint, and give the weights that training started with."""
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
    """The checkpoint of a first stage, two epochs long."""
    folder = tmp_path_factory.mktemp("stage_1")
    fit(student(**STAGE_1), folder, epochs=2)
    return folder / "checkpoints/last.ckpt"


def weights_of(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_a_stage_starts_from_the_encoder_and_what_both_objectives_have(stage_1: Path, tmp_path: Path) -> None:
    fresh = {name: value.clone() for name, value in student(**STAGE_2).state_dict().items()}
    module = student(**STAGE_2, start_from=str(stage_1))
    assert torch.equal(
        module.state_dict()["encoder.image_tower.patch.weight"], fresh["encoder.image_tower.patch.weight"]
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
        assert not torch.equal(before[name], fresh[name]), name
    for name in new:
        assert torch.equal(started[name], fresh[name]), name


def test_the_path_is_filled_in(stage_1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGE", str(stage_1.parent))
    started = fit(student(**STAGE_2, start_from="${STAGE}/last.ckpt"), tmp_path)
    name = "encoder.text_tower.mix.weight"
    assert torch.equal(started[name], weights_of(stage_1)[name])


def test_a_stage_is_only_started_from_in_training(stage_1: Path, tmp_path: Path) -> None:
    """What is tested are the weights of --ckpt_path, whether or not the earlier stage is still there."""
    fit(student(**STAGE_2), tmp_path)
    last = tmp_path / "checkpoints/last.ckpt"
    module = student(**{**STAGE_2, "seed": 7}, start_from=str(tmp_path / "gone.ckpt"))
    trainer().test(module, datamodule=scenes(), ckpt_path=last, verbose=False)
    for name, value in weights_of(last).items():
        if name.startswith("encoder."):
            assert torch.equal(module.state_dict()[name], value), name


def test_a_new_optimiser_and_schedule(stage_1: Path, tmp_path: Path) -> None:
    """Weights alone are taken over: the second stage is a training of its own, from its first step and epoch."""
    fit(student(**STAGE_2, start_from=str(stage_1)), tmp_path, epochs=1)
    now = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert (now["epoch"], now["global_step"]) == (0, 1)
    assert {int(state["step"]) for state in now["optimizer_states"][0]["state"].values()} == {1}


def test_continuing_is_not_starting_again(stage_1: Path, tmp_path: Path) -> None:
    fit(student(**STAGE_2, start_from=str(stage_1)), tmp_path, epochs=2)
    last = tmp_path / "checkpoints/last.ckpt"
    before = weights_of(last)
    continued = fit(student(**{**STAGE_2, "seed": 9}, start_from=str(stage_1)), tmp_path, epochs=3, ckpt_path=last)
    for name, value in continued.items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(
        before["encoder.image_tower.patch.weight"], weights_of(stage_1)["encoder.image_tower.patch.weight"]
    )


def test_a_stage_that_was_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint to start from at .*none\.ckpt: run the earlier stage first"):
        fit(student(**STAGE_2, start_from=str(tmp_path / "none.ckpt")), tmp_path)


@pytest.mark.parametrize("what", ["a text", "a state dict", "a checkpoint that is cut short"])
def test_a_file_that_is_no_checkpoint(what: str, stage_1: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.ckpt"
    if what == "a text":
        path.write_text("these are no weights")
    elif what == "a state dict":
        torch.save(weights_of(stage_1), path)
    else:
        path.write_bytes(stage_1.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"wrong\.ckpt") as refused:
        fit(student(**STAGE_2, start_from=str(path)), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("change", ["without fusion", "another width"])
def test_a_stage_of_another_architecture_is_refused_in_one_line(change: str, tmp_path: Path) -> None:
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


def test_an_objective_of_other_widths_is_not_called_another_encoder(stage_1: Path, tmp_path: Path) -> None:
    """The image teacher of the second stage has features of another width: the encoder is the same one."""
    module = student(**{**STAGE_2, "weights": {"itc": 1.0, "iic": 1.0, "itm": 1.0}}, start_from=str(stage_1))
    module.method.project_image_teacher = torch.nn.Linear(IMAGE_TEACHER + 1, EMBEDDING)
    with pytest.raises(ValueError, match="project_image_teacher") as refused:
        fit(module, tmp_path)
    assert "another encoder" not in str(refused.value)


def test_what_is_configured_as_fixed_stays_as_configured(stage_1: Path, tmp_path: Path) -> None:
    """The first stage learned its temperature; this one says what it is."""
    module = student(**STAGE_2, start_from=str(stage_1))
    module.method.temperature = Temperature(0.05, learnable=False)
    assert fit(module, tmp_path)["method.temperature.value"] == pytest.approx(0.05)


def test_a_frozen_tower_stays_what_it_was_across_stages(tmp_path: Path) -> None:
    """Its weights are not in the checkpoint, its fingerprint is."""
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


def test_a_tower_may_be_frozen_in_the_second_stage(stage_1: Path, tmp_path: Path) -> None:
    started = fit(student(**STAGE_2, frozen=["text"], start_from=str(stage_1)), tmp_path)
    assert torch.equal(started["encoder.text_tower.mix.weight"], weights_of(stage_1)["encoder.text_tower.mix.weight"])


class Poisoned(pl.Callback):
    """Makes a parameter of the second epoch infinite."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            assert isinstance(pl_module, RetrievalModule)
            with torch.no_grad():
                pl_module.encoder.text_tower.mix.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]


def test_a_loss_that_is_not_finite_names_step_terms_and_images_and_keeps_what_was_learned(tmp_path: Path) -> None:
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


def test_a_small_batch_that_is_not_finite_is_named_in_full(tmp_path: Path) -> None:
    module = student({"itc": 1.0})
    torch.nn.init.constant_(module.method.temperature.value, torch.nan)
    data = scenes(batch_size=4)
    with pytest.raises(ValueError, match=r"at step 0 \(itc nan\), images (\d+, ){3}\d+: lower"):
        trainer(max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)


def test_a_learning_rate_that_blows_up_is_told(tmp_path: Path) -> None:
    module = student({"itc": 1.0, "itm": 1.0}, optimisation=Optimisation(1e30, warmup=0.0))
    with pytest.raises(ValueError, match=r"the loss is not finite at step \d+ \(itc .*, itm .*\)"):
        trainer(max_epochs=5, limit_val_batches=0).fit(module, datamodule=scenes())
