"""Image-text matching (ITM) with hard negatives: classify whether an image and a caption belong together.

References:
    [0] Li et al., "Align before Fuse" (ALBEF), NeurIPS 2021: hard negatives from in-batch similarity.
    [1] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code: the term ITM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.contrastive import positives

UNLABELLED = -100
"""Label of a missing negative; the loss ignores it."""


class Negatives(NamedTuple):
    """One hard negative per query.

    Attributes:
        rows: (Q,) int64 rows of the gallery; 0 where there is no negative.
        exist: (Q,) bool, whether the gallery holds a negative.
    """

    rows: Tensor
    exist: Tensor


@torch.no_grad()
def negative_weights(
    queries: Tensor, gallery: Tensor, query_index: Tensor, gallery_index: Tensor, temperature: Tensor | float
) -> Tensor:
    """Compute sampling weights of hard negatives: ``softmax_j(q_i . g_j / tau) + 1e-5``, and 0 for positives.

    Args:
        queries: (Q, d) L2-normalised.
        gallery: (G, d) L2-normalised.
        query_index: (Q,) int64 image rows, or (Q, K), see :func:`~sdr_lightning.functional.contrastive.positives`.
        gallery_index: (G,) or (G, K) int64.
        temperature: tau > 0.

    Returns:
        (Q, G) float32 (float64 for float64 inputs), not normalised; a row is all zero if every item is a positive. No
        gradient.

    >>> rows, index = torch.eye(2), torch.tensor([0, 1])
    >>> negative_weights(rows, rows, index, index, 1.0)
    tensor([[0.0000, 0.2690],
            [0.2690, 0.0000]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        if queries.dtype.itemsize < 4:
            queries, gallery = queries.float(), gallery.float()
        weights = (queries @ gallery.T / temperature).softmax(dim=1) + 1e-5
        return weights.masked_fill_(positives(query_index, gallery_index), 0)


@torch.no_grad()
def draw_negatives(weights: Tensor, generator: torch.Generator | None = None) -> Negatives:
    """Draw one gallery item per query. The draws equal those of a loop over the rows.

    Args:
        weights: (Q, G) >= 0 from :func:`negative_weights`.
        generator: random generator; torch's global one when None.

    Returns:
        The drawn rows, and for each query whether it has a negative.

    >>> draw_negatives(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    Negatives(rows=tensor([1, 0]), exist=tensor([ True, False]))
    """
    exist = weights.sum(dim=1) > 0
    possible = torch.where(exist[:, None], weights, 1)  # multinomial refuses a row of zeros
    rows = torch.multinomial(possible, 1, generator=generator).squeeze(1)
    return Negatives(torch.where(exist, rows, 0), exist)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute ITM of [0, 1]: the two-class cross-entropy of matched and unmatched pairs.

    Args:
        logits: (P, 2), column 1 for "matched".
        labels: (P,) int64, 1, 0, or :data:`UNLABELLED`.

    Returns:
        A scalar, the mean over labelled pairs, in float32 or float64; gradient flows to the logits.

    >>> matching_loss(torch.tensor([[0.0, 0.0], [9.0, -9.0]]), torch.tensor([1, UNLABELLED])).exp()
    tensor(2.)
    """
    return F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), labels, ignore_index=UNLABELLED)
