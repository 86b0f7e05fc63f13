"""Structure: relations between the instances of a batch, and distances between relations.

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
"""Distances of relations that are not cosines: no temperature divides them."""


def relation_matrix(queries: Tensor, gallery: Tensor | None = None) -> Tensor:
    """Cosine similarity of every two instances.

    Args:
        queries: (B, D), any scale.
        gallery: (B, D), any scale; the queries themselves when None.

    Returns:
        (B, B) in [-1, 1]; gradient flows to both.
    """
    queries = F.normalize(queries, dim=1)
    gallery = queries if gallery is None else F.normalize(gallery, dim=1)
    return queries @ gallery.T


def student_instances(
    image: Tensor, text: Tensor, fused: Tensor | None, relation: StudentRelation
) -> tuple[Tensor, Tensor | None]:
    """Whose relations S^F of [0] are: the rows, and the columns where they are others.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        fused: (B, W) fused tokens of the matched pairs; read by ``fused`` alone.
        relation: ``fused`` is the paper's; a dual encoder has ``image_image``, ``text_text``, ``image_text`` (row: image,
            column: text) or ``averaged``, the pair's mean embedding, which stands for the pair as the fused token does.

    Returns:
        (B, D) rows and (B, D) columns, or None where the columns are the rows. Gradient flows to what is named.

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
    raise ValueError(f"unknown student relation {relation!r}")


def relations(queries: Tensor, gallery: Tensor | None, distance: Distance) -> Tensor:
    """The relations that a distance compares.

    Args:
        queries: (B, D).
        gallery: (B, D); the queries themselves when None.
        distance: decides what a relation is.

    Returns:
        Cosines (B, B), Euclidean distances over their mean (B, B) for ``rkd_distance`` of [1], or, for ``rkd_angle`` of
        [1], the cosines (B, B, B) of the angle at gallery item j between queries i and k, as entry (j, i, k).
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
        # An edge between equal items has no direction, and no gradient.
        apart = squares > torch.finfo(squares.dtype).eps * squares.mean()
        edges = edges * (torch.where(apart, squares, 1).rsqrt() * apart)
        return edges @ edges.transpose(1, 2)  # (B, B, B)
    return relation_matrix(queries, gallery)


def fuse_relations(image_relation: Tensor, text_relation: Tensor, text_share: Tensor | float) -> Tensor:
    """The fused teacher relation of [0]: ``E = lambda S^T + (1 - lambda) S^I``.

    Args:
        image_relation: (B, B) or (B, B, B), S^I.
        text_relation: of the same shape, S^T.
        text_share: lambda.

    Returns:
        The same shape; gradient flows to lambda and to both relations.
    """
    return text_share * text_relation + (1 - text_share) * image_relation


def relation_distance(
    relation: Tensor, target: Tensor, distance: Distance = "mae", weights: Tensor | None = None
) -> Tensor:
    """Distance of two relations over *different* instances: the diagonal says nothing.

    ========================  =====================================================================================
    ``mae``                   mean absolute difference: what the public code's scripts run
    ``mse``                   mean squared difference
    ``kl``                    mean over rows of KL(softmax of the target's row || softmax of the relation's row)
    ``wasserstein``           mean over rows of the 1-D Wasserstein distance between the two rows' values
    ``weighted_wasserstein``  the public code's ``wd``: the same between the values times w, weighted by w
    ``paper_cumsum``          the public code's ``kl``, which is none: the mean absolute difference of the running sums
                              over all rows' values one after another; it depends on the order of the batch
    ``rkd_distance``          smooth L1 between normalised Euclidean distances
    ``rkd_angle``             smooth L1 between cosines of angles
    ========================  =====================================================================================

    Args:
        relation: of the student, or of one teacher: (B, B), or (B, B, B) for ``rkd_angle``.
        target: the fused relation, of the same shape.
        distance: see above.
        weights: (B, B) >= 0, for ``weighted_wasserstein`` alone: 1 - cos(t_i, t_j) of the student's text embeddings.

    Returns:
        A scalar >= 0, 0 when the relations coincide, and 0 for a batch that has no different instances to relate (one
        pair, or two for ``rkd_angle``). Gradient flows to the relation, the target and the weights.

    Raises:
        ValueError: ``weighted_wasserstein`` without weights.
    """
    if len(relation) < (3 if distance == "rkd_angle" else 2):
        return (relation - target).sum() * 0
    if distance == "rkd_angle":
        different = _different_triplets(len(relation), relation.device)
        return F.smooth_l1_loss(relation[different], target[different])
    if distance == "weighted_wasserstein":
        if weights is None:
            raise ValueError("weighted_wasserstein needs weights")
        return weighted_wasserstein(off_diagonal(relation), off_diagonal(target), off_diagonal(weights))
    return _DISTANCES[distance](off_diagonal(relation), off_diagonal(target))


def off_diagonal(relation: Tensor) -> Tensor:
    """The relations between *different* instances, row by row.

    Args:
        relation: (B, B).

    Returns:
        (B, B - 1), without the diagonal.
    """
    size = len(relation)
    return relation.flatten()[:-1].view(size - 1, size + 1)[:, 1:].reshape(size, size - 1)


def weighted_wasserstein(values: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of the 1-D Wasserstein distance between ``w u`` and ``w v``, both weighted by w ([0]).

    The distance is the integral of |F_u - F_v|, F being the weighted distribution functions; here they are one running
    sum of signed weights over the sorted union of both rows' values.

    Args:
        values: (B, n), u.
        others: (B, n), v.
        weights: (B, n), w >= 0.

    Returns:
        A scalar; gradient flows to the values and, as published, to the weights. A row without weight counts 0.
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
