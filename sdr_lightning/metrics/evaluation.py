"""Evaluation of a dual encoder: from embeddings to a flat dictionary of metrics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdr_lightning.functional.ranking import Ties
from sdr_lightning.functional.search import QUERY_TILE, Advance, chunks
from sdr_lightning.metrics.cross_modal import cross_modal_rankers, cross_modal_rankings, modality_gap, summarise_both
from sdr_lightning.metrics.graded import NDCG_AT, Siblings, graded_queries, means
from sdr_lightning.metrics.relevance import Relevance


class Evaluation(NamedTuple):
    """Results of an evaluation: means and values per query.

    Attributes:
        metrics: as returned by :func:`evaluate`; NaN where undefined.
        queries: `i2t_rank` (N,) and `t2i_rank` (C,), int64 and 0-based. With relevance, also every NDCG in percent, float64:
            (N,) for image queries, (C,) for caption queries, NaN where undefined.
    """

    metrics: dict[str, float]
    queries: dict[str, Tensor]


def evaluate(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    relevance: Relevance | None = None,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ndcg_at: Sequence[int] = NDCG_AT,
    ties: Ties = "index",
    siblings: Siblings = "keep",
    chunk_size: int = QUERY_TILE,
) -> dict[str, float]:
    """Evaluate cross-modal retrieval and, with `relevance`, single-modal and mixed retrieval.

    Args:
        image_embeddings: (N, d) in the common space, any floating dtype and norm; cast to fp32 and L2-normalised.
        text_embeddings: (C, d), likewise.
        text_image_index: (C,) integers, the row of the image of each caption; captions per image may vary.
        relevance: graded relevance of the same N images and C captions; no NDCG when None.
        recall_at: the K of R@K.
        ndcg_at: the k of NDCG@k.
        ties: rule for equal scores, see :func:`~sdr_lightning.functional.ranking.rank_scores`.
        siblings: "keep" or "exclude" the other captions of a caption's image in t2t and t2it.
        chunk_size: queries per tile; affects memory only.

    Returns:
        The keys of :func:`~sdr_lightning.metrics.cross_modal.summarise_both` (`i2t_R@1`, ..., `t2i_tie_rate`, `rsum`) and
        `modality_gap`. With `relevance`, also the means of :func:`~sdr_lightning.metrics.graded.graded_queries`
        (`i2t_NDCG@10`, ..., `centred_t2it_NDCG_exp@25`) in percent, NaN if no query has a relevant item.

    Raises:
        ValueError: the shapes do not match, an embedding is not finite or all zero, an index is out of range, an image has
            no caption, or `relevance` is of other items.

    >>> evaluate(torch.eye(3), torch.eye(3), torch.arange(3))["rsum"]
    600.0
    """
    return evaluate_queries(
        image_embeddings,
        text_embeddings,
        text_image_index,
        relevance,
        recall_at=recall_at,
        ndcg_at=ndcg_at,
        ties=ties,
        siblings=siblings,
        chunk_size=chunk_size,
    ).metrics


@torch.no_grad()
def evaluate_queries(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    relevance: Relevance | None = None,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ndcg_at: Sequence[int] = NDCG_AT,
    ties: Ties = "index",
    siblings: Siblings = "keep",
    chunk_size: int = QUERY_TILE,
    advance: Advance | None = None,
) -> Evaluation:
    """Run :func:`evaluate` and return the values per query as well.

    Args:
        image_embeddings: (N, d).
        text_embeddings: (C, d).
        text_image_index: (C,) integers.
        relevance: see :func:`evaluate`, as are all further arguments.
        recall_at: the K of R@K.
        ndcg_at: the k of NDCG@k.
        ties: rule for equal scores.
        siblings: "keep" or "exclude".
        chunk_size: queries per tile.
        advance: progress callback, called with the number of scores computed; :func:`num_scores` in total.

    Returns:
        Metrics and values per query.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    images, texts, index = checked_embeddings(image_embeddings, text_embeddings, text_image_index)
    graded: dict[str, Tensor] = {}
    if relevance is None:
        i2t, t2i = cross_modal_rankings(images, texts, index, ties=ties, chunk_size=chunk_size, advance=advance)
    else:
        rankers = cross_modal_rankers(images, texts, index, ties)
        graded = graded_queries(
            images,
            texts,
            relevance,
            ks=ndcg_at,
            siblings=siblings,
            text_image_index=index,
            rankers=rankers,
            chunk_size=chunk_size,
            advance=advance,
        )
        i2t, t2i = rankers["image", "text"].ranking(), rankers["text", "image"].ranking()
    metrics = summarise_both(i2t, t2i, recall_at) | {"modality_gap": modality_gap(images, texts)} | means(graded)
    return Evaluation(metrics, {"i2t_rank": i2t.ranks, "t2i_rank": t2i.ranks} | graded)


def num_scores(images: int, texts: int, graded: bool) -> int:
    """Return the number of scores that :func:`evaluate_queries` computes, with (`graded`) or without relevance.

    >>> num_scores(2, 10, graded=False)
    40
    """
    return 2 * (images + texts) ** 2 if graded else 2 * images * texts


