"""Image-text matching (ITM): does this caption belong to this image? With negatives that are hard to tell.

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
"""Label of a negative that does not exist; it is not counted."""


class Negatives(NamedTuple):
    """One hard negative a query.

    Attributes:
        rows: (Q,) int64 rows of the gallery; the first row where there is no negative.
        exist: (Q,) bool, whether the gallery holds a negative.
    """

    rows: Tensor
    exist: Tensor


@torch.no_grad()
def negative_weights(
    queries: Tensor, gallery: Tensor, query_index: Tensor, gallery_index: Tensor, temperature: Tensor | float
) -> Tensor:
    """Chance of each gallery item to be a query's negative: ``softmax_j(q_i . g_j / tau) + 1e-5``, and 0 for a positive.

    Args:
        queries: (Q, d) L2-normalised.
        gallery: (G, d) L2-normalised.
        query_index: (Q,) int64 image rows, or (Q, K), see :func:`~sdr_lightning.functional.contrastive.positives`.
        gallery_index: (G,) or (G, K) int64.
        temperature: tau > 0.

    Returns:
        (Q, G) float32 (float64 for float64 inputs), not normalised; a row is all zero where every item is a positive. No
        gradient flows.
    """
    with torch.autocast(queries.device.type, enabled=False):
        if queries.dtype.itemsize < 4:
            queries, gallery = queries.float(), gallery.float()
        weights = (queries @ gallery.T / temperature).softmax(dim=1) + 1e-5
        return weights.masked_fill_(positives(query_index, gallery_index), 0)


@torch.no_grad()
def draw_negatives(weights: Tensor, generator: torch.Generator | None = None) -> Negatives:
    """Draw one gallery item a query, all in one call; the draws are those of a loop over the rows.

    Args:
        weights: (Q, G) >= 0 of :func:`negative_weights`.
        generator: of the draws; torch's global one when None.

    Returns:
        The rows, and whether there was one to draw.
    """
    exist = weights.sum(dim=1) > 0
    possible = torch.where(exist[:, None], weights, 1)  # a row of zeros cannot be drawn from
    rows = torch.multinomial(possible, 1, generator=generator).squeeze(1)
    return Negatives(torch.where(exist, rows, 0), exist)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """ITM of [0, 1]: two-class cross-entropy of matched and unmatched pairs.

    Args:
        logits: (P, 2), column 1 for "matched".
        labels: (P,) int64, 1, 0, or :data:`UNLABELLED`.

    Returns:
        The mean over labelled pairs, a scalar in float32 at least; gradient flows to the logits.
    """
    return F.cross_entropy(logits if logits.dtype.itemsize >= 4 else logits.float(), labels, ignore_index=UNLABELLED)
