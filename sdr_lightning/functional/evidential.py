"""Evidential learning: scores as evidence for the classes of a Dirichlet distribution.

References:
    [0] Sensoy et al., "Evidential Deep Learning to Quantify Classification Uncertainty", NeurIPS 2018.
    [1] Qin et al., "Deep Evidential Learning with Noisy Correspondence for Cross-modal Retrieval" (DECL), ACM MM 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor


def evidential_losses(evidence: Tensor, labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the losses of [0] for rows whose own column is right or not, as in [1].

    ``a_ij = e_ij + 1`` are the parameters of a Dirichlet distribution over the classes of row i, ``S_i`` their sum, and
    ``y_ij = y_i`` for j = i, else 0. A row with label 0 has no right class.

    Args:
        evidence: (B, B) e >= 0.
        labels: (B,) y, 0 or 1; constant.
        classes: (B, B) bool, which columns are classes of a row; True on the diagonal.

    Returns:
        (B,) the expected squared error ``sum_j (y_ij - a_ij / S_i)^2 + a_ij (S_i - a_ij) / (S_i^2 (S_i + 1))``; and (B,) the
        Kullback-Leibler divergence of the distribution with parameters ``1 + (1 - y_ij) e_ij``, the evidence for wrong classes,
        from the uniform one. Gradient flows to ``evidence``.

    Example:
        >>> classes = torch.ones(2, 2, dtype=torch.bool)
        >>> error, divergence = evidential_losses(torch.eye(2), torch.tensor([1.0, 0.0]), classes)
        >>> error, divergence
        (tensor([0.3333, 0.6667]), tensor([0.0000, 0.1931]))
    """
    counted = classes.to(evidence.dtype)
    targets = torch.diag(labels.to(evidence.dtype))
    strength = ((evidence + 1) * counted).sum(dim=1, keepdim=True)
    expected = (evidence + 1) * counted / strength
    error = (targets - expected) ** 2 + expected * (1 - expected) / (strength + 1)
    return error.sum(dim=1), _divergence_from_uniform(evidence * (1 - targets) * counted, counted.sum(dim=1))


def _divergence_from_uniform(evidence: Tensor, classes: Tensor) -> Tensor:
    """(B,) divergence of the Dirichlet distributions with parameters ``evidence + 1``; columns without evidence add nothing."""
    strength = evidence.sum(dim=1) + classes
    spread = evidence * (torch.digamma(evidence + 1) - torch.digamma(strength)[:, None])
    normaliser = torch.lgamma(strength) - torch.lgamma(evidence + 1).sum(dim=1) - torch.lgamma(classes)
    return normaliser + spread.sum(dim=1)
