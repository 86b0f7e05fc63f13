"""Evaluation from a matrix of scores, where they are not cosines of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.ndcg import top_gains
from sdr_lightning.functional.ranking import Ties, rank_scores
from sdr_lightning.functional.search import chunks
from sdr_lightning.metrics.cross_modal import summarise_both
from sdr_lightning.metrics.evaluation import Evaluation, mean_of_folds, parts_of_folds
from sdr_lightning.metrics.graded import EXPONENTIAL_AT, NDCG_AT, means, queries_of
from sdr_lightning.metrics.relevance import Relevance

_ROWS = 256


def evaluate_scores(
    i2t: Tensor, t2i: Tensor, text_image_index: Tensor, relevance: Relevance | None = None, ties: Ties = "index"
) -> Evaluation:
    """Cross-modal retrieval from scores of images and captions.

    Args:
        i2t: (N, C) scores of N images as queries against C captions, greater is better.
        t2i: (C, N) scores of the captions as queries; ``i2t.T`` where the score is symmetric.
        text_image_index: (C,) integers, the row of the image of each caption.
        relevance: of the same N images and C captions; without it there is no NDCG.
        ties: see :func:`~sdr_lightning.functional.ranking.rank_scores`.

    Returns:
        Recall and ranks, and given ``relevance`` the NDCG, in both directions. There are no single-modal and mixed tasks.

    Example:
        >>> evaluate_scores(torch.eye(3), torch.eye(3), torch.arange(3)).metrics["rsum"]
        600.0
    """
    images = torch.arange(len(i2t))
    rankings = (
        rank_scores(i2t, images, text_image_index, ties=ties),
        rank_scores(t2i, text_image_index, images, ties=ties),
    )
    metrics = summarise_both(*rankings)
    queries = {"i2t_rank": rankings[0].ranks, "t2i_rank": rankings[1].ranks}
    if relevance is not None:
        for task, scores in (("i2t", i2t), ("t2i", t2i)):
            query, gallery = ("image", "text") if task == "i2t" else ("text", "image")
            parts: dict[str, list[Tensor]] = {}
            for part in chunks(len(scores), _ROWS):
                gains = relevance.rows(query, gallery, part)  # type: ignore[arg-type]
                found = queries_of(task, top_gains(scores[part], gains, max(*NDCG_AT, EXPONENTIAL_AT)), NDCG_AT)
                for name, values in found.items():
                    parts.setdefault(name, []).append(values)
            graded = {name: torch.cat(values) for name, values in parts.items()}
            queries |= graded
            metrics |= means(graded)
    return Evaluation(metrics, queries)


def score_folds(i2t: Tensor, t2i: Tensor, text_image_index: Tensor, folds: int) -> dict[str, float]:
    """Average cross-modal retrieval over disjoint folds of the images.

    Args:
        i2t: (N, C), see :func:`evaluate_scores`.
        t2i: (C, N).
        text_image_index: (C,).
        folds: number of folds, see :func:`~sdr_lightning.metrics.evaluation.cross_modal_folds`.

    Returns:
        Recall and ranks with the prefix `{folds}fold_`.

    Raises:
        ValueError: fewer than one fold or more folds than images.

    >>> score_folds(torch.eye(4), torch.eye(4), torch.arange(4), folds=2)["2fold_rsum"]
    600.0
    """
    return mean_of_folds(
        [
            evaluate_scores(i2t[rows][:, inside], t2i[inside][:, rows], index).metrics
            for rows, inside, index in parts_of_folds(text_image_index, len(i2t), folds)
        ]
    )
