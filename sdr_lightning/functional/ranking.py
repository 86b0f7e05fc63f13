"""Rank of the best positive of each query, and recall and rank statistics.

Gallery item j is a positive of query i if `gallery_ids[j] == query_ids[i]`. The rank of a query (0 is best) is the number
of non-positives ahead of its best positive: those with a higher score, or with an equal score and a lower gallery index.
Without the rule for ties, a collapsed model, whose scores are all equal, would have R@1 = 100 %.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdr_lightning.functional.search import (
    GALLERY_TILE,
    QUERY_TILE,
    Advance,
    Products,
    check_finite,
    chunks,
    count_non_finite,
    exact_scores,
    paired_similarity,
    similarity,
)

Ties = Literal["index", "pessimistic"]


class Ranking(NamedTuple):
    """Rank of the best positive of each query.

    Attributes:
        ranks: (Q,) int64, the number of non-positives ahead of the best positive; 0 is best.
        tied: (Q,) bool, whether a non-positive has exactly the same score.
    """

    ranks: Tensor
    tied: Tensor


@torch.no_grad()
def rank_scores(
    scores: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    ties: Ties = "index",
    chunk_size: int = 128,
) -> Ranking:
    """Rank the best positive of each query from a matrix of scores.

    Args:
        scores: (Q, G), higher is more similar; any real dtype, compared without rounding.
        query_ids: (Q,) integers, e.g. the image id of each caption.
        gallery_ids: (G,) integers.
        ties: "index" counts a non-positive with an equal score as ahead if its gallery index is lower, "pessimistic" counts
            every such non-positive as ahead.
        chunk_size: queries per chunk; affects memory only.

    Returns:
        The rank of each query and whether it is tied.

    Raises:
        ValueError: the shapes do not match, a score is not finite, or a query has no positive.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]])
    >>> rank_scores(scores, torch.tensor([0, 1]), torch.tensor([1, 1, 0])).ranks.tolist()
    [1, 0]
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (queries, gallery), not {tuple(scores.shape)}")
    positives = _positives(query_ids, gallery_ids, scores.shape[0], scores.shape[1], ties)
    found: list[Ranking] = []
    bad, first = 0, (-1, -1)
    for rows in chunks(len(scores), chunk_size):
        block = exact_scores(scores[rows])
        here, (query, item) = count_non_finite(block)
        first = (rows.start + query, item) if here and not bad else first
        bad += here
        if not bad:
            index, is_positive = positives.of(rows)
            target = _target(block.gather(1, index), index, is_positive)
            found.append(_ranking(_count(block, target, None), target, ties))
    if bad:
        raise ValueError(
            f"{bad} of {scores.numel()} scores are not finite, the first at query {first[0]}, gallery item "
            f"{first[1]}: they cannot be ranked"
        )
    return _concatenated(found)


@torch.no_grad()
def rank_embeddings(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    ties: Ties = "index",
    chunk_size: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    advance: Advance | None = None,
) -> Ranking:
    """Rank the best positive of each query from embeddings, with one tile of scores in memory at a time.

    Scores are inner products (:func:`~sdr_lightning.functional.search.similarity`); L2-normalise the embeddings to rank by
    cosine.

    Args:
        query_embeddings: (Q, d).
        gallery_embeddings: (G, d).
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        ties: rule for equal scores, see :func:`rank_scores`.
        chunk_size: queries per tile; affects memory only.
        gallery_tile: gallery items per tile; affects memory only.
        advance: progress callback, called with the number of scores computed.

    Returns:
        The rank of each query and whether it is tied.

    Raises:
        ValueError: as :func:`rank_scores`, or the widths differ.

    >>> rank_embeddings(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor([1, 0])).ranks.tolist()
    [1, 1]
    """
    product = Products(query_embeddings, gallery_embeddings)
    ranker = Ranker(query_embeddings, gallery_embeddings, query_ids, gallery_ids, ties)
    for rows in chunks(len(query_embeddings), chunk_size):
        for columns in chunks(len(gallery_embeddings), gallery_tile):
            scores, bound = product.tile(rows, columns)
            check_finite(scores, rows.start, columns.start)
            ranker.add(rows, columns, scores, bound)
            if advance is not None:
                advance((rows.stop - rows.start) * (columns.stop - columns.start))
    return ranker.ranking()


