"""Comparison of Gaussian embeddings.

References:
    [0] Chun, "Improved Probabilistic Image-Text Representations" (PCME++), ICLR 2024; naver-ai/pcmepp:
        pcmepp/criterions/pcmepp.py.
"""

from __future__ import annotations

from torch import Tensor


def sampled_distance(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Compute the expected squared distance of samples, the closed-form sampled distance of [0].

    ``d_ij = |mu_i - mu'_j|^2 + sum_k (sigma_ik^2 + sigma'_jk^2)``

    Args:
        mean: (Q, d) mu.
        log_variance: (Q, d) log sigma^2.
        other_mean: (G, d) mu'.
        other_log_variance: (G, d) log sigma'^2.

    Returns:
        (Q, G); gradient flows to all four.

    >>> import torch
    >>> one, zero = torch.eye(2), torch.zeros(2, 2)
    >>> sampled_distance(one, zero, one, zero)
    tensor([[4., 6.],
            [6., 4.]])
    """
    own = mean.square().sum(dim=1) + log_variance.exp().sum(dim=1)  # (Q,)
    others = other_mean.square().sum(dim=1) + other_log_variance.exp().sum(dim=1)  # (G,)
    return own[:, None] + others - 2 * mean @ other_mean.T


def with_pseudo_positives(scores: Tensor, matched: Tensor, own: Tensor) -> Tensor:
    """Add the items that score at least as high as the query's own pair to its positives.

    Args:
        scores: (Q, G), greater is better; taken as constants.
        matched: (Q, G) bool, the known positives.
        own: (Q,) int64, the column of each query's pair.

    Returns:
        (Q, G) bool.

    >>> import torch
    >>> with_pseudo_positives(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[True, False, False]]), torch.tensor([0]))
    tensor([[ True,  True, False]])
    """
    return matched | (scores >= scores.gather(1, own[:, None]))


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Compute the KL divergence of each dimension from a standard normal, averaged over items and dimensions.

    ``mean of (mu^2 + sigma^2 - 1 - log sigma^2) / 2``, the variational information bottleneck (VIB) of [0].

    Args:
        mean: (B, d) mu.
        log_variance: (B, d) log sigma^2.

    Returns:
        A scalar >= 0; gradient flows to both.

    >>> import torch
    >>> standard_normal_divergence(torch.ones(1, 2), torch.zeros(1, 2))
    tensor(0.5000)
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
