"""SCE against the authors' numbers, a pair-by-pair reference, and its properties."""

from __future__ import annotations

import math

import pytest
import torch

from sdr_lightning.methods import SCE, InfoNCE, Temperature
from tests.methods.test_methods import SIZE, some_pairs
from tests.reference.losses import softmax

SHARED = torch.tensor([0, 1, 0, 2, 3])


def sce(tau: float, alpha: float = 1.0, beta: float = 1.0) -> SCE:
    return SCE(alpha, beta, Temperature(tau, learnable=False)).double()


@pytest.mark.parametrize(("tau", "expected"), [(0.05, 17.671847204137915), (0.3, 13.888831135608095)])
def test_sce_equals_the_public_code_for_retrieval(tau: float, expected: float) -> None:
    """hhc1997/L2RM at a766c22a: RCE, which contains the cross-entropy."""
    method = sce(tau)
    assert method.total(method(some_pairs())).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("alpha", "expected"), [(0.1, 7.132130313666046), (6.0, 17.198626499955807)])
def test_sce_equals_the_public_code_for_classification(alpha: float, expected: float) -> None:
    """HanxunH/SCELoss-Reproduce at c81fb336: SCELoss with beta 1, the mean of both directions at scale 1 / 0.3."""
    method = sce(0.3, alpha, math.log(1e-4) / math.log(1e-7))
    assert method.total(method(some_pairs())).item() == pytest.approx(expected, rel=1e-6)


def test_sce_equals_a_pair_by_pair_reference() -> None:
    """With several captions of an image, which are all labels of 1."""
    pairs, expected = some_pairs(SHARED), 0.0
    scores = (pairs.image @ pairs.text.T / 0.2).tolist()
    for table in (scores, list(zip(*scores, strict=True))):
        for i in range(SIZE):
            logs = [math.log(1.0 if SHARED[i] == SHARED[j] else 1e-7) for j in range(SIZE)]
            expected -= sum(p * log for p, log in zip(softmax(table[i]), logs, strict=True)) / SIZE / 2
    method, contrast = sce(0.2), InfoNCE(Temperature(0.2)).double()
    found = method(pairs)
    assert found["reverse"].item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(found["info_nce"], contrast(pairs)["info_nce"], rtol=0, atol=0)


def test_the_reverse_term_is_bounded_where_infonce_is_not() -> None:
    opposite = some_pairs()
    opposite = opposite._replace(text=-opposite.image.detach())
    terms = sce(0.01)(opposite)
    assert terms["info_nce"] > 100
    assert 16 < terms["reverse"] <= -math.log(1e-7)
    terms["reverse"].backward()
    assert opposite.image.grad is not None
    assert bool(opposite.image.grad.isfinite().all())


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_weights_that_are_not_positive_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        SCE(**{name: 0})
