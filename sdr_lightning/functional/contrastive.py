"""Contrastive losses with several positives per row.

References:
    [0] Li et al., "Align before Fuse" (ALBEF), NeurIPS 2021: soft-target image-text contrast.
    [1] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code: the terms ITC, IIC and TTC.
    [2] Chen et al., "A Simple Framework for Contrastive Learning" (SimCLR), ICML 2020: NT-Xent.
    [3] Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positives(query_index: Tensor, gallery_index: Tensor) -> Tensor:
    """Compute the mask of positive pairs.

    Args:
        query_index: (Q,) int64 labels, or (Q, K) for K kinds of labels, e.g. image and caption.
        gallery_index: (G,) or (G, K) int64.

    Returns:
        (Q, G) bool, True where the labels are equal in any of the K columns.

    >>> positives(torch.tensor([4, 7]), torch.tensor([7, 4, 7])).int().tolist()
    [[0, 1, 0], [1, 0, 1]]
    """
    equal = query_index[:, None] == gallery_index[None, :]
    return equal if equal.ndim == 2 else equal.any(dim=2)


def positive_targets(query_index: Tensor, gallery_index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute target distributions that are uniform over each row's positives.

    ``y_ij = [q_i = g_j] / sum_k [q_i = g_k]``

    Args:
        query_index: (Q,) int64 image rows, or (Q, K), see :func:`positives`.
        gallery_index: (G,) or (G, K) int64.
        dtype: dtype of the result.

    Returns:
        (Q, G), rows sum to 1; a row without a positive is all zero.

    >>> positive_targets(torch.tensor([4, 7]), torch.tensor([7, 4, 7])).tolist()
    [[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]
    """
    targets = positives(query_index, gallery_index).to(dtype)  # (Q, G)
    return targets / targets.sum(dim=1, keepdim=True).clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy with soft targets: the mean over rows of ``-w_i sum_j y_ij log softmax_j(logits_i)``.

    Args:
        logits: (Q, G); half precision is computed in float32. May be ``-inf`` where the target is 0.
        targets: (Q, G), rows sum to 1; constant.
        weights: (Q,) w, constant; all 1 by default.

    Returns:
        A scalar; gradient flows to ``logits``.

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.eye(1, 4)).exp()
    tensor(4.)
    """
    return _mean_over_targets(-_log_softmax(logits), targets, weights)


def generalised_cross_entropy(logits: Tensor, targets: Tensor, q: float) -> Tensor:
    """Compute the generalised cross-entropy of [3] with soft targets: the mean over rows of ``sum_j y_ij (1 - p_ij^q) / q``.

    ``p_i = softmax(logits_i)``. [3] has one target per row; here, targets average the loss, as in :func:`soft_cross_entropy`,
    which is the limit for q to 0.

    Args:
        logits: (Q, G); half precision is computed in float32. May be ``-inf`` where the target is 0.
        targets: (Q, G), rows sum to 1; constant.
        q: in (0, 1].

    Returns:
        A scalar in [0, 1 / q]; gradient flows to ``logits``.

    >>> generalised_cross_entropy(torch.zeros(1, 4), torch.eye(1, 4), q=0.5)
    tensor(1.)
    """
    return _mean_over_targets(-torch.expm1(q * _log_softmax(logits)) / q, targets)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(dim=1) if logits.dtype.itemsize < 4 else logits.log_softmax(dim=1)


def _mean_over_targets(losses: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    per_row = torch.where(targets > 0, targets * losses, torch.zeros_like(losses)).sum(dim=1)
    return (per_row if weights is None else weights * per_row).mean()


def contrast(queries: Tensor, gallery: Tensor, targets: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute one direction of a contrastive loss, from queries to gallery (IIC and TTC of [1]).

    Args:
        queries: (Q, d) L2-normalised.
        gallery: (G, d) L2-normalised.
        targets: (Q, G) from :func:`positive_targets`.
        temperature: tau > 0.

    Returns:
        A scalar; gradient flows to queries, gallery and temperature.
    """
    return soft_cross_entropy(queries @ gallery.T / temperature, targets)


