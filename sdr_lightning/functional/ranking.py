"""Ranks of the best positive by counting, and the recall and rank statistics made of them.

Relevance comes from ids: gallery item j is a positive of query i exactly if `gallery_ids[j] == query_ids[i]`.
The rank of a query (0 is best) is the number of non-positives *ahead* of its best positive, where ahead means
a greater score or, at the same score, a lower gallery index. Counting strictly greater scores alone would
give a collapsed model, all of whose scores are equal, R@1 = 100 %.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Ties = Literal["index", "pessimistic"]

CHUNK_SIZE = 128  # queries at once: few enough for the cache, enough for an efficient matrix product


class Ranking(NamedTuple):
    """Where the best positive of each query stands.

    Attributes:
        ranks: (Q,) int64, the number of non-positives ahead of it; 0 is best.
        tied: (Q,) bool, whether at least one non-positive has exactly its score.
    """

    ranks: Tensor
    tied: Tensor


def rank_scores(
    scores: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    ties: Ties = "index",
    chunk_size: int = CHUNK_SIZE,
) -> Ranking:
    """Rank the best positive of each query from a matrix of scores.

    Args:
        scores: (Q, G), greater is more similar; anything below fp32 is cast to fp32.
        query_ids: (Q,) integers, e.g. the image id of each caption.
        gallery_ids: (G,) integers.
        ties: "index" counts an equal-scored non-positive as ahead if its gallery index is lower,
            "pessimistic" counts every equal-scored non-positive as ahead.
        chunk_size: queries ranked at once; bounds the memory and changes no result.

    Raises:
        ValueError: for shapes that do not fit, non-finite scores, or queries without a positive.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]])
    >>> rank_scores(scores, torch.tensor([0, 1]), torch.tensor([1, 1, 0])).ranks.tolist()
    [1, 0]
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be (queries, gallery), not {tuple(scores.shape)}")
    return _rank(lambda rows: at_least_fp32(scores[rows]), scores.shape, query_ids, gallery_ids, ties, chunk_size)


def rank_embeddings(
    query_embeddings: Tensor,
    gallery_embeddings: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    ties: Ties = "index",
    chunk_size: int = CHUNK_SIZE,
) -> Ranking:
    """Rank the best positive of each query from embeddings, never holding more than a chunk of scores.

    The scores are inner products (see `similarity`), so L2-normalise first to rank by cosine. Arguments other
    than the embeddings, (Q, d) and (G, d), and the errors are those of `rank_scores`.
    """
    if query_embeddings.ndim != 2 or gallery_embeddings.ndim != 2:
        raise ValueError("query and gallery embeddings must be (items, d)")
    if query_embeddings.shape[1] != gallery_embeddings.shape[1]:
        raise ValueError(
            f"queries have {query_embeddings.shape[1]} dimensions, the gallery {gallery_embeddings.shape[1]}"
        )
    shape = torch.Size((len(query_embeddings), len(gallery_embeddings)))
    gallery = gallery_embeddings.double()  # once, not once per chunk
    return _rank(
        lambda rows: similarity(query_embeddings[rows], gallery),
        shape,
        query_ids,
        gallery_ids,
        ties,
        chunk_size,
    )


@torch.no_grad()
def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
    """Inner products (Q, d) x (G, d) -> (Q, G), summed in fp64 and rounded once to fp32.

    A product in fp32 depends in its last bit on the shape of the block it is part of, and silently drops to
    TF32 or bf16 under autocast or a lower matmul precision. Summing in fp64 makes the fp32 score the same for
    every chunk size and setting, and makes equal embeddings tie exactly.
    """
    return (queries.double() @ gallery.double().T).float()


