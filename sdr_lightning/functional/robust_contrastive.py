"""Contrastive losses that limit the influence of mismatched pairs.

References:
    [0] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs" (RCL), TPAMI 2023; penghu-cs/RCL: RCL-SGRAF/model.py.
    [1] Chuang et al., "Robust Contrastive Learning against Noisy Views" (RINCE), CVPR 2022; chingyaoc/RINCE:
        ImageNet/moco-v3/moco/builder.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import both_directions, positive_targets, positives

Complementary = Literal["log", "tan", "abs", "exp", "gce"]


def complementary_contrast(
    image: Tensor,
    text: Tensor,
    image_index: Tensor,
    temperature: Tensor | float,
    kind: Complementary,
    q: float = 0.5,
    local_rows: slice = slice(None),
) -> Tensor:
    """Compute the complementary contrastive loss of [0]: it lowers the probability of negatives only.

    The mean over both directions and over queries of ``sum_j f(p_ij)`` over the negatives j of the query i, where
    ``p_i = softmax_j(s_ij / tau)`` and f is

    =======  =======================
    ``log``  ``-log(1 - p)``
    ``tan``  ``tan p``
    ``abs``  ``p``
    ``exp``  ``exp(p - 1)``
    ``gce``  ``(1 - (1 - p)^q) / q``
    =======  =======================

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) or (B, K) int64; positives, which are not negatives, see
            :func:`~sdr_lightning.functional.contrastive.positives`.
        temperature: tau > 0.
        kind: f.
        q: in (0, 1], only for ``gce``.
        local_rows: the pairs used as queries against all B; all pairs by default.

    Returns:
        A scalar >= 0; gradient flows to both embeddings and to the temperature.

    >>> complementary_contrast(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 1.0, "abs")
    tensor(0.2689)
    """
    negative = ~positives(image_index[local_rows], image_index)
    directions = both_directions(image, text, temperature, local_rows)
    losses = [torch.where(negative, _complementary(logits, kind, q), 0).sum(dim=1).mean() for logits in directions]
    return torch.stack(losses).mean()


def robust_info_nce(
    image: Tensor,
    text: Tensor,
    image_index: Tensor,
    temperature: Tensor | float,
    q: float,
    density: float,
    local_rows: slice = slice(None),
) -> Tensor:
    """Compute RINCE ([1]).

    The mean over both directions and over queries of ``(lambda sum_j e_ij)^q / q - sum_j y_ij e_ij^q / q``, where
    ``e_ij = exp(s_ij / tau)`` and ``y_i`` is uniform over the positives of i. For q to 0 it is InfoNCE plus ``log lambda``.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) or (B, K) int64, see :func:`complementary_contrast`.
        temperature: tau > 0.
        q: in (0, 1].
        density: lambda > 0.
        local_rows: the pairs used as queries against all B; all pairs by default.

    Returns:
        A scalar of any sign; gradient flows to both embeddings and to the temperature.

    >>> robust_info_nce(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 1.0, q=1.0, density=0.5)
    tensor(-0.8591)
    """
    targets = positive_targets(image_index[local_rows], image_index, image.dtype)
    losses = []
    for logits in both_directions(image, text, temperature, local_rows):
        matched = (targets * (q * logits).exp()).sum(dim=1)
        everything = (q * (math.log(density) + logits.logsumexp(dim=1))).exp()
        losses.append(((everything - matched) / q).mean())
    return torch.stack(losses).mean()


def _complementary(logits: Tensor, kind: Complementary, q: float) -> Tensor:
    """(Q, G) f of each probability."""
    if kind == "log":
        return -_log_complement(logits)
    if kind == "gce":
        return -torch.expm1(q * _log_complement(logits)) / q
    probability = logits.softmax(dim=1)
    if kind == "tan":
        return probability.tan()
    return probability if kind == "abs" else (probability - 1).exp()


def _log_complement(logits: Tensor) -> Tensor:
    """(Q, G) ``log(1 - p)``, exact for a probability near 1 too: there, ``1 - p`` is the sum of the others."""
    greatest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.argmax(dim=1, keepdim=True), True)
    others = logits.masked_fill(greatest, torch.finfo(logits.dtype).min).logsumexp(dim=1, keepdim=True)
    smaller = logits.softmax(dim=1).masked_fill(greatest, 0)  # at most 1/2
    return torch.where(greatest, others - logits.logsumexp(dim=1, keepdim=True), torch.log1p(-smaller))