class Ranker:
    """Ranks the best positive of each query from tiles of scores that others compute.

    Args:
        query_embeddings: (Q, d).
        gallery_embeddings: (G, d).
        query_ids: (Q,) integers.
        gallery_ids: (G,) integers.
        ties: rule for equal scores, see :func:`rank_scores`.

    Raises:
        ValueError: as :func:`rank_scores`.
    """

    def __init__(
        self,
        query_embeddings: Tensor,
        gallery_embeddings: Tensor,
        query_ids: Tensor,
        gallery_ids: Tensor,
        ties: Ties = "index",
    ) -> None:
        self._queries, self._gallery, self._ties = query_embeddings, gallery_embeddings, ties
        self._positives = _positives(query_ids, gallery_ids, len(query_embeddings), len(gallery_embeddings), ties)
        self._found: list[Ranking] = []

    def add(self, rows: slice, columns: slice, scores: Tensor, bound: Tensor | None) -> None:
        """Count the scores of a tile.

        Args:
            rows: queries of the tile. All tiles of a row of tiles come before those of the next.
            columns: gallery items of the tile, in ascending order.
            scores: (q, g) finite scores, see :meth:`~sdr_lightning.functional.search.Products.tile`.
            bound: (q, 1) bound on their errors; None if they are exact.
        """
        if columns.start == 0:
            self._target = self._best_positives(rows)
            self._counts = _Counts.zero(self._target.best)
        queries, gallery = self._queries[rows], self._gallery[columns]
        self._counts += _count_tile(queries, gallery, columns.start, scores, bound, self._target)
        if columns.stop == len(self._gallery):
            self._found.append(_ranking(self._counts, self._target, self._ties))

    def ranking(self) -> Ranking:
        """Return the ranking of all queries; call it after the last tile."""
        return _concatenated(self._found)

    def _best_positives(self, rows: slice) -> _Target:
        index, is_positive = self._positives.of(rows)
        query = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
        own = paired_similarity(self._queries[rows], self._gallery, query.flatten(), index.flatten())
        return _target(own.view(index.shape), index, is_positive)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Compute R@K in percent from 0-based ranks (Q,): the share of queries with rank < k.

    >>> recall_at_k(torch.tensor([0, 3, 7, 9]), 5)
    50.0
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return 100.0 * _not_empty(ranks).lt(k).double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """Compute the median rank from 0-based ranks (Q,), reported 1-based; for an even Q the mean of the middle two.

    >>> median_rank(torch.tensor([0, 3, 7, 9]))
    6.0
    """
    ordered = _not_empty(ranks).sort().values
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return 1.0 + middle.item() / 2


def mean_rank(ranks: Tensor) -> float:
    """Compute the mean rank from 0-based ranks (Q,), reported 1-based.

    >>> mean_rank(torch.tensor([0, 3]))
    2.5
    """
    return 1.0 + _not_empty(ranks).double().mean().item()


def mean_reciprocal_rank(ranks: Tensor) -> float:
    """Compute the mean reciprocal rank, in (0, 1], from 0-based ranks (Q,): the mean of 1 / (rank + 1).

    >>> mean_reciprocal_rank(torch.tensor([0, 1]))
    0.75
    """
    return _not_empty(ranks).double().add(1).reciprocal().mean().item()


def tie_rate(tied: Tensor) -> float:
    """Compute the share of tied queries, in [0, 1], from `Ranking.tied` (Q,).

    >>> tie_rate(torch.tensor([True, False]))
    0.5
    """
    return _not_empty(tied).double().mean().item()


