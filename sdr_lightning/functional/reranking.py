"""Re-ranking: the first k of a ranking by cosine are put into the order of a better, dearer score.

Source: Li et al., "Align before Fuse" (ALBEF), NeurIPS 2021, and the public code of the TIP 2024 paper, which re-score the
top 128 (Flickr30K) or 256 (MS-COCO) by the matching head. There, what is not re-scored gets -100; here it keeps its order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.ranking import Ranking


@torch.no_grad()
def rerank(ranking: Ranking, found: Tensor, scores: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Ranking:
    """Where each query's best positive stands once its candidates are in the order of their scores.

    Args:
        ranking: by cosine.
        found: (Q, k) of :func:`~sdr_lightning.functional.search.top_k`.
        scores: (Q, k) of the candidates, greater is better.
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers; a gallery item with the query's id is a positive.

    Returns:
        The new ranking. A query without a positive among its candidates keeps its rank, because everything that is not
        re-scored keeps its place behind the candidates. Equal scores are ordered by gallery row, the lower first.

    Raises:
        ValueError: scores that are not finite.
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
