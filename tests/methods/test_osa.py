"""OSA: the public code, and which pairs its estimator finds mismatched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdr_lightning.functional.agreement import predicted_text_features
from sdr_lightning.methods import OSA, InfoNCE
from tests.methods import test_methods as contract

SIMILARITIES = torch.tensor([30.0, 22.0, 14.0, 26.0, 17.0])
SHIFT = 15.0


def osa(similarities: Tensor = SIMILARITIES) -> OSA:
    method = OSA().double()
    method.register_probability((similarities - SHIFT).clamp(min=0).double() / 40)
    return method


def test_weights_and_loss_equal_the_public_code() -> None:
    """leolee99/OSA at d64645b3: weight_function with threshold 15, and CrossEn over the mean weight, at scale 1 / 0.07."""
    weights = [0.0, 0.17035061728395065, 0.0, 0.24857283950617284, 0.01746172839506173]
    found = osa().pair_weights(contract.some_pairs())
    assert found.tolist() == pytest.approx(weights)
    expected = 0.5015824471916186 / (sum(weights) / 5)
    assert osa()(contract.some_pairs())["info_nce"].item() == pytest.approx(expected, rel=1e-6)


def test_the_most_similar_pair_of_a_batch_has_no_weight() -> None:
    method, pairs = osa(), contract.some_pairs()
    others = type(pairs)(*(None if tensor is None else tensor[1:] for tensor in pairs))
    assert method.pair_weights(pairs).argmin() == 0
    assert method.pair_weights(others).tolist() == pytest.approx(
        [(49 / 121) * (72 / 121), 0, 0, (4 / 121) * (117 / 121)]
    )


def test_equal_weights_are_infonce() -> None:
    method, pairs = osa(), contract.some_pairs(torch.tensor([0, 1, 0, 2, 3]))
    method.clean_probability[:] = torch.tensor([0.4, 0.4, 0.4, 0.4, 0.8])
    expected = method(pairs)["info_nce"]
    method.clean_probability[:] = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.4])
    torch.testing.assert_close(method(pairs)["info_nce"], expected)
    method.pair_weights = lambda _: torch.full((5,), 0.25)  # type: ignore[method-assign]
    torch.testing.assert_close(method(pairs), InfoNCE().double()(pairs))


def test_mismatched_pairs_are_below_the_shift_or_near_it() -> None:
    training, method = contract.agreeing_pairs(), OSA(folds=2)
    method.setup(training)
    probability = method.clean_probability
    assert probability.max() == 1
    assert probability[training.is_original].mean() > 0.8
    assert probability[~training.is_original].mean() < 0.3
    images, texts = predicted_text_features(
        training.image_teacher, training.text_teacher, training.image_index, folds=2
    )
    cosines = images @ texts.T
    assert method.scalars()["shift"].item() == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert method.scalars()["above_shift"] == pytest.approx((cosines.diag() > cosines.mean()).float().mean().item())
    expected = (cosines.diag() - cosines.mean()).clamp(min=0)
    torch.testing.assert_close(probability, expected / expected.max(), rtol=0, atol=1e-5)


def test_a_batch_without_any_pair_above_the_shift_has_no_loss() -> None:
    method, pairs = osa(torch.zeros(5)), contract.some_pairs()
    loss = method(pairs)["info_nce"]
    loss.backward()
    assert loss == 0
    assert pairs.image.grad is not None
    assert not pairs.image.grad.any()


def test_state_is_restored_from_a_state_dict() -> None:
    method, other = OSA(folds=2), OSA(folds=2)
    method.setup(contract.agreeing_pairs())
    other.setup(contract.agreeing_pairs(wrong=20))
    assert not torch.equal(other.clean_probability, method.clean_probability)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.scalars(), method.scalars(), rtol=0, atol=0)
    assert torch.equal(other.clean_probability, method.clean_probability)


def test_osa_needs_both_teachers_that_agree() -> None:
    assert OSA().needs == {"image_teacher", "text_teacher"}
    with pytest.raises(ValueError, match="one of them is absent"):
        OSA().setup(contract.agreeing_pairs()._replace(image_teacher=None))
    training = contract.agreeing_pairs()
    with pytest.raises(ValueError, match="no training pair is more similar than unrelated ones"):
        OSA(folds=2).setup(training._replace(image_teacher=torch.zeros(2000, 8)))