def image_text_contrast(
    image: Tensor,
    text: Tensor,
    image_index: Tensor,
    temperature: Tensor | float,
    local_rows: slice = slice(None),
    weights: Tensor | None = None,
) -> Tensor:
    """Compute ITC of [0, 1]: the mean of the image-to-text and text-to-image contrastive losses.

    With weights, each direction is ``sum_i w_i l_i / sum_i w_i``, where ``l_i`` is the loss of the query i, whose targets are
    its positives in proportion to their weights. As a negative of other queries, each pair counts the same.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) int64; pairs with equal values are positives; or (B, K), see :func:`positives`.
        temperature: tau > 0.
        local_rows: the pairs used as queries against all B; all pairs by default. With weights, the mean over processes of
            their own rows is the weighted mean over all B.
        weights: (B,) w >= 0, constant; None for equal weights. If all are 0, the result is 0.

    Returns:
        A scalar, the mean over the queries; gradient flows to both embeddings and to the temperature.

    >>> image_text_contrast(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 1.0)
    tensor(0.3133)
    """
    targets = positive_targets(image_index[local_rows], image_index, image.dtype)
    to_text, to_image = both_directions(image, text, temperature, local_rows)
    if weights is not None:
        tiny = torch.finfo(image.dtype).tiny
        weights = weights.to(image.dtype)
        targets = targets * weights
        targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=tiny)
        weights = (weights / weights.mean().clamp(min=tiny))[local_rows]
    return (soft_cross_entropy(to_text, targets, weights) + soft_cross_entropy(to_image, targets, weights)) / 2


def generalised_image_text_contrast(
    image: Tensor,
    text: Tensor,
    image_index: Tensor,
    temperature: Tensor | float,
    q: float,
    local_rows: slice = slice(None),
) -> Tensor:
    """Compute the mean of both directions of :func:`generalised_cross_entropy`, with the pairs of :func:`image_text_contrast`.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) or (B, K) int64, see :func:`image_text_contrast`.
        temperature: tau > 0.
        q: in (0, 1].
        local_rows: the pairs used as queries against all B; all pairs by default.

    Returns:
        A scalar in [0, 1 / q]; gradient flows to both embeddings and to the temperature.

    >>> generalised_image_text_contrast(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 1.0, q=1.0)
    tensor(0.2689)
    """
    targets = positive_targets(image_index[local_rows], image_index, image.dtype)
    to_text, to_image = both_directions(image, text, temperature, local_rows)
    return (generalised_cross_entropy(to_text, targets, q) + generalised_cross_entropy(to_image, targets, q)) / 2


def both_directions(
    image: Tensor, text: Tensor, temperature: Tensor | float, local_rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Return the logits of Q queries against all B pairs in both directions.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        temperature: tau > 0.
        local_rows: the pairs used as queries; all pairs by default.

    Returns:
        (Q, B) ``v_i . t_j / tau`` and (Q, B) ``t_i . v_j / tau``.
    """
    to_text = image[local_rows] @ text.T / temperature
    return to_text, to_text.T if len(to_text) == len(text) else text[local_rows] @ image.T / temperature


def nt_xent(embeddings: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent ([2]) with several positives, e.g. views or captions of one image.

    Args:
        embeddings: (B, d) L2-normalised.
        group: (B,) int64; the other items of the same group are positives, the item itself is excluded.
        temperature: tau > 0.

    Returns:
        A scalar, the mean over items with a positive; float32 or float64, also under autocast. Gradient flows to the
        embeddings.

    Raises:
        ValueError: no item has a positive.

    >>> nt_xent(torch.eye(3)[[0, 0, 1]], torch.tensor([5, 5, 6]), temperature=1.0)
    tensor(0.3133)
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        return _nt_xent(embeddings if embeddings.dtype.itemsize >= 4 else embeddings.float(), group, temperature)


def _nt_xent(embeddings: Tensor, group: Tensor, temperature: float) -> Tensor:
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    others = positives(group, group) & ~itself  # (B, B)
    has_positive = others.any(dim=1)
    if not bool(has_positive.any()):
        raise ValueError("no item of the batch has a positive, because every group occurs once: give two views of each")
    targets = others.to(embeddings.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1)
    logits = (embeddings @ embeddings.T / temperature).masked_fill(itself, float("-inf"))
    return soft_cross_entropy(logits[has_positive], targets[has_positive])


def ambiguity_penalty(embeddings: Tensor, low: float = 0.1, high: float = 0.5) -> Tensor:
    """Penalise cosine similarities between low and high, i.e. neither similar nor dissimilar pairs.

    ``mean over i != j of max(0, min(s_ij - low, high - s_ij))``. Penalising this range follows earlier code of the paper's
    authors, which does not publish the formula; the formula is this project's own.

    Args:
        embeddings: (B, d) L2-normalised.
        low: lower bound of the range.
        high: upper bound of the range.

    Returns:
        A scalar in [0, (high - low) / 2], 0 for a single item; gradient flows to the embeddings.

    >>> rows = torch.tensor([[1.0, 0.0], [0.28, 0.96]])
    >>> round(ambiguity_penalty(rows).item(), 4)
    0.18
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings if embeddings.dtype.itemsize >= 4 else embeddings.float()
        cosines = rows @ rows.T
        inside = torch.minimum(cosines - low, high - cosines).clamp(min=0)
        size = len(rows)
        itself = torch.eye(size, dtype=torch.bool, device=rows.device)
        return inside.masked_fill(itself, 0).sum() / max(1, size * (size - 1))
