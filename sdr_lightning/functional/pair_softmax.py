"""Softmax over a batch that tells how probably each image and its own caption belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import positives


def pair_log_softmax(scores: Tensor, image_index: Tensor, temperature: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of all captions for each image, and of all images for each caption.

    ``p_ij = softmax_j(s_ij / tau)``, where other captions of image i take no part: they are neither right nor wrong. So ``p_ii``
    judges pair i alone, whether or not the other captions of its image are right.

    Args:
        scores: (B, B) similarities; row i is image i, column j is caption j, and the diagonal holds the pairs.
        image_index: (B,) or (B, K) int64, see :func:`~sdr_lightning.functional.contrastive.positives`.
        temperature: tau > 0.

    Returns:
        (B, B) ``log p_ij`` of image i over captions j, and (B, B) ``log p'_ij`` of caption i over images j; ``-inf`` where j
        takes no part. Gradient flows to scores and temperature.

    Example:
        >>> to_text, to_image = pair_log_softmax(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([3, 4]))
        >>> to_text.exp()
        tensor([[0.7311, 0.2689],
                [0.5000, 0.5000]])
        >>> pair_log_softmax(torch.zeros(2, 2), torch.tensor([3, 3]))[0].exp()
        tensor([[1., 0.],
                [0., 1.]])
    """
    logits = (scores / temperature).masked_fill(same_image_others(image_index), float("-inf"))
    return logits.log_softmax(dim=1), logits.T.log_softmax(dim=1)


def same_image_others(image_index: Tensor) -> Tensor:
    """Compute which pairs are positives of one another, without the pairs themselves.

    Args:
        image_index: (B,) or (B, K) int64.

    Returns:
        (B, B) bool, symmetric, False on the diagonal.

    Example:
        >>> same_image_others(torch.tensor([3, 4, 3])).int()
        tensor([[0, 0, 1],
                [0, 0, 0],
                [1, 0, 0]], dtype=torch.int32)
    """
    itself = torch.eye(len(image_index), dtype=torch.bool, device=image_index.device)
    return positives(image_index, image_index) & ~itself
