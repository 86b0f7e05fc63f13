"""Information imbalance between two feature spaces.

References:
    [0] Glielmo, Zeni, Cheng, Csanyi and Laio, "Ranking the information content of distance measures", PNAS Nexus 1(2),
        2022: eq. 2, here with k neighbours instead of one, as in the authors' package DADApy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK = 512


def information_imbalance(a: Tensor, b: Tensor, neighbours: int = 1, seed: int = 0) -> float:
    """Compute the information imbalance from A to B ([0]): how badly neighbours in A predict neighbours in B.

    It is 2 / N times the mean rank in B of a point's k nearest neighbours in A, among the N - 1 other points. Ties in B
    share their mean rank; ties in A are broken at random.

    Args:
        a: (N, D_A) features, compared by cosine; an all-zero row has similarity 0 to every other.
        b: (N, D_B) features of the same points.
        neighbours: k, from 1 to N - 1.
        seed: random seed of the tie-breaking in A.

    Returns:
        (k + 1) / N if the neighbours in A and B are the same; 1 in expectation if A and B are independent. No gradient.

    Raises:
        ValueError: fewer than two points, different numbers of points, or k out of range.

    >>> information_imbalance(torch.eye(2), torch.eye(2))
    1.0
    """
    points = len(a)
    if points != len(b) or points < 2:
        raise ValueError(f"both spaces must hold the same two or more points, got {points} and {len(b)}")
    if not 1 <= neighbours < points:
        raise ValueError(f"neighbours must be from 1 to {points - 1}, got {neighbours}")
    # After a random permutation, a stable sort breaks ties at random.
    order = torch.randperm(points, generator=torch.Generator().manual_seed(seed))
    a, b = normalize(a.detach()[order].double(), dim=1), normalize(b.detach()[order].double(), dim=1)
    total = 0.0
    for start in range(0, points, _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, points))
        here, there = _rounded(a[rows] @ a.T), _rounded(b[rows] @ b.T)
        here[torch.arange(len(rows)), rows] = -torch.inf  # a point is not its own neighbour
        nearest = here.sort(dim=1, descending=True, stable=True).indices[:, :neighbours]
        there[torch.arange(len(rows)), rows] = -torch.inf
        ordered = there.sort(dim=1).values  # ascending similarity
        similarity = there.gather(1, nearest)
        nearer = points - torch.searchsorted(ordered, similarity, right=True)
        not_farther = points - torch.searchsorted(ordered, similarity, right=False)
        total += float((nearer + not_farther + 1).sum()) / 2
    return 2 * total / (points * points * neighbours)


def _rounded(similarities: Tensor) -> Tensor:
    """Round, so that equal features have equal similarities whatever the order of summation."""
    return (similarities * 2**40).round()
