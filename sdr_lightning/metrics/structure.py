"""Structure preservation: how much of one space's geometry is left in another, over the same items.

References:
    [0] Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019: linear CKA.
    [1] Huh et al., "The Platonic Representation Hypothesis", ICML 2024: overlap of mutual nearest neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.ranking import CHUNK_SIZE, chunks, similarity


def preserved(embeddings: Tensor, features: Tensor, k: int = 10) -> dict[str, float]:
    """Both measures of structure preservation, in percent.

    Args:
        embeddings: (n, d) of a student.
        features: (n, D) of a teacher, of the same items in the same order.
        k: neighbours that are compared.

    Returns:
        ``kNN@k`` and ``CKA``.

    Raises:
        ValueError: different items, or too few of them for k neighbours.
    """
    return {f"kNN@{k}": neighbour_overlap(embeddings, features, k), "CKA": linear_cka(embeddings, features)}


@torch.no_grad()
def neighbour_overlap(embeddings: Tensor, features: Tensor, k: int) -> float:
    """Mean share of an item's k nearest neighbours by cosine that are the same in both spaces ([1]), in percent.

    Args:
        embeddings: (n, d).
        features: (n, D).
        k: from 1 to n - 1; an item is not its own neighbour.

    Raises:
        ValueError: different numbers of items, or a k out of range.
    """
    if len(embeddings) != len(features) or not 1 <= k < len(embeddings):
        raise ValueError(
            f"{k} neighbours need more than {k} items, the same in both spaces; got {len(embeddings)} and {len(features)}"
        )
    first, second = (torch.nn.functional.normalize(space.double(), dim=1) for space in (embeddings, features))
    shared = 0
    for rows in chunks(len(first), CHUNK_SIZE):
        near = [_nearest(space, rows, k) for space in (first, second)]
        shared += int((near[0][:, :, None] == near[1][:, None, :]).sum())
    return 100 * shared / (len(first) * k)


@torch.no_grad()
def linear_cka(embeddings: Tensor, features: Tensor) -> float:
    """Centred kernel alignment with linear kernels ([0]), in percent: 100 for spaces that differ by a rotation and a scale.

    ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`` of centred columns: memory is that of the widths squared, not of the items.

    Args:
        embeddings: (n, d).
        features: (n, D).
    """
    first, second = (space.double() - space.double().mean(dim=0) for space in (embeddings, features))
    norms = [torch.linalg.matrix_norm(space.T @ space) for space in (first, second)]
    cross = torch.linalg.matrix_norm(second.T @ first) ** 2
    return float(100 * cross / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float64).tiny))


def _nearest(space: Tensor, rows: slice, k: int) -> Tensor:
    scores = similarity(space[rows], space)
    scores[torch.arange(len(scores)), torch.arange(len(space))[rows]] = -torch.inf
    return scores.topk(k).indices
