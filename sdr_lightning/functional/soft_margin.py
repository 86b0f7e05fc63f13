"""Triplet losses with a soft margin: pairs that are less certain to match have a smaller one.

References:
    [0] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NCR), NeurIPS 2021;
        XLearning-SCU/2021-NeurIPS-NCR: NCR/model.py, ``ContrastiveLoss``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import positives
from sdr_lightning.functional.triplet import hinge_costs


def mean_costs(image: Tensor, text: Tensor, image_index: Tensor, margin: float) -> Tensor:
    """Compute the mean hinge of each pair over its negatives, summed over both directions.

    ``sum_j ([m + s_ij - s_ii]_+ + [m + s_ji - s_ii]_+) / B`` over the negatives j of i ([0], modes ``warmup`` and ``eval_loss``).
    A pair with few negatives, as in a short last batch, has a low cost: 0 without any.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) or (B, K) int64, see :func:`~sdr_lightning.functional.contrastive.positives`.
        margin: m > 0.

    Returns:
        (B,), at least 0; gradient flows to both embeddings.

    >>> mean_costs(torch.eye(2), torch.eye(2).flip(0), torch.tensor([0, 1]), 0.25)
    tensor([1.2500, 1.2500])
    """
    to_text, to_image = hinge_costs(image @ text.T, margin, positives(image_index, image_index))
    return to_text.mean(dim=1) + to_image.mean(dim=1)


def soft_margin_costs(image: Tensor, text: Tensor, image_index: Tensor, margin: float, labels: Tensor) -> Tensor:
    """Compute the hinge of each pair on its hardest negatives, with a soft margin, summed over both directions.

    ``max_j [m_i + s_ij - s_ii]_+ + max_j [m_i + s_ji - s_ii]_+`` with ``m_i = m (10^y_i - 1) / 9``, which is 0 for y = 0 and m
    for y = 1 ([0], mode ``train`` with the exponential margin). The margin is that of the anchor in both directions.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) or (B, K) int64, see :func:`~sdr_lightning.functional.contrastive.positives`.
        margin: m > 0.
        labels: (B,) y in [0, 1], constant.

    Returns:
        (B,), at least 0; gradient flows to both embeddings.

    >>> soft_margin_costs(torch.eye(2), torch.eye(2).flip(0), torch.tensor([0, 1]), 0.9, torch.tensor([0.0, 1.0]))
    tensor([2.0000, 3.8000])
    """
    margins = margin * (10**labels - 1) / 9
    to_text, to_image = hinge_costs(image @ text.T, margins, positives(image_index, image_index))
    return to_text.amax(dim=1) + to_image.amax(dim=1)


def predicted_labels(costs: Tensor, margin: float) -> Tensor:
    """Predict from the costs of a batch how well each pair matches.

    ``clamp(m - cost_i / 2, 0, m)``, divided by the mean of the greatest ``B // 10 + 1`` of the batch, at most 1 ([0], mode
    ``predict``).

    Args:
        costs: (B,) from :func:`mean_costs`.
        margin: m > 0, of the costs.

    Returns:
        (B,) in [0, 1]; all 0 where every cost is at least 2 m.

    >>> predicted_labels(torch.tensor([0.2, 0.3, 0.5]), 0.2)
    tensor([1.0000, 0.5000, 0.0000])
    """
    predicted = (margin - costs / 2).clamp(0, margin)
    greatest = predicted.topk(len(predicted) // 10 + 1).values.mean()
    return (predicted / greatest.clamp(min=torch.finfo(predicted.dtype).tiny)).clamp(max=1)
