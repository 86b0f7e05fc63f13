"""The likeliest right caption for an image, among the captions of the data set."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.agreement import predicted_text_features
from sdr_lightning.functional.search import Advance, chunks, top_k

_IMAGES = 2048  # at a time, because a single image may have very many captions


def suggested_captions(
    image_features: Tensor, text_features: Tensor, image_index: Tensor, images: Tensor, advance: Advance | None = None
) -> Tensor:
    """Find the caption nearest to each image, among those of all other images.

    An image is mapped into the text space by a regression that was fitted without it, see
    :func:`~sdr_lightning.functional.agreement.predicted_text_features`, so a wrong pair does not confirm itself.

    Args:
        image_features: (N, D_I), a row of each image.
        text_features: (C, D_T), a row of each caption.
        image_index: (C,) int64, row of the image of each pair.
        images: (n,) int64 rows of the images to find captions for, at least one.
        advance: progress callback, called with the number of cosines just computed.

    Returns:
        (n,) int64 rows of captions.

    Raises:
        ValueError: as :func:`~sdr_lightning.functional.agreement.pair_agreement`.
    """
    predicted, texts = predicted_text_features(image_features, text_features, image_index)
    by_image, count = image_index.argsort(stable=True), torch.bincount(image_index)
    first = count.cumsum(0) - count
    found = []
    for rows in chunks(len(images), _IMAGES):
        some = images[rows]
        place = torch.arange(int(count[some].max()))
        captions = by_image[(first[some, None] + place).clamp(max=len(by_image) - 1)]  # (n, most captions of an image)
        own = torch.where(place < count[some, None], captions, -1)
        found.append(top_k(predicted[some], texts, 1, exclude=own, advance=advance).items[:, 0])
    return torch.cat(found)
