"""How imbalanced a split *is*: what each modality says about the other, as the teachers see them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.information import information_imbalance


class Degree(NamedTuple):
    """The measured degree of imbalance, each about 0 (one modality tells the other) to 1 (it says nothing about it).

    Attributes:
        image_to_text: information imbalance from images to texts: how badly similar images predict similar texts.
        text_to_image: from texts to images.
    """

    image_to_text: float
    text_to_image: float

    @property
    def mean(self) -> float:
        """The mean of both: one axis for every kind of imbalance."""
        return (self.image_to_text + self.text_to_image) / 2


def measure_degree(
    image: Tensor, text: Tensor, caption_image: Tensor, neighbours: int = 5, points: int = 2000, seed: int = 0
) -> Degree:
    """Measure the degree of imbalance of pairs.

    A point is an image with the mean of the (normalised) features of the captions that it is paired with; images without
    captions are passed over. The measure is the information imbalance of Glielmo et al. (2022), see
    :func:`~sdr_lightning.functional.information.information_imbalance`; it is not symmetric, so it also says which
    modality is the poorer.

    Args:
        image: (N, D_I) features of images as they are shown.
        text: (C, D_T) features of captions as they are worded.
        caption_image: (C,) int64 image that each caption is paired with.
        neighbours: k of the measure; fewer where there are fewer other images.
        points: at most this many images, drawn at random.
        seed: of the draw.

    Returns:
        Both directions. No gradient.

    Raises:
        ValueError: fewer than two images with captions.
    """
    sums = text.new_zeros(len(image), text.shape[1]).index_add(0, caption_image, normalize(text, dim=1))
    captioned = torch.bincount(caption_image, minlength=len(image)).nonzero()[:, 0]
    rows = captioned[torch.randperm(len(captioned), generator=torch.Generator().manual_seed(seed))[:points]]
    a, b, neighbours = image[rows], sums[rows], min(neighbours, len(rows) - 1)
    return Degree(information_imbalance(a, b, neighbours, seed), information_imbalance(b, a, neighbours, seed))
