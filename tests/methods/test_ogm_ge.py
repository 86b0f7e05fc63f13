"""OGM-GE: scores of modalities, gradients that are scaled and noisy, and exact continuation."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.encoders import DualEncoder
from sdr_lightning.functional.modulation import modulation_coefficient, self_discrimination
from sdr_lightning.methods import OGMGE, InfoNCE, Temperature
from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.checkpoints.continuation import Continuation
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Pairs, TrainingPairs
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, ImageTower, TextTower, scenes, trainer

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:.*exists and is not empty")]
SIZE = 5


def some_pairs(ids: tuple[int, ...] = (0, 1, 2, 3, 4), swapped: bool = False) -> Pairs:
    image = F.normalize(torch.arange(20, dtype=torch.float64).mul(1.7).sin().reshape(SIZE, 4), dim=1)
    text = F.normalize(torch.arange(20, dtype=torch.float64).mul(2.3).cos().reshape(SIZE, 4), dim=1)
    text = F.normalize(image + text, dim=1)
    return Pairs(*((text, image) if swapped else (image, text)), torch.tensor(ids))


def encoder_with_gradients(seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    encoder = DualEncoder(ImageTower(), TextTower(), 6)
    for parameter in encoder.parameters():
        parameter.grad = torch.randn_like(parameter) * 3
    return encoder


def modified(method: OGMGE, encoder: DualEncoder) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients by parameter name, before and after."""
    before = {name: each.grad.clone() for name, each in encoder.named_parameters() if each.grad is not None}
    method.modify_gradients(encoder)
    return {name: (before[name], each.grad) for name, each in encoder.named_parameters() if each.grad is not None}


# --- Scores and coefficients


@pytest.mark.parametrize("alpha", [0.1, 0.3])
@pytest.mark.parametrize("swapped", [False, True])
def test_scores_and_coefficients_are_those_of_the_public_code(alpha: float, swapped: bool) -> None:
    """GeWu-Lab/OGM-GE_CVPR2022 at 343dc1d9: main.py, from scores to coefficients, given logits <x_i, x_j> / 0.07 and labels i."""
    method = OGMGE(alpha, first_epoch=0).double()
    pairs = some_pairs(swapped=swapped)
    scores = [self_discrimination(each, pairs.image_index, 0.07).item() for each in (pairs.image, pairs.text)]
    expected = [0.8184738673558123, 0.8854156194413004]
    assert scores == pytest.approx(expected[::-1] if swapped else expected, rel=1e-9)
    method(pairs)
    method.modify_gradients(encoder_with_gradients())
    found = {name: value.item() for name, value in method.coefficients().items()}
    stronger = {0.1: 0.8922411772323641, 0.3: 0.686396884299429}[alpha]
    assert found == pytest.approx(
        {"image": stronger, "text": 1} if swapped else {"image": 1, "text": stronger}, rel=1e-6
    )
    assert method.scalars()["score_ratio"].item() == pytest.approx(1.081788502669917 if swapped else 0.9243951082230415)


def test_a_score_equals_an_item_by_item_reference_without_other_captions_of_the_image() -> None:
    pairs, expected = some_pairs((0, 1, 0, 2, 1)), 0.0
    rows, ids = pairs.text.tolist(), pairs.image_index.tolist()
    for i in range(SIZE):
        others = [
            math.exp(sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) / 0.2)
            for j in range(SIZE)
            if ids[j] != ids[i]
        ]
        expected += math.exp(1 / 0.2) / (math.exp(1 / 0.2) + sum(others)) / SIZE
    assert self_discrimination(pairs.text, pairs.image_index, 0.2).item() == pytest.approx(expected)


def test_a_modality_that_separates_nothing_scores_least_and_one_that_separates_all_most() -> None:
    groups = torch.arange(8)
    assert self_discrimination(torch.ones(8, 1), groups, 0.07).item() == pytest.approx(1 / 8)
    assert self_discrimination(torch.eye(8), groups, 0.07).item() == pytest.approx(1, abs=1e-4)
    assert self_discrimination(torch.ones(8, 1), torch.zeros(8, dtype=torch.int64), 0.07).item() == 1


