"""Measured degree of imbalance of a split: how well each modality predicts the other in the teachers' feature spaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.information import information_imbalance


class Degree(NamedTuple):
    """Measured degree of imbalance; each value is about 0 (fully predictive) to 1 (independent).

    Attributes:
        image_to_text: information imbalance from images to texts: how badly similar images predict similar texts.
        text_to_image: information imbalance from texts to images.
    """

    image_to_text: float
    text_to_image: float

    @property
    def mean(self) -> float:
        """Mean of both directions."""
        return (self.image_to_text + self.text_to_image) / 2


def measure_degree(
    image: Tensor, text: Tensor, caption_image: Tensor, neighbours: int = 5, points: int = 2000, seed: int = 0
) -> Degree:
    """Measure the degree of imbalance between paired images and captions.

    Each point is an image together with the mean normalised feature of its captions; images without captions are skipped. The
    measure is the information imbalance of Glielmo et al. (2022), see
    :func:`~sdr_lightning.functional.information.information_imbalance`. It is not symmetric, so it shows which modality is
    less informative.

    Args:
        image: (N, D_I) features of the images, after corruption.
        text: (C, D_T) features of the captions, after corruption.
        caption_image: (C,) int64 image paired with each caption.
        neighbours: k of the measure; reduced if there are fewer other images.
        points: maximum number of images, sampled at random.
        seed: random seed of the sample.

    Returns:
        Both directions. No gradient.

    Raises:
        ValueError: fewer than two images have captions.
    """
    sums = text.new_zeros(len(image), text.shape[1]).index_add(0, caption_image, normalize(text, dim=1))
    captioned = torch.bincount(caption_image, minlength=len(image)).nonzero()[:, 0]
    rows = captioned[torch.randperm(len(captioned), generator=torch.Generator().manual_seed(seed))[:points]]
    a, b, neighbours = image[rows], sums[rows], min(neighbours, len(rows) - 1)
    return Degree(information_imbalance(a, b, neighbours, seed), information_imbalance(b, a, neighbours, seed))
