"""CRCL against the public code and a pair-by-pair reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sdr_lightning.methods import CRCL, InfoNCE, Temperature
from sdr_lightning.methods.crcl import complementary_loss
from sdr_lightning.types import Pairs
from tests.methods.stateful import SHARED, SIZE, pairs_of, ready

# QinYang79/CRCL at 4a964067: CRCL.train_self, with warm_epoch 2, over five epochs of the pairs of pairs_of.
LOSSES = [20.84125957590293, 16.145683344324123, 7.413545108435868, 6.933438631804353, 6.2557502669023926]
LABELS = [
    [1.0, 1.0, 1.0, 1.0, 1.0],
    [0.0012602863154819422, 0.09705175573528121, 0.3400966639551444, 0.011270904373523292, 0.8444553331042818],
    [0.0, 0.0, 0.3538333052002811, 0.0, 0.8493695774167898],
    [0.0, 0.0, 0.371421178294841, 0.0, 0.8562067312289807],
    [0.0, 0.0, 0.3952394765531007, 0.0, 0.8634195010087569],
]
GRADIENT = [-1.5236496951999006, 0.43901580336732, -0.43947228552991313, -0.9737638327367385]  # last epoch, first image


def test_losses_labels_and_gradient_equal_the_public_code() -> None:
    method = ready(CRCL())
    for epoch, (loss, labels) in enumerate(zip(LOSSES, LABELS, strict=True)):
        pairs = pairs_of(epoch)
        method.begin_epoch(epoch, lambda _: torch.zeros(SIZE))
        total = method.total(method(pairs))
        assert total.item() == pytest.approx(loss, rel=1e-6)
        assert method.clean_probability.tolist() == pytest.approx(labels, rel=1e-6)
    gradient = torch.autograd.grad(total, pairs.image)[0]
    assert gradient[0].tolist() == pytest.approx(GRADIENT, rel=1e-6)


def reference(pairs: Pairs, labels: list[float], tau: float) -> tuple[float, float, list[float]]:
    """Both terms and p_i by the docstring, pair by pair, without other captions of the same image."""
    scores, ids = (pairs.image @ pairs.text.T).tolist(), pairs.image_index.tolist()
    active = complementary = 0.0
    predicted = [0.0] * SIZE
    for i in range(SIZE):
        for row in (scores[i], [other[i] for other in scores]):
            weights = {j: math.exp(row[j] / tau) for j in range(SIZE) if j == i or ids[j] != ids[i]}
            p = {j: weight / sum(weights.values()) for j, weight in weights.items()}
            active -= labels[i] * math.log(p[i]) / SIZE
            tangents = sum(math.tan(value) for value in p.values())
            complementary += sum(math.tan(p[j]) for j in p if j != i) / tangents ** (1 - labels[i]) / SIZE
            predicted[i] += p[i] / 2
    return active, complementary, predicted


@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "floor": 0.3, "warmup_epochs": 1}, {"warmup_epochs": 0}])
def test_terms_equal_a_pair_by_pair_reference(options: dict[str, Any]) -> None:
    method = ready(CRCL(Temperature(0.2), **options))
    options = {"momentum": 0.8, "floor": 0.1, "warmup_epochs": 2} | options
    stored = [1.0] * SIZE
    for epoch in range(4):
        pairs = pairs_of(epoch, SHARED)
        method.begin_epoch(epoch, lambda _: torch.zeros(SIZE))
        terms = {name: value.item() for name, value in method(pairs).items()}
        labels, (*_, predicted) = stored, reference(pairs, stored, 0.2)
        if epoch >= options["warmup_epochs"]:
            share = options["momentum"]
            labels = [share * y + (1 - share) * p for y, p in zip(stored, predicted, strict=True)]
            labels = [0.0 if y < options["floor"] else y for y in labels]
        active, complementary, _ = reference(pairs, labels, 0.2)
        assert terms == pytest.approx({"active": active, "complementary": complementary}, rel=1e-6)
        stored = predicted if epoch == options["warmup_epochs"] - 1 else labels


def test_with_full_labels_and_no_complementary_term_it_is_infonce() -> None:
    method = CRCL(Temperature(0.07), complementary=0)
    total = method.total(ready(method)(pairs_of(0)))
    torch.testing.assert_close(
        total, 2 * InfoNCE()(pairs_of(0))["info_nce"], rtol=1e-6, atol=0
    )  # it sums both directions


def test_a_pair_with_label_zero_has_a_bounded_loss() -> None:
    opposite = torch.eye(SIZE, dtype=torch.float64).roll(1, 0) * 0.999 + 1e-4
    opposite = opposite / opposite.sum(dim=1, keepdim=True)
    assert bool((complementary_loss(opposite, torch.zeros(SIZE)) <= 1).all())
    pairs = pairs_of(0)
    pairs = pairs._replace(text=-pairs.image.detach())
    method = ready(CRCL(Temperature(0.01)))
    method.epoch.fill_(2)
    method.previous_label.zero_()
    total = method.total(method(pairs))
    total.backward()
    assert total <= 5 * 2 * math.tan(1)
    assert pairs.image.grad is not None
    assert bool(pairs.image.grad.isfinite().all())


def test_a_repeated_call_changes_nothing_and_accumulation_keeps_each_pairs_label() -> None:
    method = ready(CRCL(warmup_epochs=0))
    first = method(pairs_of(1))
    labels = method.clean_probability.clone()
    torch.testing.assert_close(method(pairs_of(1)), first, rtol=0, atol=0)
    assert torch.equal(method.clean_probability, labels)
    part = Pairs(*(None if tensor is None else tensor[3:] for tensor in pairs_of(2)))
    method(part)
    assert torch.equal(method.clean_probability[:3], labels[:3])
    assert not torch.equal(method.clean_probability[3:], labels[3:])
    assert method.scalars()["mean_label"].item() == pytest.approx(method.clean_probability.mean().item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": -1}, "warm-up must be at least 0 epochs, got -1"),
        ({"momentum": 1.1}, r"momentum must be in \[0, 1\], got 1.1"),
        ({"floor": -0.1}, r"floor of labels must be in \[0, 1\], got -0.1"),
        ({"complementary": math.inf}, "must be finite and >= 0, got inf"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRCL(**options)


def test_pairs_without_index_and_a_method_without_setup_are_refused() -> None:
    with pytest.raises(ValueError, match="the batch must hold pair_index"):
        ready(CRCL())(pairs_of(0)._replace(pair_index=None))
    with pytest.raises(ValueError, match="call setup with the training pairs first"):
        CRCL()(pairs_of(0))
