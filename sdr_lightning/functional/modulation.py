"""Balance of modalities by modulated gradients.

References:
    [0] Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (OGM-GE), CVPR 2022;
        GeWu-Lab/OGM-GE_CVPR2022: main.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import positives


@torch.no_grad()
def self_discrimination(embeddings: Tensor, group: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute how well the embeddings of one modality tell the images of a batch apart.

    ``s = 1/B sum_i exp(1 / tau) / (exp(1 / tau) + sum_j exp(<x_i, x_j> / tau))``, where j runs over the items of other images:
    the mean probability that a softmax over the batch gives to item i for the query i.

    Args:
        embeddings: (B, d), L2-normalised.
        group: (B,) int64, or (B, K); items with an equal value belong to the same image.
        temperature: tau > 0.

    Returns:
        A scalar in [1/B, 1], without gradient; 1 where the cosines of items of different images are far below 1.

    >>> round(self_discrimination(torch.eye(2), torch.tensor([0, 1]), 1.0).item(), 4)
    0.7311
    """
    logits = (embeddings @ embeddings.T - 1) / temperature  # (B, B), against 0 for the item itself
    logits = logits.masked_fill(positives(group, group), float("-inf"))
    itself = logits.new_zeros(len(logits), 1)
    return torch.cat([itself, logits], dim=1).softmax(dim=1)[:, 0].mean()


def modulation_coefficient(ratio: Tensor, alpha: float) -> Tensor:
    """Compute k of [0]: ``1 - tanh(alpha rho)`` where the score ratio rho exceeds 1, else 1.

    Args:
        ratio: rho > 0, the score of the modality divided by that of the other one; any shape.
        alpha: at least 0.

    Returns:
        k in (0, 1], in the shape of ``ratio``; not continuous at 1.

    >>> modulation_coefficient(torch.tensor([0.5, 1.0, 2.0]), alpha=0.3)
    tensor([1.0000, 1.0000, 0.4630])
    """
    return torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), torch.ones_like(ratio))
