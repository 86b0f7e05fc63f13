"""Training in bf16 and in fp16 with a gradient scaler, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from sdr_lightning.training.optimisation import Optimisation
from tests.training.student import ALL, LIGHTNINGS_OWN_WARNINGS, FixedBatches, pairs, student, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
BATCH = pairs(range(12), [3 + row % 4 for row in range(12)])


class Gradients(pl.Callback):
    """Stores the gradients before each optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None})


def amp(precision: Any, scale: float = 2.0**10) -> MixedPrecision:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler)


def first_gradients(*plugins: Any, **options: Any) -> dict[str, Tensor]:
    seen = Gradients()
    run = trainer(max_steps=1, limit_val_batches=0, plugins=list(plugins), callbacks=[seen])
    run.fit(student(ALL, relation="fused", **options), datamodule=FixedBatches([BATCH]))
    return seen.steps[0]


@pytest.mark.parametrize(("precision", "micro_batch"), [("bf16-mixed", None), ("bf16-mixed", 5), ("16-mixed", 5)])
def test_gradients_are_close_to_those_of_float32(precision: str, micro_batch: int | None) -> None:
    """Gradients are unscaled; recomputation of gradient caching uses the same precision."""
    whole, half = first_gradients(), first_gradients(amp(precision), micro_batch=micro_batch)
    assert whole.keys() == half.keys()
    a, b = (torch.cat([part.flatten() for part in found.values()]) for found in (whole, half))
    assert torch.cosine_similarity(a, b, dim=0) > 0.999
    assert (a.norm() / b.norm()).item() == pytest.approx(1, rel=0.02)
    assert not torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # the first steps are skipped
def test_fp16_recovers_from_overflow_and_saves_its_scale(tmp_path: Path) -> None:
    """With a scale that is too high, steps are skipped until it is low enough."""
    module = student(ALL, relation="fused", optimisation=Optimisation(learning_rate=1e-2, fused=True))
    precision = amp("16-mixed", scale=2.0**40)
    run = trainer(max_epochs=3, limit_val_batches=0, plugins=[precision])
    before = module.encoder.image_tower.patch.weight.detach().clone()
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    run.callbacks.append(Losses())
    run.fit(module, datamodule=FixedBatches([BATCH] * 20))
    assert losses[-1] < losses[0]
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    assert not torch.equal(before, module.encoder.image_tower.patch.weight)
    run.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["MixedPrecision"]
    assert 0 < kept["scale"] < 2.0**40


def test_fused_optimiser_equals_the_unfused_one() -> None:
    found = []
    for fused in (False, True):
        module = student(ALL, relation="fused", optimisation=Optimisation(learning_rate=1e-2, fused=fused))
        run = trainer(max_epochs=1, limit_val_batches=0)
        run.fit(module, datamodule=FixedBatches([BATCH] * 5))
        assert run.optimizers[0].defaults["fused"] == (fused or None)
        found.append(module.state_dict())
    for name, value in found[0].items():
        if not name.endswith("key.bias"):  # its gradient is zero up to rounding
            torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
