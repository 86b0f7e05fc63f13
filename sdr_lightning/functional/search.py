"""Exact scores, exact top-k and exact ranks at the price of single-precision products, in bounded memory.

A score is an inner product summed in fp64 and rounded once to fp32 (:func:`similarity`): the same for every tile size and
setting, and equal embeddings tie exactly. Computing all scores so would cost twice what fp32 costs. But an fp32 product is
off by no more than ``d u |q| |g|`` (u = 2^-24; Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), so it
decides every comparison but those within twice that bound; only these few pairs are computed again in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

QUERY_TILE = 256  # queries at once: enough for an efficient matrix product
GALLERY_TILE = 32768  # gallery items at once: 32 MiB of scores a tile
_MARGIN = 8  # more candidates than asked for, so that a row rarely has to be done again
_FEW = 64  # times as many items as are wanted: so few cost less in fp64 than the best of them done again
_PAIRS = 2**22  # numbers gathered at once
_FP64_INTEGERS = 2**53  # fp64 holds every integer up to here

Advance = Callable[[int], None]
"""Called with the number of scores that were just computed; for progress bars."""


class TopK(NamedTuple):
    """The first K items of each query's ranking.

    Attributes:
        scores: (Q, K) float32, descending; -inf for an item that is excluded.
        items: (Q, K) int64 rows of the gallery; the lower first among equal scores.
    """

    scores: Tensor
    items: Tensor


def chunks(length: int, chunk_size: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_size` over `length` items."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    for start in range(0, length, chunk_size):
        yield slice(start, min(start + chunk_size, length))


@torch.no_grad()
def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
    """Inner products (Q, d) x (G, d) -> (Q, G), summed in fp64 and rounded once to fp32.

    A product in fp32 depends in its last bit on the shape of the block it is part of, and silently drops to
    TF32 or bf16 under autocast or a lower matmul precision; this does not.
    """
    return (queries.double() @ gallery.double().T).float()


@torch.no_grad()
def paired_similarity(queries: Tensor, gallery: Tensor, query_index: Tensor, gallery_index: Tensor) -> Tensor:
    """:func:`similarity` of chosen pairs.

    Args:
        queries: (Q, d).
        gallery: (G, d).
        query_index: (P,) int64 rows of the queries.
        gallery_index: (P,) int64 rows of the gallery.

    Returns:
        (P,) float32.
    """
    found = torch.empty(len(query_index), device=queries.device)
    for pairs in chunks(len(query_index), max(1, _PAIRS // max(1, queries.shape[1]))):
        left, right = queries[query_index[pairs]].double(), gallery[gallery_index[pairs]].double()
        found[pairs] = torch.linalg.vecdot(left, right).float()
    return found


@torch.no_grad()
def top_k(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    advance: Advance | None = None,
) -> TopK:
    """The k gallery items of greatest score for each query; never more than a tile of scores is held.

    Args:
        queries: (Q, d), finite.
        gallery: (G, d), finite.
        k: how many; all of a smaller gallery.
        exclude: (Q, E) gallery rows that are left out for each query (their score is -inf).
        query_tile: queries at once; bounds the memory and changes no result.
        gallery_tile: gallery items at once; likewise.
        advance: told how many scores are done.

    Returns:
        Q rows of min(k, G) items.

    Raises:
        ValueError: a k below 1, widths that differ, or a score that is not finite.

    >>> top_k(torch.eye(2), torch.eye(2), 1).items.tolist()
    [[0], [1]]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    product = Products(queries, gallery)
    found: list[TopK] = []
    for rows in chunks(len(queries), query_tile):
        best: TopK | None = None
        for columns in chunks(len(gallery), gallery_tile):
            tile = _top_of_tile(product, rows, columns, k, None if exclude is None else exclude[rows])
            best = tile if best is None else _merge(best, tile, k)
            if advance is not None:
                advance((rows.stop - rows.start) * (columns.stop - columns.start))
        if best is not None:
            found.append(best)
    if not found:
        raise ValueError(f"there is nothing to search: {len(queries)} queries, {len(gallery)} gallery items")
    return TopK(torch.cat([top.scores for top in found]), torch.cat([top.items for top in found]))


