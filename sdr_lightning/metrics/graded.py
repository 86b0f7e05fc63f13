"""Retrieval with graded relevance: NDCG of cross-modal, single-modal and mixed galleries."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from sdr_lightning.functional.ndcg import Gain, TopGains, mean_ndcg, merge_top_gains, ndcg_of_top
from sdr_lightning.functional.ordered_search import Centred, centre, ordered_top_k
from sdr_lightning.functional.ranking import Ranker
from sdr_lightning.functional.search import QUERY_TILE, Advance, TopK, chunks
from sdr_lightning.identity import sha256
from sdr_lightning.metrics.relevance import Relevance
from sdr_lightning.types import Modality

Siblings = Literal["keep", "exclude"]

EXPONENTIAL_AT = 25
"""The cut-off of TERN's NDCG, whose gain is exponential."""
NDCG_AT = (10, 20, 50)
"""The cut-offs of NDCG with linear gain."""

TASKS = ("i2t", "t2i", "i2i", "t2t", "i2it", "t2it", "centred_i2it", "centred_t2it")
"""Cross-modal, single-modal and mixed retrieval, and mixed retrieval with centred embeddings."""

_ROWS = 512  # queries per lookup of relevance


@torch.no_grad()
def graded_queries(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    relevance: Relevance,
    *,
    ks: Sequence[int] = NDCG_AT,
    siblings: Siblings = "keep",
    text_image_index: Tensor | None = None,
    rankers: Mapping[tuple[Modality, Modality], Ranker] | None = None,
    chunk_size: int = QUERY_TILE,
    advance: Advance | None = None,
) -> dict[str, Tensor]:
    """Compute NDCG of every query for all :data:`TASKS` over N images and C captions.

    The gallery of i2it and t2it is the images followed by the captions. All scores are cosines in the common space, so they
    are comparable within a mixed gallery. The query itself is removed from the gallery and from the ideal order; its
    counterpart in the other modality is kept. (The public code mixes cosines with matching logits and keeps the query in
    mixed galleries, see :mod:`sdr_lightning.metrics.paper_protocol`.) centred_i2it and centred_t2it are i2it and t2it after
    :func:`~sdr_lightning.metrics.cross_modal.centred` of the images and of the captions.

    Args:
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        relevance: graded relevance of the same N images and C captions.
        ks: cut-offs of the linear gain.
        siblings: "keep" or "exclude" the other captions of a caption's image in t2t and t2it.
        text_image_index: (C,) the image of each caption; only required to exclude siblings.
        rankers: by the modalities of queries and gallery, rankers that count the same scores.
        chunk_size: queries per tile; affects memory only.
        advance: progress callback, called with the number of scores computed; 2 (N + C)^2 in total.

    Returns:
        `TASK_NDCG@K` and `TASK_NDCG_exp@25`, float64 in percent, (N,) for image queries and (C,) for caption queries; NaN
        for a query without a relevant item.

    Raises:
        ValueError: `relevance` is of other items, or has a value that is negative or not finite; `siblings` is unknown or
            lacks `text_image_index`.
    """
    found, wanted = (relevance.num_images, relevance.num_texts), (len(image_embeddings), len(text_embeddings))
    if found != wanted:
        raise ValueError(f"relevance is of {found[0]} images and {found[1]} texts, not {wanted[0]} and {wanted[1]}")
    if siblings not in ("keep", "exclude") or (siblings == "exclude" and text_image_index is None):
        raise ValueError(f"siblings must be 'keep', or 'exclude' with a text_image_index, not {siblings!r}")
    left_out = sibling_table(text_image_index) if siblings == "exclude" and text_image_index is not None else None
    embeddings: dict[Modality, Tensor] = {"image": image_embeddings, "text": text_embeddings}
    search = _Search(embeddings, relevance, left_out, chunk_size, advance)
    depth = max(*ks, EXPONENTIAL_AT)
    tasks: dict[str, TopGains] = {}
    queries: tuple[tuple[Modality, str], ...] = (("image", "i2"), ("text", "t2"))
    for query, into in queries:
        plain, moved = search.tops(query, ("image", "text"), depth, centred=True, rankers=rankers or {})
        tasks |= {f"{into}i": plain[0], f"{into}t": plain[1], f"{into}it": merge_top_gains(plain[0], plain[1], depth)}
        tasks[f"centred_{into}it"] = merge_top_gains(moved[0], moved[1], depth)
    return {key: value for task in TASKS for key, value in queries_of(task, tasks[task], ks).items()}


