"""Triplet losses: a margin between a pair and its negatives.

References:
    [0] Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018.
    [1] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NCR), NeurIPS 2021.
"""

from __future__ import annotations

from torch import Tensor


def hinge_costs(scores: Tensor, margin: Tensor | float, same: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the hinge of every negative against the pair of its anchor.

    Args:
        scores: (B, B) similarities; row i is image i, column j is caption j, and the diagonal holds the pairs.
        margin: m > 0, or (B,) a margin of each anchor pair.
        same: (B, B) bool, True where image and caption are positives of each other; these cost nothing.

    Returns:
        (B, B) ``[m_i + s_ij - s_ii]_+``, image i against captions j, and (B, B) ``[m_i + s_ji - s_ii]_+``, caption i against
        images j; gradient flows to the scores and to the margin.

    Example:
        >>> import torch
        >>> to_text, to_image = hinge_costs(torch.tensor([[0.5, 0.4], [0.0, 0.5]]), 0.2, torch.eye(2, dtype=torch.bool))
        >>> to_text
        tensor([[0.0000, 0.1000],
                [0.0000, 0.0000]])
        >>> to_image
        tensor([[0.0000, 0.0000],
                [0.1000, 0.0000]])
    """
    matched = scores.diag()[:, None]  # (B, 1)
    margins = margin[:, None] if isinstance(margin, Tensor) else margin
    to_text = (margins + scores - matched).clamp(min=0).masked_fill(same, 0)
    to_image = (margins + scores.T - matched).clamp(min=0).masked_fill(same.T, 0)
    return to_text, to_image
