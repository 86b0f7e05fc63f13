"""Exact scores and exact top-k at about the cost of fp32 matrix products, in bounded memory.

A score is an inner product summed in fp64 and rounded once to fp32 (:func:`similarity`). It does not depend on tile sizes
or precision settings, and equal embeddings tie exactly. To avoid the cost of fp64 products (twice that of fp32), scores are
first computed in fp32, whose error is at most ``d u |q| |g|`` (u = 2^-24; Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1). Only the pairs that this bound leaves undecided are recomputed in fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

QUERY_TILE = 512  # queries per tile: enough for an efficient matrix product, and for few calls with small galleries
GALLERY_TILE = 32768  # gallery items per tile: 64 MiB of scores
_MARGIN = 8  # candidates beyond k, so that a query rarely has to be recomputed
_EXACT_RATIO = 64  # a gallery of at most this many times the candidates is cheaper to score in fp64 throughout
_PAIRS = 2**22  # numbers gathered at once
_CACHED = 2**16  # the same on a CPU, whose cache holds them
_NUMPY = (torch.float32, torch.float64)
_FP64_INTEGERS = 2**53  # fp64 represents every integer up to here

Advance = Callable[[int], None]
"""Progress callback, called with the number of scores just computed."""


class TopK(NamedTuple):
    """The first K items of each query's ranking.

    Attributes:
        scores: (Q, K) float32, descending; -inf for an excluded item.
        items: (Q, K) int64 rows of the gallery; ascending among equal scores.
    """

    scores: Tensor
    items: Tensor


def chunks(length: int, chunk_size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `chunk_size` over `length` items.

    >>> list(chunks(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    for start in range(0, length, chunk_size):
        yield slice(start, min(start + chunk_size, length))


@torch.no_grad()
def similarity(queries: Tensor, gallery: Tensor) -> Tensor:
    """Compute inner products (Q, d) x (G, d) -> (Q, G), summed in fp64 and rounded once to fp32.

    Unlike fp32 products, the result does not depend on the shape of the block, on autocast or on the matmul precision.

    >>> similarity(torch.eye(2), torch.tensor([[3.0, 4.0]]))
    tensor([[3.],
            [4.]])
    """
    return (queries.double() @ gallery.double().T).float()


@torch.no_grad()
def paired_similarity(queries: Tensor, gallery: Tensor, query_index: Tensor, gallery_index: Tensor) -> Tensor:
    """Compute :func:`similarity` of selected pairs.

    Args:
        queries: (Q, d).
        gallery: (G, d).
        query_index: (P,) int64 rows of the queries.
        gallery_index: (P,) int64 rows of the gallery.

    Returns:
        (P,) float32.
    """
    if queries.device.type == "cpu" and queries.dtype in _NUMPY and gallery.dtype in _NUMPY:
        return _paired_in_cache(queries, gallery, query_index, gallery_index)
    found = torch.empty(len(query_index), device=queries.device)
    if len(queries) <= len(query_index):  # converted once, not once per pair
        queries = queries.double()
    for pairs in chunks(len(query_index), max(1, _PAIRS // max(1, queries.shape[1]))):
        left, right = queries[query_index[pairs]].double(), gallery[gallery_index[pairs]].double()
        found[pairs] = torch.linalg.vecdot(left, right).float()
    return found


def _paired_in_cache(queries: Tensor, gallery: Tensor, query_index: Tensor, gallery_index: Tensor) -> Tensor:
    """As :func:`paired_similarity`, several times faster on a CPU: numpy copies whole rows, a few at a time to stay in cache."""
    left, right = queries.detach().numpy(), gallery.detach().numpy()
    if len(left) <= len(query_index):  # converted once, not once per pair
        left = left.astype(np.float64)
    rows, columns = query_index.numpy(), gallery_index.numpy()
    found = np.empty(len(rows), np.float32)
    for pairs in chunks(len(rows), max(1, _CACHED // max(1, left.shape[1]))):
        some = left.take(rows[pairs], 0).astype(np.float64, copy=False)
        # Both in fp64: with two types einsum would sum parts of a row that depend on the place of its pair.
        found[pairs] = np.einsum("pd,pd->p", some, right.take(columns[pairs], 0).astype(np.float64, copy=False))
    return torch.from_numpy(found)


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
    """Find the k gallery items with the highest scores for each query, with one tile of scores in memory at a time.

    Args:
        queries: (Q, d), finite.
        gallery: (G, d), finite.
        k: number of items, at least 1.
        exclude: (Q, E) gallery rows excluded for each query (their score is -inf).
        query_tile: queries per tile; affects memory only.
        gallery_tile: gallery items per tile; affects memory only.
        advance: progress callback.

    Returns:
        (Q, min(k, G)) scores and items.

    Raises:
        ValueError: k is below 1, the widths differ, there are no queries or no gallery items, or a score is not finite.

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
        raise ValueError(
            f"nothing to search: {len(queries)} queries, {len(gallery)} gallery items; expected some of both"
        )
    return TopK(torch.cat([top.scores for top in found]), torch.cat([top.items for top in found]))


