"""NDCG: DCG@k = sum of gain(rel) / log2(rank + 1) over the first k ranks, counted from 1, divided by the ideal one.

The gain is linear, rel itself, as in the public SDR code (k = 10, 20, 50), or exponential, 2^rel - 1, as in TERN (k = 25;
Messina et al., "Transformer Reasoning Network for Image-Text Matching and Retrieval", ICPR 2020).
Everything is made of the top of each query's gallery, and the top of a union of galleries is found among the
tops of its parts, so a mixed gallery costs no second pass over its scores.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdr_lightning.functional.search import at_least_fp32, count_non_finite, exact_scores, stable_top_index

Gain = Literal["linear", "exponential"]

_LARGEST_EXPONENT = 1000.0  # sums of 2^rel overflow fp64 from 2^1024 on


class TopGains(NamedTuple):
    """The first K items of each query's ranking and of its ideal ranking, K = min(k, gallery size).

    Attributes:
        scores: (Q, K) of :func:`~sdr_lightning.functional.search.exact_scores`, descending; an excluded item has -inf.
        gains: (Q, K), the relevance of those items.
        ideal: (Q, K), the K greatest relevances of the gallery, descending.
    """

    scores: Tensor
    gains: Tensor
    ideal: Tensor


def ndcg(scores: Tensor, relevance: Tensor, ks: Sequence[int] = (10, 20, 50), exclude: Tensor | None = None) -> Tensor:
    """NDCG of each query at each k.

    Args:
        scores: (Q, G), greater ranks first, the lower gallery index among equals.
        relevance: (Q, G), finite and not negative.
        ks: cut-offs; one beyond the gallery uses the whole gallery.
        exclude: (Q,) gallery index left out for each query, usually the query itself: it is neither ranked
            nor part of the ideal.

    Returns:
        (Q, len(ks)) float64 in [0, 1]; NaN for a query with nothing relevant, which `mean_ndcg` leaves out.

    Raises:
        ValueError: for shapes that do not fit, non-finite scores, negative or non-finite relevance, or k < 1.

    >>> ndcg(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.0, 0.0, 1.0]]), ks=(2, 3)).tolist()
    [[0.0, 0.5]]
    """
    return ndcg_of_top(top_gains(scores, relevance, max(ks), exclude), ks)


def mean_ndcg(values: Tensor) -> Tensor:
    """Mean (len(ks),) of NDCG (Q, len(ks)) over the queries that have something relevant; NaN if no query has."""
    return values[~values.isnan().any(1)].mean(0)


@torch.no_grad()
def top_gains(scores: Tensor, relevance: Tensor, k: int, exclude: Tensor | None = None) -> TopGains:
    """The top k of a gallery by score and by relevance; arguments and errors are those of `ndcg`."""
    if scores.ndim != 2 or scores.shape != relevance.shape:
        raise ValueError(
            f"scores and relevance must both be (queries, gallery), not {tuple(scores.shape)} and "
            f"{tuple(relevance.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    scores, relevance = exact_scores(scores), at_least_fp32(relevance)
    for name, values in (("scores", scores), ("relevances", relevance)):
        bad, (query, item) = count_non_finite(values)
        if bad:
            raise ValueError(f"{bad} {name} are not finite, the first at query {query}, gallery item {item}")
    if relevance.numel() and relevance.min() < 0:
        raise ValueError(f"relevance must not be negative, found {relevance.min().item()}")
    if exclude is not None:
        scores = scores.scatter(1, exclude[:, None], -torch.inf)
        relevance = relevance.scatter(1, exclude[:, None], 0.0)
    k = min(k, scores.shape[1])
    index = stable_top_index(scores, k)
    # Ties among relevances need no rule: only their values count.
    return TopGains(scores.gather(1, index), relevance.gather(1, index), relevance.topk(k, dim=1).values)


def merge_top_gains(first: TopGains, second: TopGains, k: int) -> TopGains:
    """The top k of the gallery that is `first`'s followed by `second`'s; each part must be a top k itself."""
    scores = torch.cat((first.scores, second.scores), dim=1)
    gains = torch.cat((first.gains, second.gains), dim=1)
    ideal = torch.cat((first.ideal, second.ideal), dim=1)
    k = min(k, scores.shape[1])
    # Stable: at equal scores the first gallery, whose indices are lower, goes first.
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return TopGains(scores.gather(1, order), gains.gather(1, order), ideal.topk(k, dim=1).values)


def ndcg_of_top(top: TopGains, ks: Sequence[int] = (10, 20, 50), gain: Gain = "linear") -> Tensor:
    """NDCG (Q, len(ks)) of a top that was taken with k >= max(ks); see `ndcg`."""
    depth = top.gains.shape[1]
    ranks = torch.arange(1, depth + 1, dtype=torch.float64, device=top.gains.device)
    discount = torch.log2(ranks + 1)
    cut = [min(k, depth) - 1 for k in ks]
    gains, ideal = top.gains.double(), top.ideal.double()
    if gain == "exponential":  # grows with relevance, so the ideal order is the same
        shift = (ideal.amax(1, keepdim=True) - _LARGEST_EXPONENT).clamp(min=0)  # cancels in the ratio
        gains, ideal = (torch.exp2(values - shift) - torch.exp2(-shift) for values in (gains, ideal))
    dcg = (gains / discount).cumsum(1)[:, cut]
    ideal_dcg = (ideal / discount).cumsum(1)[:, cut]
    return dcg / ideal_dcg  # 0 / 0 is the NaN of a query with nothing relevant
