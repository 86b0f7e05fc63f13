"""Image-to-text and text-to-image retrieval: recall and rank statistics."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdr_lightning.functional.ordered_search import centre
from sdr_lightning.functional.ranking import (
    Ranker,
    Ranking,
    Ties,
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    rank_embeddings,
    recall_at_k,
    tie_rate,
)
from sdr_lightning.functional.search import QUERY_TILE, Advance
from sdr_lightning.types import Modality


def cross_modal_rankings(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    *,
    ties: Ties = "index",
    chunk_size: int = QUERY_TILE,
    advance: Advance | None = None,
) -> tuple[Ranking, Ranking]:
    """Rank both directions of retrieval between N images and C captions.

    The positives of an image are all of its captions; the positive of a caption is its image.

    Args:
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        text_image_index: (C,) int64, the row of the image of each caption.
        ties: see :func:`~sdr_lightning.functional.ranking.rank_scores`.
        chunk_size: queries per tile; affects memory only.
        advance: progress callback, called with the number of scores computed; 2 N C in total.

    Returns:
        Rankings image to text (N queries) and text to image (C queries).

    Raises:
        ValueError: as :func:`~sdr_lightning.functional.ranking.rank_embeddings`, e.g. an image has no caption.
    """
    rows = torch.arange(len(image_embeddings), device=image_embeddings.device)
    images, texts, index = image_embeddings, text_embeddings, text_image_index
    i2t = rank_embeddings(images, texts, rows, index, ties=ties, chunk_size=chunk_size, advance=advance)
    t2i = rank_embeddings(texts, images, index, rows, ties=ties, chunk_size=chunk_size, advance=advance)
    return i2t, t2i


def cross_modal_rankers(
    image_embeddings: Tensor, text_embeddings: Tensor, text_image_index: Tensor, ties: Ties = "index"
) -> dict[tuple[Modality, Modality], Ranker]:
    """Return rankers of both directions, by the modalities of queries and gallery; see :func:`cross_modal_rankings`."""
    rows = torch.arange(len(image_embeddings), device=image_embeddings.device)
    return {
        ("image", "text"): Ranker(image_embeddings, text_embeddings, rows, text_image_index, ties),
        ("text", "image"): Ranker(text_embeddings, image_embeddings, text_image_index, rows, ties),
    }


def summarise_both(i2t: Ranking, t2i: Ranking, recall_at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Compute the statistics of both directions.

    Args:
        i2t: ranking of images as queries.
        t2i: ranking of captions as queries.
        recall_at: the K of R@K.

    Returns:
        With the prefixes `i2t` and `t2i`: `_R@K` in percent, `_MdR` and `_MnR` 1-based, `_MRR` in (0, 1] and `_tie_rate` in
        [0, 1]. And `rsum`, the sum of all R@K.

    >>> best = Ranking(torch.tensor([0, 0]), torch.tensor([False, False]))
    >>> summarise_both(best, best)["rsum"]
    600.0
    """
    results = summarise("i2t", i2t, recall_at) | summarise("t2i", t2i, recall_at)
    results["rsum"] = sum(results[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in recall_at)
    return results


def summarise(direction: str, ranking: Ranking, recall_at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Compute the statistics of one ranking, with the keys and units of :func:`summarise_both`."""
    ranks = ranking.ranks
    recalls = {f"{direction}_R@{k}": recall_at_k(ranks, k) for k in recall_at}
    return recalls | {
        f"{direction}_MdR": median_rank(ranks),
        f"{direction}_MnR": mean_rank(ranks),
        f"{direction}_MRR": mean_reciprocal_rank(ranks),
        f"{direction}_tie_rate": tie_rate(ranking.tied),
    }


def modality_gap(image_embeddings: Tensor, text_embeddings: Tensor) -> float:
    """Compute the L2 distance between the mean image (N, d) and mean text embedding (C, d); in [0, 2] if normalised.

    Source: Liang et al., "Mind the Gap", NeurIPS 2022.

    >>> modality_gap(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))
    2.0
    """
    gap = image_embeddings.mean(0, dtype=torch.float64) - text_embeddings.mean(0, dtype=torch.float64)
    return gap.square().sum().sqrt().item()


def centred(embeddings: Tensor) -> Tensor:
    """Subtract the mean from the embeddings of one modality and L2-normalise them again, which removes the modality gap.

    Source: GR-CLIP (Li et al., "Closing the Modality Gap for Mixed Modality Search", 2025; yuhui-zh15/MixedModalitySearch:
    src/retrieval_mixbench.py). Its means are of a calibration set, here of the items themselves, whose labels are not used.

    Args:
        embeddings: (n, d), L2-normalised.

    Returns:
        (n, d), computed in fp64; an embedding that equals the mean becomes zero.

    >>> centred(torch.tensor([[0.6, 0.8], [-0.6, 0.8]])).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    return centre(embeddings).embeddings
