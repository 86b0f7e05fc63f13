"""The order of the first k items of several galleries, before and after centring, from one fp32 product per tile.

:func:`~sdr_lightning.functional.search.top_k` recomputes the score of each of its candidates in fp64. NDCG depends on the
order of the items only, so here fp64 decides where the error bound leaves the order of two candidates open. Centring
subtracts the mean of a modality and normalises again; its scores are a function of the scores before it, row and column,
and need no second product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.ranking import Ranker
from sdr_lightning.functional.search import (
    GALLERY_TILE,
    QUERY_TILE,
    Advance,
    Products,
    TopK,
    check_finite,
    chunks,
    descending_order,
    paired_similarity,
    stable_top_index,
    top_k,
)

_MARGIN = 8  # candidates beyond k, so that a query rarely has to be searched again
_STRIPES = 16  # most columns per group in the choice of candidates
_MOST_CANDIDATES = 4  # times the number wanted; beyond it scores are tied, and a partial sort is faster
_MOST_SCALED = 16.0  # largest growth of the error by centring; beyond it centred embeddings are multiplied themselves
_ROUNDINGS = 32 * 2.0**-24  # error of centring a score in fp32 and of rounding centred embeddings, per squared norm

_Scores = npt.NDArray[np.float32]
_Items = npt.NDArray[np.int64]


class Centred(NamedTuple):
    """Embeddings after subtraction of their mean and L2-normalisation.

    Attributes:
        embeddings: (n, d), in the dtype of the original; an embedding that equals the mean becomes zero.
        mean: (d,) float64.
        norms: (n,) float64, the L2 norm before normalisation.
        longest: the largest L2 norm of the original embeddings.
    """

    embeddings: Tensor
    mean: Tensor
    norms: Tensor
    longest: float


class Ordered(NamedTuple):
    """The first items of each gallery, before and after centring.

    Attributes:
        plain: one :class:`~sdr_lightning.functional.search.TopK` per gallery, on the CPU. Its order is that of ``top_k``. A
            score is exact if the order within or between the galleries depends on it, else within fp32 error.
        centred: the same after centring; empty if the embeddings were not centred.
    """

    plain: list[TopK]
    centred: list[TopK]


@torch.no_grad()
def centre(embeddings: Tensor) -> Centred:
    """Subtract the mean from embeddings (n, d) and L2-normalise them again, computed in fp64.

    >>> centre(torch.tensor([[0.6, 0.8], [-0.6, 0.8]])).embeddings.tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    mean, result = embeddings.mean(0, dtype=torch.float64), torch.empty_like(embeddings)
    norms = torch.empty(len(embeddings), dtype=torch.float64, device=embeddings.device)
    longest = 0.0
    for rows in chunks(len(embeddings), 8192):  # bounds the size of the fp64 copy
        some = embeddings[rows].double()
        longest = max(longest, some.norm(dim=1).amax().item())
        some -= mean
        norms[rows] = some.norm(dim=1)
        result[rows] = F.normalize(some, dim=1).to(result.dtype)
    return Centred(result, mean, norms, longest)


@torch.no_grad()
def ordered_top_k(
    queries: Tensor,
    galleries: Sequence[Tensor],
    k: int,
    *,
    exclude: Sequence[Tensor | None],
    centred: tuple[Centred, Sequence[Centred]] | None = None,
    rankers: Sequence[Ranker | None] | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    advance: Advance | None = None,
) -> Ordered:
    """Find the k items with the highest scores in each gallery for each query.

    Args:
        queries: (Q, d), finite.
        galleries: one (G, d) each, finite.
        k: number of items per gallery, at least 1.
        exclude: for each gallery (Q, E) rows excluded for each query, or None.
        centred: :func:`centre` of the queries and of each gallery, if they are to be searched as well.
        rankers: for each gallery a ranker that counts the same scores, or None.
        query_tile: queries per tile; affects memory only.
        gallery_tile: gallery items per tile; affects memory only.
        advance: progress callback, called with the number of scores computed.

    Returns:
        The first min(k, G) items of each gallery.

    Raises:
        ValueError: the widths differ or a score is not finite.

    >>> ordered_top_k(torch.eye(2), [torch.eye(2)], 1, exclude=[None]).plain[0].items.tolist()
    [[0], [1]]
    """
    products = [Products(queries, gallery) for gallery in galleries]
    shifts = (
        [_Shift(product, centred[0], of) for product, of in zip(products, centred[1], strict=True)] if centred else []
    )
    found: list[list[TopK]] = [[] for _ in range(len(galleries) * (2 if centred else 1))]
    for rows in chunks(len(queries), query_tile):
        plain: list[_Candidates] = []
        moved: list[_Candidates] = []
        for part, (product, left_out) in enumerate(zip(products, exclude, strict=True)):
            excluded = None if left_out is None else left_out[rows]
            tiles: tuple[list[_Candidates], list[_Candidates]] = ([], [])
            for columns in chunks(len(product.gallery), gallery_tile):
                scores, bound = product.tile(rows, columns)
                check_finite(scores, rows.start, columns.start)
                if rankers is not None and (ranker := rankers[part]) is not None:
                    ranker.add(rows, columns, scores, bound)
                tiles[0].append(_candidates(_without(scores, excluded, columns), bound, k, columns.start))
                if centred:
                    scores, bound, scale = shifts[part].tile(scores, bound, rows, columns)
                    some = _candidates(_without(scores, excluded, columns), bound, k, columns.start)
                    tiles[1].append(some if scale is None else some.times(scale))
                if advance is not None:
                    advance((rows.stop - rows.start) * (columns.stop - columns.start) * (2 if centred else 1))
            plain.append(_joined(tiles[0], k))
            if centred:
                moved.append(_joined(tiles[1], k))
        lists = _decided(plain, products, rows, exclude, k)
        if centred:
            lists += _decided(moved, [shift.product for shift in shifts], rows, exclude, k)
        for all_rows, top in zip(found, lists, strict=True):
            all_rows.append(top)
    tops = [TopK(torch.cat([top.scores for top in some]), torch.cat([top.items for top in some])) for some in found]
    return Ordered(tops[: len(galleries)], tops[len(galleries) :])


