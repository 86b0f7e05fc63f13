"""Re-ranking: the top k of a ranking by cosine are reordered by a slower, more accurate score.

Source: Li et al., "Align before Fuse" (ALBEF), NeurIPS 2021, and the public code of the TIP 2024 paper. They re-score the
top 128 (Flickr30K) or 256 (MS-COCO) with the matching head and set all other scores to -100; here the other items keep
their order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.ranking import Ranking


@torch.no_grad()
def rerank(ranking: Ranking, found: Tensor, scores: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Ranking:
    """Rank the best positive of each query after its candidates are reordered by score.

    Args:
        ranking: ranking by cosine.
        found: (Q, k) candidates, the items of :func:`~sdr_lightning.functional.search.top_k`.
        scores: (Q, k) scores of the candidates, higher is better; ties by gallery row, ascending.
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers; a gallery item with the query's id is a positive.

    Returns:
        The new ranking. A query without a positive among its candidates keeps its rank: all other items keep their places
        behind the candidates.

    Raises:
        ValueError: a score is not finite.

    >>> by_cosine = Ranking(torch.tensor([1]), torch.tensor([False]))
    >>> rerank(by_cosine, torch.tensor([[0, 1]]), torch.tensor([[0.2, 0.9]]), torch.tensor([5]), torch.tensor([4, 5]))
    Ranking(ranks=tensor([0]), tied=tensor([False]))
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {scores.numel()} matching scores are not finite")
    positive = gallery_ids[found] == query_ids[:, None]  # (Q, k)
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    equal = scores == best
    first = found.masked_fill(~(equal & positive), len(gallery_ids)).amin(dim=1, keepdim=True)
    ahead = ((scores > best) | (equal & ~positive & (found < first))).sum(dim=1)
    has = positive.any(dim=1)
    return Ranking(
        torch.where(has, ahead, ranking.ranks), torch.where(has, (equal & ~positive).any(dim=1), ranking.tied)
    )
