"""Single-modal and mixed retrieval, where items are relevant by degrees: NDCG of i2i, t2t, i2it and t2it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sdr_lightning.functional.ndcg import TopGains, mean_ndcg, merge_top_gains, ndcg_of_top, top_gains
from sdr_lightning.functional.ranking import CHUNK_SIZE, chunks, similarity
from sdr_lightning.metrics.relevance import Relevance


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
        raise ValueError(
            f"relevance is of {found[0]} images and {found[1]} texts, not {wanted[0]} and {wanted[1]}"
        )
    embeddings = {"image": image_embeddings.double(), "text": text_embeddings.double()}
    queries: tuple[Literal["image", "text"], ...] = ("image", "text")
    tasks: dict[str, list[Tensor]] = {"i2i": [], "t2t": [], "i2it": [], "t2it": []}
    for query in queries:
        single, mixed = (tasks["i2i"], tasks["i2it"]) if query == "image" else (tasks["t2t"], tasks["t2it"])
        for rows in chunks(len(embeddings[query]), chunk_size):
            images = _top(embeddings, relevance, query, "image", rows, max(ks))
            texts = _top(embeddings, relevance, query, "text", rows, max(ks))
            single.append(ndcg_of_top(images if query == "image" else texts, ks))
            mixed.append(ndcg_of_top(merge_top_gains(images, texts, max(ks)), ks))
    results: dict[str, float] = {}
    for task, values in tasks.items():
        try:
            means = mean_ndcg(torch.cat(values))
        except ValueError as error:
            raise ValueError(f"{task}: {error}") from error
        results |= {f"{task}_NDCG@{k}": 100.0 * mean for k, mean in zip(ks, means.tolist(), strict=True)}
    return results


def _top(
    embeddings: dict[str, Tensor],
    relevance: Relevance,
    query: Literal["image", "text"],
    gallery: Literal["image", "text"],
    rows: slice,
    k: int,
) -> TopGains:
    scores = similarity(embeddings[query][rows], embeddings[gallery])
    itself = torch.arange(rows.start, rows.stop, device=scores.device) if query == gallery else None
    return top_gains(scores, relevance.rows(query, gallery, rows).to(scores.device), k, exclude=itself)
