"""The tower of precomputed region features."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdr_lightning.encoders.precomputed import PrecomputedImageTower


def tower(pooling: Any = "mean", **options: Any) -> PrecomputedImageTower:
    torch.manual_seed(0)
    return PrecomputedImageTower(**{"features_width": 6, "width": 8, **options}, pooling=pooling)


def regions(images: int = 3, number: int = 5, width: int = 6) -> Tensor:
    return torch.randn(images, number, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_regions_are_encoded_separately_and_pooled(pooling: str) -> None:
    encoder, inputs = tower(pooling).eval(), regions()
    each = encoder(inputs.reshape(15, 1, 6)).reshape(3, 5, 8)
    expected = each.mean(dim=1) if pooling == "mean" else each.max(dim=1).values
    torch.testing.assert_close(encoder(inputs), expected)
    torch.testing.assert_close(encoder.encode(inputs).tokens, each)


def test_region_encoding_is_linear_shortcut_plus_mlp() -> None:
    encoder, inputs = tower(), regions(number=1)
    assert isinstance(encoder.mlp, nn.Sequential)
    linear, activation, _, last = encoder.mlp
    expected = encoder.shortcut(inputs[:, 0]) + last(activation(linear(inputs[:, 0])))
    torch.testing.assert_close(encoder(inputs), expected)


@pytest.mark.parametrize(("hidden_width", "hidden"), [(None, 4), (3, 3)])
def test_widths(hidden_width: int | None, hidden: int) -> None:
    encoder = tower(hidden_width=hidden_width)
    assert encoder.width == 8
    assert encoder(regions()).shape == (3, 8)
    assert encoder.get_parameter("mlp.0.weight").shape == (hidden, 6)


def test_dropout_is_applied_in_training_only() -> None:
    encoder, inputs = tower(dropout=0.5), regions()
    assert not torch.equal(encoder(inputs), encoder(inputs))
    encoder.eval()
    assert torch.equal(encoder(inputs), encoder(inputs))


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 5.0]), ("max", [3.0, 9.0])])
def test_no_width_pools_the_features_unchanged(pooling: str, expected: list[float]) -> None:
    encoder = tower(pooling, features_width=2, width=None)
    assert encoder.width == 2
    assert list(encoder.parameters()) == []
    assert encoder(torch.tensor([[[1.0, 9.0], [3.0, 1.0]]])).tolist() == [expected]


def test_fingerprint_covers_settings_and_weights() -> None:
    other = tower()
    with torch.no_grad():
        other.shortcut.bias[0] += 1
    towers = [
        tower(),
        tower("max"),
        tower(width=9),
        tower(width=6),
        tower(width=None),
        tower("max", width=None),
        tower(hidden_width=3),
        tower(features_width=7),
        other,
    ]
    assert len({each.fingerprint() for each in towers}) == len(towers)
    assert tower().fingerprint() == tower().fingerprint()


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 5, 6, 1)])
def test_features_of_another_shape_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expects features \(B, R, 6\), got .*: set its features_width to that of"):
        tower()(torch.zeros(shape))


@pytest.mark.parametrize("option", [{"features_width": 0}, {"width": 0}, {"hidden_width": 0}])
def test_widths_must_be_positive(option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="widths must be positive, got"):
        tower(**option)