class _Positives(NamedTuple):
    """Positives of query i: ``order[start[i] : start[i] + number[i]]``; Q + G integers instead of a (Q, G) mask."""

    order: Tensor
    start: Tensor
    number: Tensor

    def of(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the gallery rows (q, P) of the positives, padded to the most positives of a query, and their mask."""
        number = self.number[rows]
        slots = torch.arange(int(number.max()), device=self.order.device)
        index = self.order[(self.start[rows, None] + slots).clamp(max=len(self.order) - 1)]
        return index, slots < number[:, None]


class _Target(NamedTuple):
    """Best positives of a chunk of queries; all (q, 1)."""

    best: Tensor  # score of the best positive
    first: Tensor  # lowest gallery row among the positives with this score
    equals: Tensor  # number of positives with this score


class _Counts(NamedTuple):
    """Numbers of gallery items relative to the best positive, (q,) int64."""

    greater: Tensor  # score above the best positive's
    equal: Tensor  # the same score, positives included
    equal_before: Tensor  # the same score and a lower row than `_Target.first`

    @classmethod
    def zero(cls, like: Tensor) -> _Counts:
        zeros = torch.zeros(len(like), dtype=torch.int64, device=like.device)
        return cls(zeros, zeros, zeros)

    def __add__(self, other: _Counts) -> _Counts:  # type: ignore[override]
        return _Counts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def _positives(query_ids: Tensor, gallery_ids: Tensor, queries: int, gallery: int, ties: Ties) -> _Positives:
    if ties not in ("index", "pessimistic"):
        raise ValueError(f"ties must be 'index' or 'pessimistic', not {ties!r}")
    for name, ids, length in (("query", query_ids, queries), ("gallery", gallery_ids, gallery)):
        if ids.shape != (length,) or ids.is_floating_point():
            raise ValueError(f"{name}_ids must be {length} integers, one per item, not {tuple(ids.shape)} {ids.dtype}")
    if not queries:
        raise ValueError("there are no queries to rank: expected at least one")
    query_ids, by_id = query_ids.long().contiguous(), gallery_ids.long().contiguous().sort(stable=True)
    start = torch.searchsorted(by_id.values, query_ids)
    count = torch.searchsorted(by_id.values, query_ids, right=True) - start
    missing = torch.nonzero(count == 0).flatten()
    if len(missing):
        first = int(missing[0])
        raise ValueError(
            f"{len(missing)} of {len(query_ids)} queries have no positive in the gallery, the first is query "
            f"{first} with id {query_ids[first].item()}"
        )
    return _Positives(by_id.indices, start, count)


def _target(own: Tensor, index: Tensor, is_positive: Tensor) -> _Target:
    own = own.masked_fill(~is_positive, -torch.inf)
    best = own.amax(1, keepdim=True)
    is_best = (own == best) & is_positive
    beyond = torch.iinfo(torch.int64).max
    return _Target(best, index.masked_fill(~is_best, beyond).amin(1, keepdim=True), is_best.sum(1, keepdim=True))


def _count(scores: Tensor, target: _Target, first_column: int | None) -> _Counts:
    """Count from exact scores (q, g) of the whole gallery, or of a tile whose first column is `first_column`."""
    # No positive scores above the best positive, so the (q, g) block needs no mask.
    greater, at_least = _count_above(scores, target.best, target.best)
    equal = at_least - greater
    before = torch.zeros_like(equal)
    # In a whole gallery, more equal scores than best positives mean ties with non-positives; in a tile, any may be one.
    rows = torch.nonzero(equal > (0 if first_column is not None else target.equals.flatten())).flatten()
    if len(rows):
        columns = torch.arange(scores.shape[1], device=scores.device) + (first_column or 0)
        before[rows] = ((scores[rows] == target.best[rows]) & (columns < target.first[rows])).sum(1)
    return _Counts(greater, equal, before)


def _count_tile(
    queries: Tensor, gallery: Tensor, first_column: int, scores: Tensor, bound: Tensor | None, target: _Target
) -> _Counts:
    if bound is None:
        return _count(scores, target, first_column)
    low, high = target.best - bound, target.best + bound
    greater, at_least = _count_above(scores, low, high)
    near = at_least - greater  # scores that may equal the best positive's or be on its other side
    if int(near.sum()) * 16 > scores.numel():  # collapsed model: most scores are within the error bound
        return _count(similarity(queries, gallery), target, first_column)
    # If one score is near and the best positive is in this tile, it is the best positive itself.
    first = target.first.flatten()
    itself = (near == 1) & (first >= first_column) & (first < first_column + len(gallery))
    some = torch.nonzero((near > 0) & ~itself).flatten()
    inside = (scores[some] >= low[some]) & (scores[some] <= high[some])
    place, column = torch.nonzero(inside, as_tuple=True)
    query = some[place]
    exact = paired_similarity(queries, gallery, query, column)
    best, first = target.best[query, 0], target.first[query, 0]

    def per_query(chosen: Tensor) -> Tensor:
        return torch.bincount(query[chosen], minlength=len(scores))

    equal = exact == best
    before = equal & (column + first_column < first)
    return _Counts(greater + per_query(exact > best), itself + per_query(equal), per_query(before))


def _count_above(scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Count the scores (q, g) of each row above `high` (q, 1), and those of at least `low` (q, 1); both (q,) int64."""
    if scores.device.type != "cpu":
        return (scores > high).sum(1), (scores >= low).sum(1)
    # Row by row, numpy counts in a cache that stays warm, several times faster than torch sums booleans.
    counts = np.empty((2, len(scores)), np.int64)
    chosen = np.empty(scores.shape[1], bool)
    for row, (values, above, least) in enumerate(zip(scores.numpy(), high.numpy(), low.numpy(), strict=True)):
        counts[0, row] = np.count_nonzero(np.greater(values, above, out=chosen))
        counts[1, row] = np.count_nonzero(np.greater_equal(values, least, out=chosen))
    greater, at_least = torch.from_numpy(counts)
    return greater, at_least


def _ranking(counts: _Counts, target: _Target, ties: Ties) -> Ranking:
    others = counts.equal - target.equals.flatten()  # non-positives with an equal score
    ahead = others if ties == "pessimistic" else counts.equal_before
    return Ranking(counts.greater + ahead, others > 0)


def _concatenated(rankings: list[Ranking]) -> Ranking:
    return Ranking(torch.cat([part.ranks for part in rankings]), torch.cat([part.tied for part in rankings]))


def _not_empty(values: Tensor) -> Tensor:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected one value per query, at least one, not {tuple(values.shape)}")
    return values
