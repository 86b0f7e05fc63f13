"""Placebos are independent, and content is compared item by item."""

import numpy as np
import pytest
import torch

from sdr_lightning.features import FeatureBank


def test_placebos_of_two_modalities_are_independent() -> None:
    content = np.zeros(2, dtype=np.int64)
    image, text = (FeatureBank(m, ["1", "2"], content, torch.zeros(2, 8), m) for m in ("image", "text"))
    assert not torch.equal(image.placebo(0).features, text.placebo(0).features)


def test_content_must_match_the_ids() -> None:
    bank = FeatureBank("image", ["a", "b"], np.zeros(2, dtype=np.int64), torch.zeros(2, 3), "x")
    with pytest.raises(ValueError, match="hash"):
        bank.rows(["a", "b"], np.zeros(1, dtype=np.int64))
