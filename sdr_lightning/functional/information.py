"""How much one space says about another: the information imbalance.

[0] Glielmo, Zeni, Cheng, Csanyi and Laio, "Ranking the information content of distance measures", PNAS Nexus 1(2), 2022:
    eq. 2, here with k neighbours instead of one, as in the authors' DADApy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK = 512


def information_imbalance(a: Tensor, b: Tensor, neighbours: int = 1, seed: int = 0) -> float:
    """How badly neighbourhoods in A predict those in B.

    The mean rank in B, among the N - 1 other points, of a point's k nearest neighbours in A, times 2 / N. Points at the same
    distance share their mean rank in B; in A they are chosen among at random.

    Args:
        a: (N, D_A) features, compared by cosine; a point whose features are zero is as far from every other.
        b: (N, D_B) features of the same points.
        neighbours: k, from 1 to N - 1.
        seed: of the choice among equals.

    Returns:
        (k + 1) / N where A's neighbours are B's, in expectation 1 where A says nothing about B. No gradient.

    Raises:
        ValueError: fewer than two points, different numbers of points, or k out of range.
    """
    points = len(a)
    if points != len(b) or points < 2:
        raise ValueError(f"two spaces need the same two or more points, got {points} and {len(b)}")
    if not 1 <= neighbours < points:
        raise ValueError(f"neighbours must be from 1 to {points - 1}, got {neighbours}")
    # A permutation first: then a stable sort chooses among equals at random.
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
    """Equal features have equal similarities, whatever the order in which products were summed."""
    return (similarities * 2**40).round()
