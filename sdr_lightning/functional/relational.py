"""Structure: relations between the instances of a batch, and distances between relation matrices.

References:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code: the terms KD, KDI and KDT.
    [1] Park et al., "Relational Knowledge Distillation", CVPR 2019: the family these belong to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Distance = Literal["mae", "mse"]
StudentRelation = Literal["image_image", "text_text", "image_text", "averaged"]


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


def student_relation(image: Tensor, text: Tensor, relation: StudentRelation) -> Tensor:
    """The student's own relation matrix, S^F of [0].

    The paper takes the fused token of its fusion encoder. A dual encoder has none, so the relation is one of:
    ``image_image``, ``text_text``, ``image_text`` (row: image, column: text) or ``averaged``, the cosine of the
    pair's mean embedding, which stands for the pair as the fused token does.

    Args:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        relation: which of them.

    Returns:
        (B, B); gradient flows to the embeddings that are named.
    """
    if relation == "image_image":
        return relation_matrix(image)
    if relation == "text_text":
        return relation_matrix(text)
    if relation == "image_text":
        return relation_matrix(image, text)
    if relation == "averaged":
        return relation_matrix((image + text) / 2)
    raise ValueError(f"unknown student relation {relation!r}")


def fuse_relations(image_relation: Tensor, text_relation: Tensor, text_share: Tensor | float) -> Tensor:
    """The fused teacher relation of [0]: ``E = lambda S^T + (1 - lambda) S^I``.

    Args:
        image_relation: (B, B), S^I.
        text_relation: (B, B), S^T.
        text_share: lambda.

    Returns:
        (B, B); gradient flows to lambda and to both relations.
    """
    return text_share * text_relation + (1 - text_share) * image_relation


def off_diagonal(relation: Tensor) -> Tensor:
    """The B (B - 1) relations between *different* instances; the diagonal says nothing.

    Args:
        relation: (B, B).

    Returns:
        (B (B - 1),) in row order.
    """
    size = len(relation)
    return relation.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mae": F.l1_loss, "mse": F.mse_loss}


def relation_distance(relation: Tensor, other: Tensor, distance: Distance = "mae") -> Tensor:
    """Mean distance of two relation matrices over the pairs of different instances.

    Args:
        relation: (B, B).
        other: (B, B).
        distance: ``mae``, as the public code's scripts run it, or ``mse``.

    Returns:
        A scalar >= 0, 0 when the relations coincide (and for a batch of one, which has no relations).
    """
    if len(relation) < 2:
        return (relation - other).sum() * 0
    return _DISTANCES[distance](off_diagonal(relation), off_diagonal(other))