def recall_at_k(ranks: Tensor, k: int) -> float:
    """R@K in percent: the share of queries with a positive among the first k, i.e. of ranks (Q,) below k."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return 100.0 * _not_empty(ranks).lt(k).double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """MdR of 0-based ranks (Q,), reported from 1; for an even Q the mean of the middle two."""
    ordered = _not_empty(ranks).sort().values
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return 1.0 + middle.item() / 2


def mean_rank(ranks: Tensor) -> float:
    """MnR of 0-based ranks (Q,), reported from 1."""
    return 1.0 + _not_empty(ranks).double().mean().item()


def mean_reciprocal_rank(ranks: Tensor) -> float:
    """MRR in (0, 1] of 0-based ranks (Q,): the mean of 1 / (rank + 1)."""
    return _not_empty(ranks).double().add(1).reciprocal().mean().item()


def tie_rate(tied: Tensor) -> float:
    """Share in [0, 1] of queries whose best positive ties with a non-positive, from `Ranking.tied` (Q,)."""
    return _not_empty(tied).double().mean().item()


def chunks(length: int, chunk_size: int = CHUNK_SIZE) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_size` over `length` items."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    for start in range(0, length, chunk_size):
        yield slice(start, min(start + chunk_size, length))


def at_least_fp32(scores: Tensor) -> Tensor:
    """The scores in fp32, or in fp64 if that is what they come in."""
    return scores if scores.dtype == torch.float64 else scores.float()


def count_non_finite(scores: Tensor) -> tuple[int, tuple[int, int]]:
    """How many scores (Q, G) are not finite, and the (query, gallery) index of the first or (-1, -1)."""
    # One pass without a temporary settles the usual case: a non-finite term makes the sum non-finite. The
    # reverse does not hold (finite scores may overflow in the sum), hence the full look before complaining.
    if torch.isfinite(scores.sum()):
        return 0, (-1, -1)
    where = torch.nonzero(~torch.isfinite(scores))
    if len(where) == 0:
        return 0, (-1, -1)
    query, item = where[0].tolist()
    return len(where), (query, item)


@torch.no_grad()
def _rank(
    block: Callable[[slice], Tensor],
    shape: torch.Size,
    query_ids: Tensor,
    gallery_ids: Tensor,
    ties: Ties,
    chunk_size: int,
) -> Ranking:
    """Rank (Q, G) scores that `block` computes for a slice of queries."""
    if ties not in ("index", "pessimistic"):
        raise ValueError(f"ties must be 'index' or 'pessimistic', not {ties!r}")
    for name, ids, length in (("query", query_ids, shape[0]), ("gallery", gallery_ids, shape[1])):
        if ids.shape != (length,) or ids.is_floating_point():
            raise ValueError(f"{name}_ids must be {length} integers, one per item, not {tuple(ids.shape)} {ids.dtype}")
    order, start, count = _positives(query_ids.long().contiguous(), gallery_ids.long().contiguous())
    ranks, tied = [], []
    bad, first = 0, (-1, -1)
    for rows in chunks(shape[0], chunk_size):
        scores = block(rows)
        here, (query, item) = count_non_finite(scores)
        if here and not bad:
            first = (rows.start + query, item)
        bad += here
        if not bad:
            chunk = _rank_chunk(scores, order, start[rows], count[rows], ties)
            ranks.append(chunk.ranks)
            tied.append(chunk.tied)
    if bad:
        raise ValueError(
            f"{bad} of {shape.numel()} scores are not finite, the first at query {first[0]}, gallery item "
            f"{first[1]}: a rank among them would mean nothing"
        )
    if not ranks:
        raise ValueError("there are no queries to rank")
    return Ranking(torch.cat(ranks), torch.cat(tied))


def _positives(query_ids: Tensor, gallery_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positives of query i are `order[start[i] : start[i] + count[i]]`.

    Takes Q + G integers where a mask would take Q x G.
    """
    by_id = gallery_ids.sort()
    start = torch.searchsorted(by_id.values, query_ids)
    count = torch.searchsorted(by_id.values, query_ids, right=True) - start
    missing = torch.nonzero(count == 0).flatten()
    if len(missing):
        first = int(missing[0])
        raise ValueError(
            f"{len(missing)} of {len(query_ids)} queries have no positive in the gallery, the first is query "
            f"{first} with id {query_ids[first].item()}"
        )
    return by_id.indices, start, count


def _rank_chunk(scores: Tensor, order: Tensor, start: Tensor, count: Tensor, ties: Ties) -> Ranking:
    gallery_size = scores.shape[1]
    slots = torch.arange(int(count.max()), device=scores.device)  # (P,), P = most positives of a query
    is_positive = slots < count[:, None]  # (q, P)
    index = order[(start[:, None] + slots).clamp(max=gallery_size - 1)]  # (q, P)
    positives = scores.gather(1, index).masked_fill(~is_positive, -torch.inf)
    best = positives.amax(1, keepdim=True)  # (q, 1)
    is_best = positives == best
    # Whatever beats the best positive is no positive, so nothing has to be masked in the (q, G) block.
    # int32 sums of booleans are several times faster than the default int64 ones.
    ranks = (scores > best).sum(1, dtype=torch.int32).long()
    equal = (scores == best).sum(1, dtype=torch.int32) - is_best.sum(1)  # equal-scored non-positives
    tied = equal > 0
    if ties == "pessimistic":
        ranks += equal
    elif tied.any():
        best_index = index.masked_fill(~is_best, gallery_size).amin(1, keepdim=True)
        before = torch.arange(gallery_size, device=scores.device) < best_index[tied]
        ranks[tied] += ((scores[tied] == best[tied]) & before).sum(1)
    return Ranking(ranks, tied)


def _not_empty(values: Tensor) -> Tensor:
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"expected one value per query, at least one, not {tuple(values.shape)}")
    return values