def cross_modal(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ties: Ties = "index",
    chunk_size: int = QUERY_TILE,
) -> dict[str, float]:
    """Run :func:`evaluate` without NDCG, which is cheap enough for every validation epoch."""
    return evaluate(
        image_embeddings,
        text_embeddings,
        text_image_index,
        recall_at=recall_at,
        ties=ties,
        chunk_size=chunk_size,
    )


def cross_modal_folds(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    folds: int,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ties: Ties = "index",
) -> dict[str, float]:
    """Average cross-modal retrieval over disjoint folds of the images; "COCO 1K" is five folds of the 5,000 test images.

    Args:
        image_embeddings: (N, d).
        text_embeddings: (C, d).
        text_image_index: (C,) integers, the row of the image of each caption.
        folds: number of folds of consecutive images; their sizes differ by at most one.
        recall_at: the K of R@K.
        ties: rule for equal scores, see :func:`~sdr_lightning.functional.ranking.rank_scores`.

    Returns:
        The keys of :func:`cross_modal` with the prefix `{folds}fold_`.

    Raises:
        ValueError: fewer than one fold or more folds than images; or as :func:`evaluate`.

    >>> cross_modal_folds(torch.eye(4), torch.eye(4), torch.arange(4), folds=2)["2fold_rsum"]
    600.0
    """
    results = [
        cross_modal(image_embeddings[rows], text_embeddings[inside], index, recall_at=recall_at, ties=ties)
        for rows, inside, index in parts_of_folds(text_image_index, len(image_embeddings), folds)
    ]
    return mean_of_folds(results)


def parts_of_folds(text_image_index: Tensor, images: int, folds: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Divide images and their captions into folds of consecutive images.

    Yields:
        The rows of the images; (C,) whether a caption is of them; and the row of the image within the fold of each such caption.

    Raises:
        ValueError: fewer than one fold or more folds than images.
    """
    if not 1 <= folds <= images:
        raise ValueError(f"folds must be from 1 to the {images} images, got {folds}")
    for rows in torch.arange(images).tensor_split(folds):
        first, last = int(rows[0]), int(rows[-1])
        inside = (text_image_index >= first) & (text_image_index <= last)
        yield slice(first, last + 1), inside, text_image_index[inside] - first


def mean_of_folds(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of folds, with the prefix `{folds}fold_`."""
    folds = len(results)
    return {f"{folds}fold_{key}": sum(result[key] for result in results) / folds for key in results[0]}


def undefined(metrics: Mapping[str, float]) -> list[str]:
    """Return one line per reason that names the undefined (NaN) metrics."""
    reasons = {
        "NDCG": "no query has a relevant item in the gallery",
        "tau": "the judged pairs are all rated alike, or all scored alike",
        "kNN": "there are too few items",
    }
    lines = []
    for kind, reason in reasons.items():
        names = [name for name, value in metrics.items() if kind in name and math.isnan(value)]
        if names:
            lines.append(f"{', '.join(names)} undefined (null): {reason}")
    return lines


def checked_embeddings(images: Tensor, texts: Tensor, text_image_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check the inputs of :func:`evaluate`.

    Returns:
        Image and text embeddings, fp32 and L2-normalised, and the int64 index on their device.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image and text embeddings must be (N, d) and (C, d), not {tuple(images.shape)} and {tuple(texts.shape)}"
        )
    if text_image_index.shape != (len(texts),) or text_image_index.is_floating_point():
        raise ValueError(
            f"text_image_index must be {len(texts)} integers, one per text, not "
            f"{tuple(text_image_index.shape)} {text_image_index.dtype}"
        )
    images, texts = _normalised("image", images), _normalised("text", texts)
    index = text_image_index.to(device=images.device, dtype=torch.int64)
    if not len(images) or not len(texts):
        raise ValueError(f"there must be images and texts, found {len(images)} and {len(texts)}")
    if index.min() < 0 or index.max() >= len(images):
        raise ValueError(
            f"text_image_index must be in [0, {len(images)}), found {index.min().item()} to {index.max().item()}"
        )
    without = torch.nonzero(index.bincount(minlength=len(images)) == 0).flatten()
    if len(without):
        raise ValueError(
            f"{len(without)} of {len(images)} images have no caption, the first is image {without[0].item()}"
        )
    return images, texts, index


def _normalised(name: str, embeddings: Tensor) -> Tensor:
    """Return the embeddings in fp32 with L2 norm 1."""
    if embeddings.device.type == "mps":  # no fp64, in which scores are summed
        embeddings = embeddings.cpu()
    normalised = torch.empty(embeddings.shape, device=embeddings.device)
    bad = 0
    first = -1
    for rows in chunks(len(embeddings), 8192):  # bounds the size of the fp64 copy
        some = embeddings[rows].float().double()  # fp64 squares of fp32 numbers neither overflow nor underflow
        norms = some.square().sum(1, keepdim=True).sqrt()
        wrong = torch.nonzero(~torch.isfinite(norms.flatten()) | (norms.flatten() == 0)).flatten()
        if len(wrong) and not bad:
            first = rows.start + int(wrong[0])
        bad += len(wrong)
        normalised[rows] = (some / norms).float()
    if bad:
        raise ValueError(
            f"{bad} of {len(embeddings)} {name} embeddings are all zero or not finite, the first is row {first}"
        )
    return normalised