def queries_of(task: str, top: TopGains, ks: Sequence[int]) -> dict[str, Tensor]:
    """Compute the values of one task from its top gains; see :func:`graded_queries`."""
    parts: tuple[tuple[str, Gain, Sequence[int]], ...] = (
        ("NDCG", "linear", ks),
        ("NDCG_exp", "exponential", (EXPONENTIAL_AT,)),
    )
    results: dict[str, Tensor] = {}
    for name, gain, cuts in parts:
        values = 100 * ndcg_of_top(top, cuts, gain)
        results |= {f"{task}_{name}@{k}": values[:, column] for column, k in enumerate(cuts)}
    return results


def means(queries: dict[str, Tensor]) -> dict[str, float]:
    """Average each value over the queries with a relevant item; NaN if there is no such query."""
    return {key: mean_ndcg(values[:, None]).item() for key, values in queries.items()}


def sibling_table(text_image_index: Tensor) -> Tensor:
    """List all captions of each caption's image, itself included.

    Args:
        text_image_index: (C,) the image of each caption.

    Returns:
        (C, M) int64 rows of captions, with M the most captions of an image; shorter rows repeat their last entry.

    >>> sibling_table(torch.tensor([0, 1, 0])).tolist()
    [[0, 2], [1, 1], [0, 2]]
    """
    index = text_image_index.long()
    by_image = index.argsort(stable=True)
    counts = index.bincount()
    start = counts.cumsum(0) - counts
    slots = torch.arange(int(counts.max()), device=index.device)
    return by_image[start[index, None] + slots.clamp(max=counts[index, None] - 1)]


def single_modal(
    embeddings: Tensor,
    relevance: Relevance,
    modality: Modality,
    *,
    ks: Sequence[int] = NDCG_AT,
    chunk_size: int = QUERY_TILE,
) -> dict[str, float]:
    """Compute NDCG of i2i or t2t only, e.g. for a unimodal teacher.

    Args:
        embeddings: (N, d) of the images or (C, d) of the captions, L2-normalised.
        relevance: graded relevance of the N images and C captions.
        modality: modality of the embeddings.
        ks: cut-offs of the linear gain.
        chunk_size: queries per tile; affects memory only.

    Returns:
        `i2i_NDCG@10`, ... for images or `t2t_NDCG@10`, ... for captions, in percent; NaN if no query has a relevant item.

    Raises:
        ValueError: `relevance` is of another number of items.
    """
    wanted = relevance.num_images if modality == "image" else relevance.num_texts
    if len(embeddings) != wanted:
        raise ValueError(f"relevance is of {wanted} {modality}s, not {len(embeddings)}")
    search = _Search({modality: embeddings}, relevance, None, chunk_size, None)
    (top,), _ = search.tops(modality, (modality,), max(*ks, EXPONENTIAL_AT))
    return means(queries_of("i2i" if modality == "image" else "t2t", top, ks))


