"""Instance-level matching: contrastive losses with several positives per row.

References:
    [0] Li et al., "Align before Fuse" (ALBEF), NeurIPS 2021: soft-target image-text contrast.
    [1] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code: the terms ITC, IIC and TTC.
    [2] Chen et al., "A Simple Framework for Contrastive Learning" (SimCLR), ICML 2020: NT-Xent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positives(query_index: Tensor, gallery_index: Tensor) -> Tensor:
    """Which pairs are positives of one another.

    Args:
        query_index: (Q,) int64, or (Q, K) for K ways to be a positive: by image, by caption.
        gallery_index: (G,) or (G, K) int64.

    Returns:
        (Q, G) bool, True where a value is equal, in any of the K columns.
    """
    equal = query_index[:, None] == gallery_index[None, :]
    return equal if equal.ndim == 2 else equal.any(dim=2)


def positive_targets(query_index: Tensor, gallery_index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Spread each row's target evenly over its positives, by default the gallery items that share its image.

    ``y_ij = [q_i = g_j] / sum_k [q_i = g_k]``

    Args:
        query_index: (Q,) int64 image rows, or (Q, K), see :func:`positives`.
        gallery_index: (G,) or (G, K) int64.
        dtype: of the result.

    Returns:
        (Q, G), rows sum to 1; a row without a positive is all zero.
    """
    targets = positives(query_index, gallery_index).to(dtype)  # (Q, G)
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of ``-sum_j y_ij log softmax_j(logits_i)``.

    Args:
        logits: (Q, G), computed in float32 under autocast; may hold ``-inf`` where the target is 0.
        targets: (Q, G), rows sum to 1; constant.

    Returns:
        A scalar; gradient flows to ``logits``.
    """
    log_probabilities = logits.float().log_softmax(dim=1) if logits.dtype.itemsize < 4 else logits.log_softmax(dim=1)
    weighted = torch.where(targets > 0, targets * log_probabilities, torch.zeros_like(log_probabilities))
    return -weighted.sum(dim=1).mean()


def contrast(queries: Tensor, gallery: Tensor, targets: Tensor, temperature: Tensor | float) -> Tensor:
    """One direction of a contrastive loss: every query picks its positives out of the gallery ([1], IIC and TTC).

    Args:
        queries: (Q, d) L2-normalised.
        gallery: (G, d) L2-normalised.
        targets: (Q, G) of :func:`positive_targets`.
        temperature: tau > 0.

    Returns:
        A scalar; gradient flows to both sides and to the temperature.
    """
    return soft_cross_entropy(queries @ gallery.T / temperature, targets)


def image_text_contrast(
    image: Tensor, text: Tensor, image_index: Tensor, temperature: Tensor | float, local_rows: slice = slice(None)
) -> Tensor:
    """ITC of [0, 1]: the mean of image-to-text and text-to-image contrast with several positives.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) int64; pairs with equal values are positives of one another; or (B, K), see :func:`positives`.
        temperature: tau > 0.
        local_rows: the pairs whose queries are asked, among all B; all of them by default.

    Returns:
        A scalar, the mean over the queries; gradient flows to both embeddings and to the temperature.
    """
    targets = positive_targets(image_index[local_rows], image_index, image.dtype)  # (Q, B)
    to_text = image[local_rows] @ text.T / temperature
    to_image = to_text.T if len(to_text) == len(text) else text[local_rows] @ image.T / temperature
    return (soft_cross_entropy(to_text, targets) + soft_cross_entropy(to_image, targets)) / 2


def nt_xent(embeddings: Tensor, group: Tensor, temperature: float) -> Tensor:
    """NT-Xent ([2]) with several positives: views of one image, or captions of one image.

    Args:
        embeddings: (B, d) L2-normalised.
        group: (B,) int64; other items of the same group are the positives, the item itself is left out.
        temperature: tau > 0.

    Returns:
        A scalar over the items that have a positive, in float32 at least, also under autocast; gradient flows to the
        embeddings.

    Raises:
        ValueError: no item has a positive.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return _nt_xent(embeddings if embeddings.dtype.itemsize >= 4 else embeddings.float(), group, temperature)


def _nt_xent(embeddings: Tensor, group: Tensor, temperature: float) -> Tensor:
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    others = positives(group, group) & ~itself  # (B, B)
    has_positive = others.any(dim=1)
    if not bool(has_positive.any()):
        raise ValueError("no item of the batch has a positive: every group occurs once; give two views of each")
    targets = others.to(embeddings.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, float("-inf"))
    return soft_cross_entropy(logits[has_positive], targets[has_positive])


def ambiguity_penalty(embeddings: Tensor, low: float = 0.1, high: float = 0.5) -> Tensor:
    """How far similarities lie inside (low, high), where two items are neither alike nor different.

    ``mean over i != j of max(0, min(s_ij - low, high - s_ij))``: that similarities are kept out of this range follows the
    paper's group's earlier code; its form there is not published, and this one is this project's local_rows.

    Args:
        embeddings: (B, d) L2-normalised.
        low: lower end of the range.
        high: upper end of the range.

    Returns:
        A scalar in [0, (high - low) / 2], 0 for a single item; gradient flows to the embeddings.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings if embeddings.dtype.itemsize >= 4 else embeddings.float()
        cosines = rows @ rows.T
        inside = torch.minimum(cosines - low, high - cosines).clamp(min=0)
        size = len(rows)
        itself = torch.eye(size, dtype=torch.bool, device=rows.device)
        return inside.masked_fill(itself, 0).sum() / max(1, size * (size - 1))
