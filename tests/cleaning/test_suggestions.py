"""Suggested captions, against plain loops, and held out."""

import pytest
import torch
from torch import Tensor

from sdr_lightning.cleaning import suggestions
from sdr_lightning.cleaning.suggestions import suggested_captions
from sdr_lightning.functional.agreement import predicted_text_features


def features() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(60, 5, generator=generator)
    index = torch.randperm(60, generator=generator).repeat(3)[:150]  # not image by image, and unequal numbers
    image = content @ torch.randn(5, 9, generator=generator)
    text = content[index] @ torch.randn(5, 7, generator=generator) + 0.1 * torch.randn(150, 7, generator=generator)
    return image, text, index


@pytest.mark.parametrize("at_a_time", [2048, 2])
def test_the_nearest_caption_of_another_image_is_suggested(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestions, "_IMAGES", at_a_time)
    image, text, index = features()
    wanted = torch.tensor([3, 0, 41])
    predicted, texts = predicted_text_features(image, text, index)
    for row, found in zip(wanted.tolist(), suggested_captions(image, text, index, wanted).tolist(), strict=True):
        scores = [float(predicted[row] @ texts[k]) if index[k] != row else -2.0 for k in range(150)]
        assert found == max(range(150), key=lambda k: scores[k])


def test_a_pair_does_not_take_part_in_its_own_suggestion() -> None:
    """The captions of an image change nothing about what is suggested for it."""
    image, text, index = features()
    before = suggested_captions(image, text, index, torch.tensor([7]))
    other = text.clone()
    other[index == 7] = torch.randn(int((index == 7).sum()), 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(suggested_captions(image, other, index, torch.tensor([7])), before)
