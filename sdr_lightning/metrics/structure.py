"""Structure preservation between two embedding spaces of the same items, and diagnostics of the common space.

References:
    [0] Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019: linear CKA.
    [1] Huh et al., "The Platonic Representation Hypothesis", ICML 2024: overlap of mutual nearest neighbours.
    [2] Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity", ICML 2020.
    [3] Radovanović et al., "Hubs in Space", JMLR 2010: skewness of the k-occurrences.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdr_lightning.functional.search import QUERY_TILE, chunks, similarity, top_k


def preserved(embeddings: Tensor, features: Tensor, k: int = 10) -> dict[str, float]:
    """Compute both measures of structure preservation, in percent.

    Args:
        embeddings: (n, d), of a student.
        features: (n, D), of a teacher, for the same items in the same order.
        k: number of neighbours compared.

    Returns:
        ``kNN@k``, see :func:`neighbour_overlap`, NaN for n <= k; and ``CKA``, see :func:`linear_cka`.

    Raises:
        ValueError: the numbers of items differ.
    """
    overlap = neighbour_overlap(embeddings, features, k) if len(embeddings) > k else math.nan
    return {f"kNN@{k}": overlap, "CKA": linear_cka(embeddings, features)}


@torch.no_grad()
def neighbour_overlap(embeddings: Tensor, features: Tensor, k: int) -> float:
    """Compute the mean overlap of the k nearest neighbours by cosine in both spaces ([1]), in percent.

    Args:
        embeddings: (n, d).
        features: (n, D).
        k: from 1 to n - 1; an item is not its own neighbour.

    Returns:
        A number in [0, 100].

    Raises:
        ValueError: the numbers of items differ, or k is out of range.

    >>> neighbour_overlap(torch.eye(3), torch.eye(3), k=1)
    100.0
    """
    if len(embeddings) != len(features) or not 1 <= k < len(embeddings):
        raise ValueError(
            f"{k} neighbours need more than {k} items, the same in both spaces; got {len(embeddings)} and {len(features)}"
        )
    first, second = (torch.nn.functional.normalize(space.double(), dim=1) for space in (embeddings, features))
    itself = torch.arange(len(first), device=first.device)[:, None]
    near = [top_k(space, space, k, exclude=itself).items for space in (first, second)]
    shared = 0
    for rows in chunks(len(first), QUERY_TILE):
        shared += int((near[0][rows, :, None] == near[1][rows, None, :]).sum())
    return 100 * shared / (len(first) * k)


@torch.no_grad()
def linear_cka(embeddings: Tensor, features: Tensor) -> float:
    """Compute centred kernel alignment with linear kernels ([0]), in percent.

    ``|Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F)`` with centred columns; memory grows with the squared widths, not with n.

    Args:
        embeddings: (n, d).
        features: (n, D).

    Returns:
        A number in [0, 100]; 100 if the spaces differ only by rotation and scale.

    >>> round(linear_cka(torch.eye(3), 2 * torch.eye(3).flip(1)), 6)
    100.0
    """
    first, second = (space.double() - space.double().mean(dim=0) for space in (embeddings, features))
    norms = [torch.linalg.matrix_norm(space.T @ space) for space in (first, second)]
    cross = torch.linalg.matrix_norm(second.T @ first) ** 2
    return float(100 * cross / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float64).tiny))


@torch.no_grad()
def diagnostics(images: Tensor, texts: Tensor, text_image_index: Tensor, k: int = 10) -> dict[str, float]:
    """Compute alignment, uniformity and hubness of the common space.

    Args:
        images: (N, d), L2-normalised, N > k.
        texts: (C, d), L2-normalised, C > k.
        text_image_index: (C,) the image of each caption.
        k: number of neighbours for hubness.

    Returns:
        - ``alignment`` ([2]): mean squared distance between a caption and its image, in [0, 4].
        - ``image_uniformity``, ``text_uniformity`` ([2]): see :func:`uniformity`.
        - ``i2t_hubness@k``, ``t2i_hubness@k``, ``i2i_hubness@k``, ``t2t_hubness@k`` ([3]): see :func:`hubness`.

    Raises:
        ValueError: there are not more than k images and captions.
    """
    if min(len(images), len(texts)) <= k:
        raise ValueError(f"hubness at {k} needs more than {k} images and captions, got {len(images)} and {len(texts)}")
    spaces = {"i": images, "t": texts}
    results = {
        "alignment": (images[text_image_index] - texts).double().square().sum(1).mean().item(),
        "image_uniformity": uniformity(images),
        "text_uniformity": uniformity(texts),
    }
    for task in ("i2t", "t2i", "i2i", "t2t"):
        queries, gallery = spaces[task[0]], spaces[task[-1]]
        itself = torch.arange(len(queries), device=queries.device)[:, None] if queries is gallery else None
        results[f"{task}_hubness@{k}"] = hubness(top_k(queries, gallery, k, exclude=itself).items, len(gallery))
    return results


@torch.no_grad()
def uniformity(embeddings: Tensor) -> float:
    """Compute the log of the mean of exp(-2 |x - y|^2) over pairs of different items ([2], t = 2).

    Args:
        embeddings: (n, d), L2-normalised, n > 1.

    Returns:
        A number <= 0; lower is more uniform.

    >>> round(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), 4)
    -8.0
    """
    total = 0.0
    for rows in chunks(len(embeddings), QUERY_TILE):
        # |x - y|^2 = 2 - 2 x.y of unit vectors
        total += torch.exp(4 * similarity(embeddings[rows], embeddings) - 4).sum(dtype=torch.float64).item()
    pairs = len(embeddings) * (len(embeddings) - 1)
    return math.log(max(total - len(embeddings), 1e-300) / pairs)


def hubness(index: Tensor, gallery_size: int) -> float:
    """Compute the skewness of the k-occurrences: how often each gallery item is among the k nearest of a query ([3]).

    Args:
        index: (Q, k) gallery rows.
        gallery_size: G.

    Returns:
        The skewness; 0 if all items occur equally often.

    >>> hubness(torch.tensor([[0], [1]]), gallery_size=2)
    0.0
    """
    counts = torch.bincount(index.flatten(), minlength=gallery_size).double()
    centred = counts - counts.mean()
    deviation = centred.square().mean().sqrt()
    return 0.0 if deviation == 0 else (centred.pow(3).mean() / deviation**3).item()
