"""NDCG with linear gain, one query and one rank at a time."""

import math


def ndcg(scores, relevance, k, excluded=None):
    """NDCG@k of one query; None if nothing is relevant."""
    items = [j for j in range(len(scores)) if j != excluded]
    ranking = sorted(items, key=lambda j: (-scores[j], j))
    ideal = sorted((relevance[j] for j in items), reverse=True)
    dcg = ideal_dcg = 0.0
    for rank in range(1, min(k, len(items)) + 1):
        dcg += relevance[ranking[rank - 1]] / math.log2(rank + 1)
        ideal_dcg += ideal[rank - 1] / math.log2(rank + 1)
    return None if ideal_dcg == 0 else dcg / ideal_dcg


def mean_ndcg(scores, relevance, k, excluded=None):
    """Mean over the queries that have something relevant."""
    excluded = [None] * len(scores) if excluded is None else excluded
    values = [ndcg(*query, k, left_out) for *query, left_out in zip(scores, relevance, excluded, strict=True)]
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept)
