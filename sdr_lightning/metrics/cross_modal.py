"""Image-to-text and text-to-image retrieval: recall and rank statistics of the one right image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdr_lightning.functional.ranking import (
    CHUNK_SIZE,
    Ranking,
    Ties,
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    rank_embeddings,
    recall_at_k,
    tie_rate,
)


def cross_modal_retrieval(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ties: Ties = "index",
    chunk_size: int = CHUNK_SIZE,
) -> dict[str, float]:
    """Both directions of retrieval between N images and C captions.

    An image's query is answered by the best of its captions, however many it has; a caption's by its image.

    Args:
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        text_image_index: (C,) int64, the row of the image of each caption.
        recall_at: the K of R@K.
        ties: see `sdr_lightning.functional.ranking.rank_scores`.
        chunk_size: queries ranked at once; changes no result.

    Returns:
        For direction `i2t` and `t2i`: `_R@K` in percent, `_MdR` and `_MnR` from 1, `_MRR` and `_tie_rate` as
        fractions; `rsum`, the sum of all R@K; `modality_gap`, the L2 distance of the two modalities' means.

    Raises:
        ValueError: as `rank_embeddings`, e.g. for an image without a caption.
    """
    images = torch.arange(len(image_embeddings), device=image_embeddings.device)
    i2t = rank_embeddings(image_embeddings, text_embeddings, images, text_image_index, ties=ties, chunk_size=chunk_size)
    t2i = rank_embeddings(text_embeddings, image_embeddings, text_image_index, images, ties=ties, chunk_size=chunk_size)
    results = summarise("i2t", i2t, recall_at) | summarise("t2i", t2i, recall_at)
    results["rsum"] = sum(results[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in recall_at)
    results["modality_gap"] = modality_gap(image_embeddings, text_embeddings)
    return results


def summarise(direction: str, ranking: Ranking, recall_at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The statistics of one ranking, with the keys and units of `cross_modal_retrieval`."""
    ranks = ranking.ranks
    recalls = {f"{direction}_R@{k}": recall_at_k(ranks, k) for k in recall_at}
    return recalls | {
        f"{direction}_MdR": median_rank(ranks),
        f"{direction}_MnR": mean_rank(ranks),
        f"{direction}_MRR": mean_reciprocal_rank(ranks),
        f"{direction}_tie_rate": tie_rate(ranking.tied),
    }


def modality_gap(image_embeddings: Tensor, text_embeddings: Tensor) -> float:
    """L2 distance between the mean image (N, d) and the mean text embedding (C, d), in [0, 2] if normalised.

    Source: Liang et al., Mind the Gap, NeurIPS 2022.
    """
    gap = image_embeddings.double().mean(0) - text_embeddings.double().mean(0)
    return gap.square().sum().sqrt().item()