def test_the_coefficient_falls_with_the_ratio_and_leaves_equals_alone() -> None:
    ratios = torch.linspace(0.1, 5, 50)
    found = modulation_coefficient(ratios, 0.3)
    assert bool((found[ratios <= 1] == 1).all())
    assert bool((found[ratios > 1].diff() < 0).all())
    assert bool((found > 0).all())
    assert modulation_coefficient(torch.tensor(1.0), 0.3) == 1


# --- Gradients


def test_only_matrices_of_the_stronger_modality_are_scaled() -> None:
    method, encoder = OGMGE(noise=False, first_epoch=0).double(), encoder_with_gradients().double()
    method(some_pairs())  # captions score higher
    coefficient = 1 - math.tanh(0.3 * 0.8854156194413004 / 0.8184738673558123)
    for name, (before, after) in modified(method, encoder).items():
        scaled = name.startswith("text") and before.ndim > 1
        torch.testing.assert_close(after, before * coefficient if scaled else before, rtol=1e-6, atol=0)


def test_noise_has_the_spread_of_the_gradient_and_spares_entries_without_one() -> None:
    method, encoder = OGMGE(first_epoch=0), encoder_with_gradients()
    words = encoder.get_parameter("text_tower.words.weight")
    assert words.grad is not None
    words.grad[40:] = 0  # words that are not in the batch
    method(some_pairs(swapped=True))  # images score higher
    found = modified(method, encoder)
    assert torch.equal(found["text_tower.words.weight"][1][40:], torch.zeros_like(words[40:]))
    before, after = found["image_tower.patch.weight"]
    noise = (after - before * method.coefficients()["image"]) / before.std()
    assert noise.mean().abs() < 0.1
    assert noise.std() == pytest.approx(1, abs=0.1)
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), before.flatten()]))[0, 1]) < 0.1
    before, after = found["text_tower.mix.weight"]  # the weaker modality: full gradient, and noise
    assert ((after - before) / before.std()).std() == pytest.approx(1, abs=0.4)
    assert torch.equal(*found["image_tower.patch.bias"])


def test_noise_depends_on_seed_and_step_alone() -> None:
    def after_steps(seed: int, steps: int) -> Tensor:
        torch.manual_seed(seed)
        method = OGMGE(first_epoch=0)
        method.setup(TrainingPairs(torch.arange(2), torch.ones(2, dtype=torch.bool)))
        for _ in range(steps):
            method(some_pairs())
            torch.manual_seed(torch.initial_seed() + 1)  # each process has its own random numbers, for dropout
            noisy = modified(method, encoder_with_gradients())["image_tower.patch.weight"][1]
        return noisy

    assert torch.equal(after_steps(0, 2), after_steps(0, 2))
    assert not torch.equal(after_steps(0, 1), after_steps(0, 2))
    assert not torch.equal(after_steps(0, 1), after_steps(1, 1))


def test_noise_leaves_the_random_numbers_of_dropout_alone() -> None:
    method, encoder = OGMGE(first_epoch=0), encoder_with_gradients()
    method(some_pairs())
    before = torch.get_rng_state()
    method.modify_gradients(encoder)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_outside_the_epochs_are_those_of_infonce() -> None:
    method = OGMGE(first_epoch=1, last_epoch=2)
    changed = []
    for epoch in range(4):
        method.begin_epoch(epoch, lambda _: torch.zeros(0))
        method(some_pairs())
        changed.append(not all(torch.equal(*both) for both in modified(method, encoder_with_gradients()).values()))
    assert changed == [False, True, True, False]
    torch.testing.assert_close(method(some_pairs())["info_nce"], InfoNCE()(some_pairs())["info_nce"], rtol=0, atol=0)


