"""Single-modal and mixed retrieval, where items are relevant by degrees: NDCG of i2i, t2t, i2it and t2it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdr_lightning.functional.ndcg import TopGains, mean_ndcg, merge_top_gains, ndcg_of_top, top_gains
from sdr_lightning.functional.ranking import CHUNK_SIZE, chunks, similarity
from sdr_lightning.metrics.relevance import Modality, Relevance


def graded_retrieval(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    relevance: Relevance,
    *,
    ks: Sequence[int] = (10, 20, 50),
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, float]:
    """NDCG of four tasks over N images and C captions.

    The gallery of i2i is the images, of t2t the captions, of i2it and t2it the images followed by the
    captions. All scores are cosines in the common space and so comparable within a mixed gallery. The query
    itself is left out everywhere; the other captions of its image, and its counterpart in the other modality,
    stay. (The public code mixes cosines with matching logits and keeps the query in mixed galleries.)

    Args:
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        relevance: of the same N images and C captions.
        ks: cut-offs.
        chunk_size: queries evaluated at once; changes no result.

    Returns:
        `i2i_NDCG@10` ... `t2it_NDCG@50`, in percent, the mean over queries that have something relevant.

    Raises:
        ValueError: if `relevance` is of other items, or no query of a task has anything relevant.
    """
    found, wanted = (relevance.num_images, relevance.num_texts), (len(image_embeddings), len(text_embeddings))
    if found != wanted:
        raise ValueError(f"relevance is of {found[0]} images and {found[1]} texts, not {wanted[0]} and {wanted[1]}")
    embeddings: dict[Modality, Tensor] = {
        "image": image_embeddings.double(),
        "text": text_embeddings.double(),
    }
    queries: tuple[Modality, ...] = ("image", "text")
    tasks: dict[str, list[Tensor]] = {"i2i": [], "t2t": [], "i2it": [], "t2it": []}
    for query in queries:
        single, mixed = (tasks["i2i"], tasks["i2it"]) if query == "image" else (tasks["t2t"], tasks["t2it"])
        for rows in chunks(len(embeddings[query]), chunk_size):
            images = _top(embeddings, relevance, query, "image", rows, max(ks))
            texts = _top(embeddings, relevance, query, "text", rows, max(ks))
            single.append(ndcg_of_top(images if query == "image" else texts, ks))
            mixed.append(ndcg_of_top(merge_top_gains(images, texts, max(ks)), ks))
    return _means(tasks, ks)


def single_modal(
    embeddings: Tensor,
    relevance: Relevance,
    modality: Modality,
    *,
    ks: Sequence[int] = (10, 20, 50),
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, float]:
    """NDCG of i2i or t2t alone, e.g. of a teacher, which knows one modality only.

    Args:
        embeddings: (N, d) of the images or (C, d) of the captions, L2-normalised.
        relevance: of the N images and C captions.
        modality: which of the two the embeddings are of.
        ks: cut-offs.
        chunk_size: queries evaluated at once; changes no result.

    Returns:
        `i2i_NDCG@10`, ... for images or `t2t_NDCG@10`, ... for captions, as `graded_retrieval`.

    Raises:
        ValueError: if `relevance` is of another number of items, or no query has anything relevant.
    """
    wanted = relevance.num_images if modality == "image" else relevance.num_texts
    if len(embeddings) != wanted:
        raise ValueError(f"relevance is of {wanted} {modality}s, not {len(embeddings)}")
    table = {modality: embeddings.double()}
    tops = (_top(table, relevance, modality, modality, rows, max(ks)) for rows in chunks(len(embeddings), chunk_size))
    return _means({"i2i" if modality == "image" else "t2t": [ndcg_of_top(top, ks) for top in tops]}, ks)


def _top(
    embeddings: dict[Modality, Tensor],
    relevance: Relevance,
    query: Modality,
    gallery: Modality,
    rows: slice,
    k: int,
) -> TopGains:
    scores = similarity(embeddings[query][rows], embeddings[gallery])
    itself = torch.arange(rows.start, rows.stop, device=scores.device) if query == gallery else None
    return top_gains(scores, relevance.rows(query, gallery, rows).to(scores.device), k, exclude=itself)


def _means(tasks: dict[str, list[Tensor]], ks: Sequence[int]) -> dict[str, float]:
    """Means in percent of each task's chunks of NDCG (queries, len(ks))."""
    results: dict[str, float] = {}
    for task, values in tasks.items():
        try:
            means = mean_ndcg(torch.cat(values))
        except ValueError as error:
            raise ValueError(f"{task}: {error}") from error
        results |= {f"{task}_NDCG@{k}": 100.0 * mean for k, mean in zip(ks, means.tolist(), strict=True)}
    return results
