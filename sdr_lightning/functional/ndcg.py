"""NDCG@k: DCG@k = sum over the first k ranks (from 1) of gain(rel) / log2(rank + 1), divided by the DCG of the ideal order.

The gain is linear, rel, as in the public SDR code (k = 10, 20, 50), or exponential, 2^rel - 1, as in TERN (k = 25; Messina
et al., "Transformer Reasoning Network for Image-Text Matching and Retrieval", ICPR 2020).

NDCG is computed from the top k of each gallery. The top k of a union of galleries is merged from the tops of its parts, so
a mixed gallery needs no second search.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sdr_lightning.functional.search import (
    at_least_fp32,
    count_non_finite,
    descending_order,
    exact_scores,
    stable_top_index,
)

Gain = Literal["linear", "exponential"]

_LARGEST_EXPONENT = 1000.0  # fp64 overflows at 2^1024


class TopGains(NamedTuple):
    """The first K items of each query's ranking and of its ideal ranking, K = min(k, gallery size).

    Attributes:
        scores: (Q, K) from :func:`~sdr_lightning.functional.search.exact_scores`, descending; -inf for an excluded item.
        gains: (Q, K), the relevance of these items.
        ideal: (Q, K), the K highest relevances of the gallery, descending.
    """

    scores: Tensor
    gains: Tensor
    ideal: Tensor


def ndcg(scores: Tensor, relevance: Tensor, ks: Sequence[int] = (10, 20, 50), exclude: Tensor | None = None) -> Tensor:
    """Compute NDCG of each query at each cut-off, with linear gain.

    Args:
        scores: (Q, G), ranked in descending order; ties by gallery index, ascending.
        relevance: (Q, G), finite and not negative.
        ks: cut-offs; a cut-off beyond the gallery uses the whole gallery.
        exclude: (Q,) one gallery index per query, usually the query itself, that is removed from the ranking and from the
            ideal order.

    Returns:
        (Q, len(ks)) float64 in [0, 1]; NaN for a query without a relevant item, which :func:`mean_ndcg` skips.

    Raises:
        ValueError: the shapes do not match, a score is not finite, a relevance is negative or not finite, or k < 1.

    >>> ndcg(torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.0, 0.0, 1.0]]), ks=(2, 3)).tolist()
    [[0.0, 0.5]]
    """
    return ndcg_of_top(top_gains(scores, relevance, max(ks), exclude), ks)


def mean_ndcg(values: Tensor) -> Tensor:
    """Average NDCG (Q, len(ks)) over the queries with a relevant item: (len(ks),), NaN if there is no such query.

    >>> mean_ndcg(torch.tensor([[1.0], [0.5], [torch.nan]]))
    tensor([0.7500])
    """
    return values[~values.isnan().any(1)].mean(0)


@torch.no_grad()
def top_gains(scores: Tensor, relevance: Tensor, k: int, exclude: Tensor | None = None) -> TopGains:
    """Take the top k of a gallery by score and by relevance; arguments and errors are those of :func:`ndcg`."""
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
    # Ties among relevances need no rule: only the values are used.
    return TopGains(scores.gather(1, index), relevance.gather(1, index), relevance.topk(k, dim=1).values)


def merge_top_gains(first: TopGains, second: TopGains, k: int) -> TopGains:
    """Merge the top k of two galleries into the top k of their concatenation; each part must be a top k itself."""
    scores = torch.cat((first.scores, second.scores), dim=1)
    gains = torch.cat((first.gains, second.gains), dim=1)
    ideal = torch.cat((first.ideal, second.ideal), dim=1)
    k = min(k, scores.shape[1])
    # Stable: among ties, the first gallery has the lower indices.
    order = descending_order(scores)[:, :k]
    return TopGains(scores.gather(1, order), gains.gather(1, order), ideal.gather(1, descending_order(ideal)[:, :k]))


def ndcg_of_top(top: TopGains, ks: Sequence[int] = (10, 20, 50), gain: Gain = "linear") -> Tensor:
    """Compute NDCG (Q, len(ks)) from a top k with k >= max(ks); see :func:`ndcg`."""
    depth = top.gains.shape[1]
    ranks = torch.arange(1, depth + 1, dtype=torch.float64, device=top.gains.device)
    discount = torch.log2(ranks + 1)
    cut = [min(k, depth) - 1 for k in ks]
    gains, ideal = top.gains.double(), top.ideal.double()
    if gain == "exponential":  # monotonic in the relevance, so the ideal order is the same
        shift = (ideal.amax(1, keepdim=True) - _LARGEST_EXPONENT).clamp(min=0)  # cancels in the ratio
        gains, ideal = (torch.exp2(values - shift) - torch.exp2(-shift) for values in (gains, ideal))
    dcg = (gains / discount).cumsum(1)[:, cut]
    ideal_dcg = (ideal / discount).cumsum(1)[:, cut]
    return dcg / ideal_dcg  # 0 / 0 = NaN for a query without a relevant item
