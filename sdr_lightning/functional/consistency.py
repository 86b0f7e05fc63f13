"""Whether the modalities of a pair agree on how near it is to pairs that are known to match.

References:
    [0] Yang et al., "BiCro: Noisy Correspondence Rectification for Multi-modality Data via Bi-directional Cross-modal Similarity
        Consistency", CVPR 2023; xu5zhao/BiCro: model.py, ``predict`` and ``SIM_SELE``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TIE = 1e-6  # of cosines, which are rounded


def bidirectional_consistency(image: Tensor, text: Tensor, is_anchor: Tensor) -> Tensor:
    """Compute the mean of two ratios of similarities to anchors, one anchor by image and one by caption ([0]).

    If images are similar, so should their captions be. With a(i) the anchor whose image is nearest to image i, and
    ``r(x, y)`` the lesser of x / y and y / x: ``r(cos(I_i, I_a), cos(T_i, T_a))``. The second ratio is that of the anchor whose
    caption is nearest to caption i. Anchors that are equally near are averaged.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        is_anchor: (B,) bool, pairs that are taken to match.

    Returns:
        (B,), at most 1, and 1 for anchors; negative or 0 where the signs of the similarities differ; 0 without any anchor.

    >>> image = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    >>> text = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.4, 0.9165]])
    >>> bidirectional_consistency(image, text, torch.tensor([True, False, False]))
    tensor([1.0000, 1.0000, 0.5000])
    """
    images, texts = image @ image.T, text @ text.T
    ratios = (_ratio(images, texts, is_anchor) + _ratio(texts, images, is_anchor)) / 2
    return torch.where(is_anchor, torch.ones_like(ratios), ratios)


def _ratio(by: Tensor, other: Tensor, is_anchor: Tensor) -> Tensor:
    """(B,) ratio of the similarities to the anchor that is nearest in one modality; the mean over equally near ones."""
    near = by.masked_fill(~is_anchor, float("-inf"))
    nearest = is_anchor & (
        near >= near.amax(dim=1, keepdim=True) - _TIE
    )  # captions of one image share its similarities
    forward, backward = by / other, other / by
    ratios = torch.where(forward < 1, forward, backward).nan_to_num(0.0)
    return (ratios * nearest).sum(dim=1) / nearest.sum(dim=1).clamp(min=1)