class Products:
    """Tiles of fp32 inner products with error bounds.

    Args:
        queries: (Q, d), any floating dtype.
        gallery: (G, d).

    Raises:
        ValueError: the inputs are not two matrices of the same width.
    """

    def __init__(self, queries: Tensor, gallery: Tensor) -> None:
        if queries.ndim != 2 or gallery.ndim != 2:
            raise ValueError(
                f"query and gallery embeddings must be (items, d), not {tuple(queries.shape)} and {tuple(gallery.shape)}"
            )
        if queries.shape[1] != gallery.shape[1]:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}")
        self.queries, self.gallery = queries, gallery
        unit = (queries.shape[1] + 8) * 2.0**-24 * 1.01  # includes rounding of the inputs and of the result
        longest = _norms(gallery).amax().item() if len(gallery) else 0.0
        self._bounds = (_norms(queries) * (longest * unit)).float()[:, None]  # (Q, 1)
        self._memory = torch.empty(0)

    def tile(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """Compute one tile of scores.

        Returns:
            (q, g) scores, valid until the next call, which reuses their memory, and the (q, 1) bound on their errors. The
            bound is None if the scores are exact (:func:`similarity`): for very large or small values, and on devices other
            than CPUs.
        """
        queries, gallery = self.queries[rows], self.gallery[columns]
        bound = self._bounds[rows]
        safe = queries.device.type == "cpu" and bound.amin().item() > 1e-30 and bound.amax().item() < 1e30
        if not safe:
            return self.exact_tile(rows, columns)
        size = len(queries) * len(gallery)
        if self._memory.numel() < size:  # new memory for each tile takes a quarter of the time of the product
            self._memory = torch.empty(size)
        with _full_precision():
            out = self._memory[:size].view(len(queries), len(gallery))
            return torch.mm(queries.float(), gallery.float().T, out=out), bound

    def exact_tile(self, rows: slice, columns: slice) -> tuple[Tensor, None]:
        """Compute one tile of exact scores by :func:`similarity`; there is no error bound."""
        return similarity(self.queries[rows], self.gallery[columns]), None


def _norms(items: Tensor) -> Tensor:
    """L2 norms (n,) float64 of the rows."""
    parts = [torch.linalg.vector_norm(items[some].double(), dim=1) for some in chunks(len(items), 1024)]
    return torch.cat(parts) if parts else items.new_empty(0, dtype=torch.float64)


def _top_of_tile(product: Products, rows: slice, columns: slice, k: int, exclude: Tensor | None) -> TopK:
    size = columns.stop - columns.start
    wide = min(k + _MARGIN, size)
    small = size <= _EXACT_RATIO * wide
    scores, bound = product.exact_tile(rows, columns) if small else product.tile(rows, columns)
    check_finite(scores, rows.start, columns.start)
    if exclude is not None:
        scores[_entries_in_tile(exclude, columns)] = -torch.inf
    if bound is None:
        index = stable_top_index(scores, min(k, size))
        return TopK(scores.gather(1, index), index + columns.start)
    screened = scores.topk(wide, dim=1)
    exact = _similarity_of(product.queries[rows], product.gallery[columns], screened.indices)
    exact.masked_fill_(screened.values == -torch.inf, -torch.inf)
    # Sort by row, then stably by score: ties are in ascending order of rows.
    order = screened.indices.sort(dim=1)
    best = exact.gather(1, order.indices).sort(dim=1, descending=True, stable=True)
    top = TopK(best.values[:, : min(k, size)], order.values.gather(1, best.indices)[:, : min(k, size)])
    if wide < size:
        # Upper bound on the scores outside the candidates; where it reaches the k-th score, recompute the whole row.
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
    """Compute :func:`similarity` between each query and its own items (q, wide), a few queries at a time to stay in cache."""
    queries = queries.double()[:, :, None]
    parts = [torch.bmm(gallery[items[some]].double(), queries[some]) for some in chunks(len(queries), 16)]
    return torch.cat(parts).squeeze(2).float()


def _entries_in_tile(exclude: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    inside = (exclude >= columns.start) & (exclude < columns.stop)
    query, slot = torch.nonzero(inside, as_tuple=True)
    return query, exclude[query, slot] - columns.start


def _merge(first: TopK, second: TopK, k: int) -> TopK:
    """Merge the top k of two parts of a gallery; the rows of the first part are lower."""
    scores, index = torch.cat((first.scores, second.scores), 1), torch.cat((first.items, second.items), 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return TopK(scores.gather(1, order), index.gather(1, order))


def stable_top_index(scores: Tensor, k: int) -> Tensor:
    """Return the indices (Q, k) of the k highest scores in descending order; ties in ascending order of indices.

    `torch.topk` does not define the order of ties, so rows with ties are searched again with distinct integer keys.

    >>> stable_top_index(torch.tensor([[1.0, 2.0, 1.0, 2.0]]), 3).tolist()
    [[1, 3, 0]]
    """
    gallery_size = scores.shape[1]
    top = scores.topk(min(k + 1, gallery_size), dim=1)  # one more reveals a tie across the cut-off
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


def descending_order(scores: Tensor) -> Tensor:
    """Return the descending order (Q, G) int64 of each row of scores (Q, G) without NaN; ties in ascending order of indices.

    >>> descending_order(torch.tensor([[1.0, 2.0, 1.0]])).tolist()
    [[1, 0, 2]]
    """
    if scores.device.type != "cpu" or scores.dtype != torch.float32:
        return scores.sort(dim=1, descending=True, stable=True).indices
    # numpy sorts integers several times faster than torch finds an order: score in the upper half, index in the lower.
    bits = (scores.numpy() + np.float32(0)).view(np.int32)  # + 0 turns -0 into 0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    keys = (~ascending.astype(np.int64) << 32) | np.arange(scores.shape[1])
    keys.sort(axis=1)
    return torch.from_numpy(keys & 0xFFFFFFFF)


def at_least_fp32(scores: Tensor) -> Tensor:
    """Cast scores to fp32, unless they are fp64."""
    return scores if scores.dtype == torch.float64 else scores.float()


def exact_scores(scores: Tensor) -> Tensor:
    """Convert scores to floats with the same order and the same ties.

    Args:
        scores: any shape and any real dtype.

    Returns:
        fp64 unchanged, lower floating precision as fp32, integers as fp64. If some integers exceed 2^53 (see
        :func:`fits_fp64`), each score is replaced by the number of lower scores.

    >>> exact_scores(torch.tensor([2**62, 2**62 + 1])).tolist()
    [0.0, 1.0]
    """
    if scores.is_floating_point():
        return at_least_fp32(scores)
    if fits_fp64(scores):
        return scores.double()
    if scores.dtype == torch.uint64:  # torch cannot compare uint64: map it to int64 in the same order
        scores = scores.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return torch.searchsorted(scores.flatten().sort().values, scores.contiguous()).double()


def fits_fp64(scores: Tensor) -> bool:
    """Whether fp64 represents every score exactly: false only for integers beyond 2^53."""
    if scores.is_floating_point() or not scores.numel():
        return True
    low, high = scores.long().aminmax()  # uint64 values from 2^63 become negative
    return low.item() >= (0 if scores.dtype == torch.uint64 else -_FP64_INTEGERS) and high.item() <= _FP64_INTEGERS


def count_non_finite(scores: Tensor) -> tuple[int, tuple[int, int]]:
    """Return the number of non-finite scores (Q, G), and the (query, gallery) index of the first or (-1, -1)."""
    # The sum is a fast check without a temporary: a non-finite term makes it non-finite. A sum of finite scores may
    # overflow, so a non-finite sum is followed by the full check.
    if torch.isfinite(scores.sum()):
        return 0, (-1, -1)
    where = torch.nonzero(~torch.isfinite(scores))
    if len(where) == 0:
        return 0, (-1, -1)
    query, item = where[0].tolist()
    return len(where), (query, item)


def check_finite(scores: Tensor, first_query: int = 0, first_item: int = 0) -> None:
    """Raise a ValueError for non-finite scores (Q, G), with the position of the first in the whole matrix."""
    bad, (query, item) = count_non_finite(scores)
    if bad:
        raise ValueError(
            f"{bad} scores are not finite, the first at query {first_query + query}, gallery item {first_item + item}: "
            "they cannot be ranked"
        )


@contextmanager
def _full_precision() -> Iterator[None]:
    """Compute fp32 products in fp32, regardless of autocast and the matmul precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
