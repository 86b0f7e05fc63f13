"""Feature distillation against an independent reference, and its properties."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdr_lightning.methods import FeatureDistillation, InfoNCE
from tests.methods.test_methods import SIZE, some_pairs
from tests.reference.losses import dot, mean, unit


def distillation() -> FeatureDistillation:
    torch.manual_seed(0)
    return FeatureDistillation(4, 3, 3).double()


def identity() -> FeatureDistillation:
    """With maps that leave embeddings as they are."""
    method = FeatureDistillation(4, 4, 4).double()
    for linear in (method.predict_image_teacher, method.predict_text_teacher):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return method


def test_terms_equal_an_instance_by_instance_reference() -> None:
    method, pairs = distillation(), some_pairs(torch.tensor([0, 1, 0, 2, 3]))
    found = method(pairs)
    for modality in ("image", "text"):
        linear, errors = getattr(method, f"predict_{modality}_teacher"), []
        weight, bias = linear.weight.tolist(), linear.bias.tolist()
        for embedding, feature in zip(
            getattr(pairs, modality).tolist(), getattr(pairs, f"{modality}_teacher").tolist(), strict=True
        ):
            predicted = unit([dot(row, embedding) + b for row, b in zip(weight, bias, strict=True)])
            errors.append(sum((p - x) ** 2 for p, x in zip(predicted, unit(feature), strict=True)))
        assert found[f"{modality}_features"].item() == pytest.approx(mean(errors), rel=1e-6)
    torch.testing.assert_close(found["info_nce"], InfoNCE().double()(pairs)["info_nce"], rtol=0, atol=0)
    assert method.weights == {"info_nce": 1, "image_features": 4, "text_features": 4}


def test_terms_are_zero_where_embeddings_are_the_teachers_and_four_where_they_are_opposite() -> None:
    pairs = some_pairs()
    pairs = pairs._replace(image_teacher=3 * pairs.image, text_teacher=-2 * pairs.text)
    found = identity()(pairs)
    assert found["image_features"].item() == pytest.approx(0, abs=1e-12)
    assert found["text_features"].item() == pytest.approx(4)


def test_gradient_descent_brings_each_modality_to_its_own_teacher() -> None:
    method, pairs = distillation(), some_pairs()
    terms = method(pairs)
    (terms["image_features"] + terms["text_features"]).backward()
    assert all(parameter.grad is not None for name, parameter in method.named_parameters() if "predict" in name)
    with torch.no_grad():
        for embeddings in (pairs.image, pairs.text):
            assert embeddings.grad is not None
            embeddings -= 0.1 * embeddings.grad
    later = method(pairs)
    assert all(later[name] < terms[name] for name in ("image_features", "text_features"))


def test_there_are_no_negatives() -> None:
    pairs = some_pairs()
    pairs.image.requires_grad_()
    one = pairs.image_teacher.clone()
    one[0] += 1
    method = distillation()
    slopes = [
        torch.autograd.grad(method(pairs._replace(image_teacher=teacher))["image_features"], pairs.image)[0]
        for teacher in (pairs.image_teacher, one)
    ]
    assert not torch.equal(slopes[0][0], slopes[1][0])
    torch.testing.assert_close(slopes[0][1:], slopes[1][1:], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_teacher": None}, "needs image-teacher features and the batch has none"),
        ({"text_teacher": torch.ones(SIZE, 7)}, "the text bank is 7 wide and the method expects 3: set .*_width to 7"),
    ],
)
def test_features_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation()(some_pairs()._replace(**change))


def test_a_weight_that_is_not_positive_is_refused() -> None:
    assert distillation().needs == {"image_teacher", "text_teacher"}
    with pytest.raises(ValueError, match="must be positive, got 0: for 0, use InfoNCE"):
        FeatureDistillation(4, 3, 3, weight=0)
