"""Structure terms: relations between the instances of a batch, and distances between relations.

References:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code: the terms KD, KDI and KDT, and the distances ``mae``, ``mse``, ``wd`` and ``kl``.
    [1] Park et al., "Relational Knowledge Distillation", CVPR 2019: distances and angles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal[
    "mae", "mse", "kl", "wasserstein", "weighted_wasserstein", "paper_cumsum", "rkd_distance", "rkd_angle"
]
StudentRelation = Literal["fused", "image_image", "text_text", "image_text", "averaged"]

SCALE_FREE = ("rkd_distance", "rkd_angle")
"""Distances whose relations are not cosines, and which are therefore not divided by a temperature."""


def relation_matrix(queries: Tensor, gallery: Tensor | None = None) -> Tensor:
    """Compute the cosine similarity of all pairs of instances.

    Args:
        queries: (B, D), not necessarily normalised.
        gallery: (B, D), not necessarily normalised; the queries when None.

    Returns:
        (B, B) in [-1, 1]; 0 for an all-zero row. Gradient flows to both.

    >>> relation_matrix(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]])
    """
    queries = F.normalize(queries, dim=1)
    gallery = queries if gallery is None else F.normalize(gallery, dim=1)
    return queries @ gallery.T


def student_instances(
    image: Tensor, text: Tensor, fused: Tensor | None, relation: StudentRelation
) -> tuple[Tensor, Tensor | None]:
    """Select the instances whose relations are S^F of [0].

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        fused: (B, W) fused tokens of the matched pairs; only used by ``fused``.
        relation: ``fused`` is the paper's. For dual encoders: ``image_image``, ``text_text``, ``image_text`` (row: image,
            column: text), or ``averaged`` (the mean embedding of the pair, in place of the fused token).

    Returns:
        (B, D) rows, and (B, D) columns or None if the columns are the rows. Gradient flows to the selected inputs.

    Raises:
        ValueError: an unknown relation, or ``fused`` without fused tokens.
    """
    if relation == "fused":
        if fused is None:
            raise ValueError("the relation of fused tokens needs a fusion encoder: give the encoder one")
        return fused, None
    if relation == "image_image":
        return image, None
    if relation == "text_text":
        return text, None
    if relation == "image_text":
        return image, text
    if relation == "averaged":
        return (image + text) / 2, None
    raise ValueError(
        f"unknown student relation {relation!r}: expected fused, image_image, text_text, image_text or averaged"
    )


def relations(queries: Tensor, gallery: Tensor | None, distance: Distance) -> Tensor:
    """Compute the relations that a distance compares.

    Args:
        queries: (B, D).
        gallery: (B, D); the queries when None.
        distance: determines the kind of relation.

    Returns:
        For ``rkd_distance`` ([1]): (B, B) Euclidean distances divided by their mean. For ``rkd_angle`` ([1]): (B, B, B), entry
        (j, i, k) is the cosine of the angle at gallery item j between queries i and k. Otherwise: (B, B) cosines. Gradient
        flows to both inputs.

    >>> relations(torch.tensor([[0.0], [1.0], [3.0]]), None, "rkd_distance")
    tensor([[0.0000, 0.5000, 1.5000],
            [0.5000, 0.0000, 1.0000],
            [1.5000, 1.0000, 0.0000]])
    """
    if distance == "rkd_distance":
        columns = queries if gallery is None else gallery
        euclidean = torch.cdist(queries, columns, compute_mode="donot_use_mm_for_euclid_dist")  # exact near 0
        apart = off_diagonal(euclidean)
        mean = apart.sum() / max(1, apart.numel())
        return euclidean / mean.clamp(min=torch.finfo(euclidean.dtype).tiny)
    if distance == "rkd_angle":
        columns = queries if gallery is None else gallery
        edges = queries[None, :, :] - columns[:, None, :]  # (B vertex, B, D)
        squares = edges.square().sum(dim=2, keepdim=True)
        # An edge between equal items has no direction: set it to zero, without gradient.
        apart = squares > torch.finfo(squares.dtype).eps * squares.mean()
        edges = edges * (torch.where(apart, squares, 1).rsqrt() * apart)
        return edges @ edges.transpose(1, 2)  # (B, B, B)
    return relation_matrix(queries, gallery)


def fuse_relations(image_relation: Tensor, text_relation: Tensor, text_share: Tensor | float) -> Tensor:
    """Compute the fused teacher relation of [0]: ``E = lambda S^T + (1 - lambda) S^I``.

    Args:
        image_relation: S^I, (B, B) or (B, B, B).
        text_relation: S^T, of the same shape.
        text_share: lambda in [0, 1].

    Returns:
        A tensor of the same shape; gradient flows to lambda and to both relations.

    >>> fuse_relations(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
    tensor([[0.2500, 0.2500]])
    """
    return text_share * text_relation + (1 - text_share) * image_relation


def relation_distance(
    relation: Tensor, target: Tensor, distance: Distance = "mae", weights: Tensor | None = None
) -> Tensor:
    """Compute the distance between two relations over different instances; the diagonal is ignored.

    ========================  ===================================================================================
    ``mae``                   mean absolute difference; used by the scripts of the public code
    ``mse``                   mean squared difference
    ``kl``                    mean over rows of KL(softmax of the target's row || softmax of the relation's row)
    ``wasserstein``           mean over rows of the 1-D Wasserstein distance between the values of the two rows
    ``weighted_wasserstein``  ``wd`` of the public code: the same between w times the values, weighted by w
    ``paper_cumsum``          ``kl`` of the public code, which is not a KL divergence: mean absolute difference of
                              the cumulative sums over all values, row after row; depends on the batch order
    ``rkd_distance``          smooth L1 between normalised Euclidean distances
    ``rkd_angle``             smooth L1 between cosines of angles
    ========================  ===================================================================================

    Args:
        relation: relation of the student or of one teacher: (B, B), or (B, B, B) for ``rkd_angle``.
        target: the fused relation, of the same shape.
        distance: see above.
        weights: (B, B) >= 0, only for ``weighted_wasserstein``: 1 - cos(t_i, t_j) of the student's text embeddings.

    Returns:
        A scalar >= 0; 0 if the relations are equal, or if the batch is too small to relate different instances (one pair,
        or two for ``rkd_angle``). Gradient flows to the relation, the target and the weights.

    Raises:
        ValueError: ``weighted_wasserstein`` without weights.

    >>> relation_distance(torch.tensor([[9.0, 1.0], [2.0, 9.0]]), torch.tensor([[9.0, 4.0], [1.0, 9.0]]), "mae")
    tensor(2.)
    """
    if len(relation) < (3 if distance == "rkd_angle" else 2):
        return (relation - target).sum() * 0
    if distance == "rkd_angle":
        different = _different_triplets(len(relation), relation.device)
        return F.smooth_l1_loss(relation[different], target[different])
    if distance == "weighted_wasserstein":
        if weights is None:
            raise ValueError("weighted_wasserstein needs weights, got None: pass 1 - cosines of the text embeddings")
        return weighted_wasserstein(off_diagonal(relation), off_diagonal(target), off_diagonal(weights))
    return _DISTANCES[distance](off_diagonal(relation), off_diagonal(target))


def off_diagonal(relation: Tensor) -> Tensor:
    """Remove the diagonal of a relation, row by row.

    Args:
        relation: (B, B).

    Returns:
        (B, B - 1).

    >>> off_diagonal(torch.tensor([[1, 2], [3, 4]])).tolist()
    [[2], [3]]
    """
    size = len(relation)
    return relation.flatten()[:-1].view(size - 1, size + 1)[:, 1:].reshape(size, size - 1)


def weighted_wasserstein(values: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Compute the mean over rows of the 1-D Wasserstein distance between ``w u`` and ``w v``, both weighted by w ([0]).

    The distance is the integral of |F_u - F_v| with the weighted distribution functions F. F_u - F_v is the cumulative sum
    of signed weights over the sorted values of both rows.

    Args:
        values: u, (B, n).
        others: v, (B, n).
        weights: w >= 0, (B, n).

    Returns:
        A scalar; a row of zero weights contributes 0. Gradient flows to both values and, as in the public code, to the
        weights.
    """
    union = torch.cat([values * weights, others * weights], dim=1)  # (B, 2 n)
    share = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    ordered, order = union.sort(dim=1)
    gap = torch.cat([share, -share], dim=1).gather(1, order).cumsum(dim=1)  # F_u - F_v after each value
    return (gap[:, :-1].abs() * ordered.diff(dim=1)).sum(dim=1).mean()


def _wasserstein(values: Tensor, others: Tensor) -> Tensor:
    return F.l1_loss(values.sort(dim=1).values, others.sort(dim=1).values)


def _kl(values: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(values.log_softmax(dim=1), target.log_softmax(dim=1), reduction="batchmean", log_target=True)


def _paper_cumsum(values: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(values.flatten().cumsum(dim=0), target.flatten().cumsum(dim=0))


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mae": F.l1_loss,
    "mse": F.mse_loss,
    "kl": _kl,
    "wasserstein": _wasserstein,
    "paper_cumsum": _paper_cumsum,
    "rkd_distance": F.smooth_l1_loss,
}


def _different_triplets(size: int, device: torch.device) -> Tensor:
    row = torch.arange(size, device=device)
    same = row[:, None] == row[None, :]  # (B, B)
    return ~(same[:, :, None] | same[:, None, :] | same[None, :, :])