def ndcg_between(
    embeddings: dict[Modality, Tensor],
    relevance: Relevance,
    query: Modality,
    galleries: Sequence[Modality],
    ks: Sequence[int] = NDCG_AT,
) -> Tensor:
    """Compute NDCG of one task: queries of one modality against the gallery of one modality, or of both.

    Args:
        embeddings: (N, d) images and (C, d) texts, L2-normalised; only the modalities used are required.
        relevance: graded relevance of the same items.
        query: modality of the queries; the query itself is excluded.
        galleries: modalities of the gallery, in order.
        ks: cut-offs of the linear gain.

    Returns:
        (Q, len(ks)) in [0, 1]; NaN for a query without a relevant item.
    """
    search = _Search(embeddings, relevance, None, QUERY_TILE, None)
    (first, *others), _ = search.tops(query, galleries, max(ks))
    for other in others:
        first = merge_top_gains(first, other, max(ks))
    return ndcg_of_top(first, ks)


class _Search:
    """Search with the queries of one modality, and the gains of what is found."""

    def __init__(
        self,
        embeddings: dict[Modality, Tensor],
        relevance: Relevance,
        siblings: Tensor | None,
        chunk_size: int,
        advance: Advance | None,
    ) -> None:
        self.embeddings, self.relevance, self.siblings = embeddings, relevance, siblings
        self.chunk_size, self.advance = chunk_size, advance
        self._centres: dict[Modality, Centred] = {}

    def tops(
        self,
        query: Modality,
        galleries: Sequence[Modality],
        k: int,
        centred: bool = False,
        rankers: Mapping[tuple[Modality, Modality], Ranker] | None = None,
    ) -> tuple[list[TopGains], list[TopGains]]:
        """Search each gallery; the second list is after centring, and empty without `centred`."""
        queries, items = self.embeddings[query], [self.embeddings[gallery] for gallery in galleries]
        exclude = self._left_out(query, len(queries)) if query in galleries else None
        found = ordered_top_k(
            queries,
            items,
            k,
            exclude=[exclude if gallery == query else None for gallery in galleries],
            centred=(self._centred(query), [self._centred(gallery) for gallery in galleries]) if centred else None,
            rankers=[(rankers or {}).get((query, gallery)) for gallery in galleries],
            query_tile=self.chunk_size,
            advance=self.advance,
        )
        plain, moved = (
            [self._gains(query, gallery, top, k, exclude) for gallery, top in zip(galleries, tops, strict=False)]
            for tops in found
        )
        return plain, moved

    def _gains(self, query: Modality, gallery: Modality, top: TopK, k: int, exclude: Tensor | None) -> TopGains:
        parts = list(chunks(len(top.items), _ROWS))
        gains = torch.cat([self.relevance.gains(query, gallery, rows, top.items[rows]) for rows in parts])
        left_out = exclude.cpu() if exclude is not None and query == gallery else None
        ideal = self._ideal(query, gallery, k, left_out, parts)
        for values in (gains, ideal):
            if values.numel() and not (values.min() >= 0 and torch.isfinite(values).all()):
                raise ValueError(
                    f"relevance must be finite and not negative, found {values.min().item()} to {values.max().item()} "
                    f"between {query} queries and {gallery}s"
                )
        return TopGains(top.scores, gains.masked_fill(top.scores == -torch.inf, 0.0), ideal)

    def _centred(self, modality: Modality) -> Centred:
        if modality not in self._centres:
            self._centres[modality] = centre(self.embeddings[modality])
        return self._centres[modality]

    def _ideal(self, query: Modality, gallery: Modality, k: int, exclude: Tensor | None, parts: list[slice]) -> Tensor:
        left_out = "" if exclude is None else sha256(exclude.numpy().tobytes())
        key = query, gallery, k, left_out
        if key not in self.relevance.ideals:
            self.relevance.ideals[key] = torch.cat(
                [
                    self.relevance.ideal(query, gallery, rows, k, None if exclude is None else exclude[rows])
                    for rows in parts
                ]
            )
        return self.relevance.ideals[key]

    def _left_out(self, query: Modality, size: int) -> Tensor:
        if query == "text" and self.siblings is not None:
            return self.siblings
        return torch.arange(size, device=self.embeddings[query].device)[:, None]