class _Shift:
    """Scores after centring from the scores before it: (s - q.m_g - m_q.g + m_q.m_g) / (|q - m_q| |g - m_g|)."""

    def __init__(self, plain: Products, queries: Centred, gallery: Centred) -> None:
        self.product = Products(queries.embeddings, gallery.embeddings)
        largest, smallest = queries.longest * gallery.longest, queries.norms.amin() * gallery.norms.amin()
        fp32 = plain.queries.dtype == plain.gallery.dtype == torch.float32
        self._by_shift = fp32 and bool(0 < largest <= _MOST_SCALED * smallest)
        if self._by_shift:
            self._of_query = -_products(plain.queries, gallery.mean)[:, None].float()
            of_item = queries.mean @ gallery.mean - _products(plain.gallery, queries.mean)
            self._of_item, self._item_scale = of_item.float(), gallery.norms.reciprocal().float()
            self._query_scale = queries.norms.reciprocal()[:, None].float()
            self._growth = float(1.01 / gallery.norms.amin())
            self._roundings = _ROUNDINGS * largest

    def tile(
        self, scores: Tensor, bound: Tensor | None, rows: slice, columns: slice
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return a tile of scores after centring, in the memory of `scores`; divided by the (q, 1) scale that is returned."""
        if bound is None or not self._by_shift:
            return *self.product.tile(rows, columns), None
        scores.add_(self._of_item[columns]).add_(self._of_query[rows]).mul_(self._item_scale[columns])
        return scores, (bound + self._roundings) * self._growth, self._query_scale[rows]


class _Candidates(NamedTuple):
    """Candidates of a chunk of queries; W is at least k, if there are as many items.

    Attributes:
        scores: (q, W), -inf for padding and excluded items.
        items: (q, W) rows of the gallery, ascending except for padding.
        unseen: (q, 1) upper bound on the approximate scores of all other items.
        bound: (q, 1) bound on the errors of the scores; 0 if they are exact.
    """

    scores: _Scores
    items: _Items
    unseen: _Scores
    bound: _Scores

    def times(self, scale: Tensor) -> _Candidates:
        factor = scale.numpy()
        return _Candidates(self.scores * factor, self.items, self.unseen * factor, self.bound * factor)


def _candidates(scores: Tensor, bound: Tensor | None, k: int, first_column: int) -> _Candidates:
    """Choose at least k + _MARGIN items of a tile, or all."""
    queries, size = scores.shape
    nothing = np.full((queries, 1), -np.inf, np.float32)
    if bound is None:
        index = stable_top_index(scores, min(k, size)).sort(dim=1).values
        exact = scores.gather(1, index).cpu().numpy()
        return _Candidates(exact, index.cpu().numpy() + first_column, nothing, np.zeros((queries, 1), np.float32))
    error = bound.numpy()
    wanted = k + _MARGIN
    if size <= wanted:
        items = np.broadcast_to(np.arange(first_column, first_column + size), (queries, size))
        return _Candidates(scores.numpy().copy(), items.copy(), nothing, error)
    # At least `wanted` groups of columns, hence as many scores, reach the `wanted`-th highest maximum of a group.
    stripes = max(1, min(_STRIPES, size // (4 * wanted)))
    groups = size // stripes
    maxima = scores[:, : groups * stripes].view(queries, stripes, groups).amax(1).numpy()
    threshold = np.partition(maxima, groups - wanted, axis=1)[:, groups - wanted, None]
    array = scores.numpy()
    query, item = np.divmod(np.flatnonzero(array >= threshold), size)
    counts = np.bincount(query, minlength=queries)
    if counts.max() > _MOST_CANDIDATES * wanted:
        top = scores.topk(wanted, dim=1)
        order = top.indices.sort(dim=1)
        values = top.values.gather(1, order.indices).numpy()
        return _Candidates(values, order.values.numpy() + first_column, values.min(1, keepdims=True), error)
    slot = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.full((queries, counts.max()), -np.inf, np.float32)
    items = np.zeros(chosen.shape, np.int64)
    chosen[query, slot] = array[query, item]
    items[query, slot] = item + first_column
    return _Candidates(chosen, items, threshold, error)


def _joined(tiles: list[_Candidates], k: int) -> _Candidates:
    """Join the candidates of consecutive tiles of a gallery."""
    if len(tiles) == 1:
        return tiles[0]
    scores, items = (np.concatenate([getattr(tile, name) for tile in tiles], 1) for name in ("scores", "items"))
    unseen = np.max([tile.unseen for tile in tiles], axis=0)
    order = descending_order(torch.from_numpy(scores)).numpy()
    wanted = min(k + _MARGIN, scores.shape[1])
    if wanted < scores.shape[1]:
        unseen = np.maximum(unseen, np.take_along_axis(scores, order[:, wanted : wanted + 1], 1))
    kept = np.sort(order[:, :wanted], axis=1)  # in ascending order of items again
    scores, items = np.take_along_axis(scores, kept, 1), np.take_along_axis(items, kept, 1)
    return _Candidates(scores, items, unseen, tiles[0].bound)


def _decided(
    parts: list[_Candidates], products: list[Products], rows: slice, exclude: Sequence[Tensor | None], k: int
) -> list[TopK]:
    """Recompute what the error bound leaves open, and put the candidates in order."""
    for part, product, left_out in zip(parts, products, exclude, strict=True):
        _search_again(part, product, rows, None if left_out is None else left_out[rows], k)
    ends = np.cumsum([part.scores.shape[1] for part in parts])
    bound = 2 * np.max([part.bound for part in parts], axis=0)
    scores = np.concatenate([_possible(part.scores, bound, k) for part in parts], 1)
    order = descending_order(torch.from_numpy(scores)).numpy()
    ranked = np.take_along_axis(scores, order, 1)
    open_ = np.zeros(scores.shape, bool)
    with np.errstate(invalid="ignore"):  # between -inf and -inf nothing is open
        near = ranked[:, :-1] - ranked[:, 1:] <= bound
    either = np.zeros(scores.shape, bool)
    either[:, :-1] |= near
    either[:, 1:] |= near
    np.put_along_axis(open_, order, either, 1)
    tops = []
    for part, product, mask in zip(parts, products, np.split(open_, ends[:-1], axis=1), strict=True):
        mask &= (part.bound > 0) & (part.scores > -np.inf)
        query, slot = np.divmod(np.flatnonzero(mask), mask.shape[1])
        if len(query):
            where = torch.from_numpy(query), torch.from_numpy(part.items[query, slot])
            part.scores[query, slot] = paired_similarity(product.queries[rows], product.gallery, *where).numpy()
        best = descending_order(torch.from_numpy(part.scores)).numpy()[:, : min(k, len(product.gallery))]
        values, items = np.take_along_axis(part.scores, best, 1), np.take_along_axis(part.items, best, 1)
        tops.append(TopK(torch.from_numpy(values), torch.from_numpy(items)))
    return tops


def _possible(scores: _Scores, bound: _Scores, k: int) -> _Scores:
    """Replace by -inf the scores (q, W) that the errors cannot bring among the first k: their order does not matter."""
    width = scores.shape[1]
    if width <= k:
        return scores
    last = np.partition(scores, width - k, axis=1)[:, width - k, None]
    return np.where(scores >= last - bound, scores, np.float32(-np.inf))


def _search_again(part: _Candidates, product: Products, rows: slice, exclude: Tensor | None, k: int) -> None:
    """Replace the candidates of queries of which another item may be among the first k."""
    width = part.scores.shape[1]
    if width < k or not np.isfinite(part.unseen).any():
        return
    last = np.partition(part.scores, width - k, axis=1)[:, width - k, None]
    with np.errstate(invalid="ignore"):
        again = np.flatnonzero((last - part.unseen <= 2 * part.bound) & (part.bound > 0))
    if not len(again):
        return
    some = torch.from_numpy(again)
    top = top_k(product.queries[rows][some], product.gallery, k, exclude=None if exclude is None else exclude[some])
    order = top.items.sort(dim=1)
    part.scores[again], part.items[again] = -np.inf, 0
    part.scores[again, :k] = top.scores.gather(1, order.indices).numpy()
    part.items[again, :k] = order.values.numpy()


def _without(scores: Tensor, exclude: Tensor | None, columns: slice) -> Tensor:
    if exclude is not None:
        query, slot = torch.nonzero((exclude >= columns.start) & (exclude < columns.stop), as_tuple=True)
        scores[query, exclude[query, slot] - columns.start] = -torch.inf
    return scores


def _products(embeddings: Tensor, vector: Tensor) -> Tensor:
    """Compute (n, d) x (d,) -> (n,) in fp64."""
    return torch.cat([embeddings[rows].double() @ vector for rows in chunks(len(embeddings), 8192)])