class Products:
    """Tiles of inner products in fp32, each with a bound on its error.

    Args:
        queries: (Q, d) of any floating type.
        gallery: (G, d).

    Raises:
        ValueError: not two matrices of the same width.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        if queries.ndim != 2 or gallery.ndim != 2:
            raise ValueError("query and gallery embeddings must be (items, d)")
        if queries.shape[1] != gallery.shape[1]:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}")
        self.queries, self.gallery = queries, gallery
        self._longest = max(
            (self._norms(gallery[part]).amax().item() for part in chunks(len(gallery), 65536)), default=0
        )
        self._unit = (queries.shape[1] + 8) * 2.0**-24 * 1.01  # input rounding and the fp32 result's own included

    def tile(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """One tile.

        Returns:
            (q, g) scores, and the (q, 1) bound on their error; None where they are :func:`similarity` itself, because
            numbers are too great, too small, or of a device that computes fp32 products otherwise.
        """
        queries, gallery = self.queries[rows], self.gallery[columns]
        bound = self._norms(queries)[:, None].float() * (self._longest * self._unit)
        safe = queries.device.type == "cpu" and bound.amin().item() > 1e-30 and bound.amax().item() < 1e30
        if not safe:
            return self.exact_tile(rows, columns)
        with _full_precision():
            return queries.float() @ gallery.float().T, bound

    def exact_tile(self, rows: slice, columns: slice) -> tuple[Tensor, None]:
        """The same by :func:`similarity`, so without an error to bound."""
        return similarity(self.queries[rows], self.gallery[columns]), None

    @staticmethod
    def _norms(items: Tensor) -> Tensor:
        return items.double().square().sum(1).sqrt()


def _top_of_tile(product: Products, rows: slice, columns: slice, k: int, exclude: Tensor | None) -> TopK:
    size = columns.stop - columns.start
    wide = min(k + _MARGIN, size)
    small = size <= _FEW * wide
    scores, bound = product.exact_tile(rows, columns) if small else product.tile(rows, columns)
    check_finite(scores, rows.start, columns.start)
    left_out = None if exclude is None else _here(exclude, columns)
    if left_out is not None:
        scores[left_out] = -torch.inf
    if bound is None:
        index = stable_top_index(scores, min(k, size))
        return TopK(scores.gather(1, index), index + columns.start)
    screened = scores.topk(wide, dim=1)
    exact = _similarity_of(product.queries[rows], product.gallery[columns], screened.indices)
    exact.masked_fill_(screened.values == -torch.inf, -torch.inf)
    # By row first, then stably by score: among equal scores the lower row is ahead.
    order = screened.indices.sort(dim=1)
    best = exact.gather(1, order.indices).sort(dim=1, descending=True, stable=True)
    top = TopK(best.values[:, : min(k, size)], order.values.gather(1, best.indices)[:, : min(k, size)])
    if wide < size:
        # What was not looked at scores at most this; where that might reach the k-th, the row is done again.
        unseen = screened.values[:, -1:] + bound
        again = torch.nonzero((unseen >= top.scores[:, -1:]).flatten()).flatten()
        for part in chunks(len(again), 64):
            some = again[part]
            whole = similarity(product.queries[rows][some], product.gallery[columns])
            whole[scores[some] == -torch.inf] = -torch.inf
            top.items[some] = stable_top_index(whole, k)
            top.scores[some] = whole.gather(1, top.items[some])
    return TopK(top.scores, top.items + columns.start)


def _similarity_of(queries: Tensor, gallery: Tensor, items: Tensor) -> Tensor:
    """What :func:`similarity` is between each query and its own items (q, wide); a few queries at once stay in the cache."""
    queries = queries.double()[:, :, None]
    parts = [torch.bmm(gallery[items[some]].double(), queries[some]) for some in chunks(len(queries), 16)]
    return torch.cat(parts).squeeze(2).float()


def _here(exclude: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    inside = (exclude >= columns.start) & (exclude < columns.stop)
    query, slot = torch.nonzero(inside, as_tuple=True)
    return query, exclude[query, slot] - columns.start


def _merge(first: TopK, second: TopK, k: int) -> TopK:
    """The top k of a gallery from those of its two parts, the first part's rows being lower."""
    scores, index = torch.cat((first.scores, second.scores), 1), torch.cat((first.items, second.items), 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return TopK(scores.gather(1, order), index.gather(1, order))


def stable_top_index(scores: Tensor, k: int) -> Tensor:
    """Indices (Q, k) of the k greatest scores in order, the lower index first among equals.

    `torch.topk` promises no order among equals, so the rows that have any are done again with integer keys,
    which are all different.
    """
    gallery_size = scores.shape[1]
    top = scores.topk(min(k + 1, gallery_size), dim=1)  # one more shows a tie across the cut
    index = top.indices[:, :k]
    tied = (top.values[:, 1:] == top.values[:, :-1]).any(1)
    if tied.any():
        rows, last = scores[tied], top.values[tied, k - 1 : k]
        key = torch.arange(gallery_size, 0, -1, device=scores.device) + gallery_size * (rows > last)
        chosen = key.masked_fill(rows < last, 0).topk(k, dim=1).indices.sort(dim=1).values
        order = rows.gather(1, chosen).sort(dim=1, descending=True, stable=True).indices
        index = index.clone()
        index[tied] = chosen.gather(1, order)
    return index


def at_least_fp32(scores: Tensor) -> Tensor:
    """The scores in fp32, or in fp64 if that is what they come in."""
    return scores if scores.dtype == torch.float64 else scores.float()


def exact_scores(scores: Tensor) -> Tensor:
    """Scores as floats that compare exactly as the scores do.

    Args:
        scores: of any shape, of any real type.

    Returns:
        fp64 as it is, lower precision in fp32, integers in fp64. Where integers go beyond what :func:`fits_fp64`, all of them
        are replaced by how many of the scores are lower.
    """
    if scores.is_floating_point():
        return at_least_fp32(scores)
    if fits_fp64(scores):
        return scores.double()
    if scores.dtype == torch.uint64:  # which torch cannot compare: int64 in the same order
        scores = scores.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return torch.searchsorted(scores.flatten().sort().values, scores.contiguous()).double()


def fits_fp64(scores: Tensor) -> bool:
    """Whether fp64 holds every score exactly: all but integers beyond 2^53."""
    if scores.is_floating_point() or not scores.numel():
        return True
    low, high = scores.long().aminmax()  # uint64 from 2^63 on becomes negative
    return low.item() >= (0 if scores.dtype == torch.uint64 else -_FP64_INTEGERS) and high.item() <= _FP64_INTEGERS


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


def check_finite(scores: Tensor, first_query: int = 0, first_item: int = 0) -> None:
    """Refuse scores (Q, G) that are not finite, naming where in the whole matrix the first is."""
    bad, (query, item) = count_non_finite(scores)
    if bad:
        raise ValueError(
            f"{bad} scores are not finite, the first at query {first_query + query}, gallery item {first_item + item}: "
            "a rank among them would mean nothing"
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of fp32 in fp32, whatever autocast and the matmul precision are set to."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