def test_scores_of_accumulated_batches_are_summed_and_begin_anew_after_a_step() -> None:
    method, other = OGMGE(first_epoch=0).double(), some_pairs(swapped=True)
    method(some_pairs())
    method(other)
    method.modify_gradients(encoder_with_gradients())
    assert method.score_ratio.item() == pytest.approx(1, abs=1e-9)
    method(other)
    method.modify_gradients(encoder_with_gradients())
    assert method.score_ratio.item() == pytest.approx(1.081788502669917)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha must be positive, got 0: without modulation, use InfoNCE"),
        ({"first_epoch": -1}, "0 <= first_epoch <= last_epoch, got -1 and None"),
        ({"first_epoch": 3, "last_epoch": 2}, "0 <= first_epoch <= last_epoch, got 3 and 2"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OGMGE(**options)


def test_order_local_rows_half_precision_and_state() -> None:
    method, pairs, order = OGMGE(first_epoch=0).double(), some_pairs((0, 1, 0, 2, 3)), torch.tensor([3, 0, 4, 1, 2])
    whole = method(pairs)
    moved = Pairs(pairs.image[order], pairs.text[order], pairs.image_index[order])
    torch.testing.assert_close(method(moved), whole)
    assert method.supports_local_loss
    assert set(method.weights) == set(whole)
    before = method.scores.clone()
    parts = [method(pairs, slice(row, row + 1)) for row in range(SIZE)]
    torch.testing.assert_close(torch.stack([part["info_nce"] for part in parts]).mean(), whole["info_nce"])
    torch.testing.assert_close(method.scores - before, before / 2 * SIZE)  # scores are those of all rows
    method.modify_gradients(encoder_with_gradients().double())
    other = OGMGE(first_epoch=0).double()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.scalars(), method.scalars(), rtol=0, atol=0)
    half = pairs._replace(image=pairs.image.bfloat16(), text=pairs.text.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = OGMGE(first_epoch=0)(half)["info_nce"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, InfoNCE()(half)["info_nce"])


# --- Training


class KeepEveryStep(pl.Callback):
    """Copies the checkpoint of each step."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        last = Path(trainer.default_root_dir) / "checkpoints/last.ckpt"
        if last.exists():
            shutil.copy(last, last.with_name(f"step-{trainer.global_step}.ckpt"))


@pytest.mark.filterwarnings("ignore:.*dirpath has changed")
def test_training_continues_exactly_from_any_step(tmp_path: Path) -> None:
    def run(folder: Path, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0 if ckpt_path is None else 7)  # the seed of the noise is in the checkpoint
        method = OGMGE(first_epoch=0, last_epoch=1, temperature=Temperature(0.1))
        module = RetrievalModule(DualEncoder(ImageTower(), TextTower(), 6), method, Optimisation(learning_rate=1e-2))
        callbacks = [BestCheckpoint(None, every_n_steps=1), Continuation(), KeepEveryStep()]
        options = {"enable_checkpointing": True, "callbacks": callbacks, "default_root_dir": folder}
        fitting = trainer(max_epochs=3, limit_val_batches=0, **options)
        fitting.fit(module, datamodule=scenes(), ckpt_path=ckpt_path, weights_only=True)
        return module.state_dict()

    whole = run(tmp_path / "whole")
    kept = sorted((tmp_path / "whole/checkpoints").glob("step-*.ckpt"))
    assert len(kept) == 8
    for checkpoint in kept[1::3]:
        continued = run(tmp_path / checkpoint.stem, checkpoint)
        assert all(torch.equal(value, continued[name]) for name, value in whole.items()), checkpoint.name
    assert whole["method.steps"] == 6  # of the two modulated epochs


def test_frozen_towers_are_left_out() -> None:
    encoder = DualEncoder(ImageTower(frozen=True), TextTower(), 6)
    for parameter in encoder.parameters():
        parameter.grad = torch.rand_like(parameter) if parameter.requires_grad else None
    method = OGMGE(first_epoch=0)
    method(some_pairs())
    before, after = modified(method, encoder)["image_projection.1.weight"]
    assert not torch.equal(before, after)
    assert all(each.grad is None for each in encoder.image_tower.parameters())
