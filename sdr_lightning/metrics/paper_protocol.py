"""Evaluation protocol of the public code of the TIP 2024 paper (its ``metric.py``), for results comparable with the paper.

Differences from :mod:`sdr_lightning.metrics.evaluation`:

- Only the first five captions of every image are used; captions 5 i to 5 i + 4 belong to image i.
- The relevance of i2i is R[5 i, j]: the first caption of the query image against the captions of image j.
- The queries of t2t and t2it are the first captions of the images. The relevance of caption c is R[c, image of the query],
  with candidate and references swapped compared with :mod:`~sdr_lightning.metrics.graded`.
- The query itself stays in the gallery. In i2i and t2t its score and its relevance are set to 0; in mixed galleries it
  keeps both (cosine 1, relevance 1).
- Siblings stay in t2t and t2it with relevance 1.
- Mixed galleries combine cosines with the reported cross-modal scores, even if these are matching logits with -100 for pairs
  that were not re-scored.
- The image block of t2it is transposed: entry (i, j) is the score of image i with the first caption of image j, with the
  relevance R[5 j, i].
- A query without a relevant item counts as 0 instead of being skipped.

Ties are ordered by index, ascending; in the public code their order depends on the sorting routine. The Flickr30K results
of the paper use ROUGE-L with TERN's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.ndcg import ndcg
from sdr_lightning.functional.ranking import Ties, rank_scores
from sdr_lightning.functional.search import chunks, exact_scores, fits_fp64, similarity
from sdr_lightning.metrics.cross_modal import modality_gap, summarise_both
from sdr_lightning.metrics.evaluation import Evaluation, checked_embeddings
from sdr_lightning.metrics.graded import NDCG_AT
from sdr_lightning.metrics.relevance import Relevance

_PER_IMAGE = 5
_ROWS = 256


def first_five(text_image_index: Tensor, num_images: int) -> Tensor:
    """Return the rows (5 N,) of the first five captions of every image, image by image.

    Raises:
        ValueError: an image has fewer than five captions.
    """
    order = text_image_index.argsort(stable=True)
    counts = text_image_index.bincount(minlength=num_images)
    few = torch.nonzero(counts < _PER_IMAGE).flatten()
    if len(few):
        raise ValueError(
            f"protocol paper needs five captions per image; {len(few)} images have fewer, the first is image {few[0].item()} "
            f"with {counts[few[0]].item()}: use protocol clean"
        )
    start = counts.cumsum(0) - counts
    return order[(start[:, None] + torch.arange(_PER_IMAGE)).flatten()]


@torch.no_grad()
def evaluate_published(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    text_image_index: Tensor,
    relevance: Relevance | None = None,
    i2t_scores: Tensor | None = None,
    t2i_scores: Tensor | None = None,
    *,
    ties: Ties = "index",
) -> Evaluation:
    """Evaluate cross-modal and, with `relevance`, single-modal and mixed retrieval by the protocol described above.

    Args:
        image_embeddings: (N, d).
        text_embeddings: (C, d), at least five per image.
        text_image_index: (C,) the image of each caption.
        relevance: graded relevance of the N images and C captions; no NDCG when None.
        i2t_scores: (N, C) image-to-text scores of any real dtype, e.g. after re-ranking; cosines when None.
        t2i_scores: (C, N) text-to-image scores, likewise.
        ties: rule for equal scores in cross-modal retrieval, see :func:`~sdr_lightning.functional.ranking.rank_scores`.

    Returns:
        The keys of :func:`~sdr_lightning.metrics.evaluation.evaluate` except `i2t_NDCG`, `t2i_NDCG` and `NDCG_exp`. Of the
        values per query, `t2i_rank` is (5 N,) and the NDCG of caption queries is (N,).

    Raises:
        ValueError: as :func:`~sdr_lightning.metrics.evaluation.evaluate`; an image has fewer than five captions; scores have
            another shape, or hold integers beyond 2^53, which cannot be compared with cosines.
    """
    images, texts, index = checked_embeddings(image_embeddings, text_embeddings, text_image_index)
    n, kept = len(images), first_five(index, len(images))
    firsts, kept_texts, owner = kept[::_PER_IMAGE], texts[kept], index[kept]
    for name, given, shape in (("i2t", i2t_scores, (n, len(texts))), ("t2i", t2i_scores, (len(texts), n))):
        if given is not None and (given.shape != shape or not fits_fp64(given)):
            raise ValueError(
                f"{name} scores are {tuple(given.shape)} {given.dtype}, expected {shape} of floats, or of integers up "
                "to 2^53"
            )
    # (N, 5 N) and (5 N, N)
    i2t = similarity(images, kept_texts) if i2t_scores is None else exact_scores(i2t_scores[:, kept])
    t2i = similarity(kept_texts, images) if t2i_scores is None else exact_scores(t2i_scores[kept])
    rows = torch.arange(n)
    rankings = rank_scores(i2t, rows, owner, ties=ties), rank_scores(t2i, owner, rows, ties=ties)
    metrics = summarise_both(*rankings) | {"modality_gap": modality_gap(images, kept_texts)}
    queries = {"i2t_rank": rankings[0].ranks, "t2i_rank": rankings[1].ranks}
    if relevance is None:
        return Evaluation(metrics, queries)
    r = torch.cat([relevance.rows("text", "image", part) for part in chunks(len(texts), _ROWS)])[kept]  # (5 N, N)
    parts: dict[str, list[Tensor]] = {"i2i": [], "t2t": [], "i2it": [], "t2it": []}
    for part in chunks(n, _ROWS):
        here = torch.arange(part.start, part.stop)
        of_image, of_text = r[here * _PER_IMAGE], r[:, part].T  # (q, N), (q, 5 N)
        own, own_text = here[:, None], here[:, None] * _PER_IMAGE
        image_scores, text_scores = similarity(images[part], images), similarity(texts[firsts[part]], kept_texts)
        parts["i2i"].append(_ndcg(image_scores.scatter(1, own, 0.0), of_image.scatter(1, own, 0.0)))
        parts["t2t"].append(_ndcg(text_scores.scatter(1, own_text, 0.0), of_text.scatter(1, own_text, 0.0)))
        parts["i2it"].append(_ndcg(torch.cat((image_scores, i2t[part]), 1), torch.cat((of_image, of_text), 1)))
        # (q, N) scores and relevance of the images with the first captions
        transposed, swapped = t2i[::_PER_IMAGE, part].T, r[::_PER_IMAGE, part].T
        parts["t2it"].append(_ndcg(torch.cat((text_scores, transposed), 1), torch.cat((of_text, swapped), 1)))
    for task, values in parts.items():
        whole = 100 * torch.cat(values)
        queries |= {f"{task}_NDCG@{k}": whole[:, column] for column, k in enumerate(NDCG_AT)}
        metrics |= {f"{task}_NDCG@{k}": whole[:, column].mean().item() for column, k in enumerate(NDCG_AT)}
    return Evaluation(metrics, queries)


def _ndcg(scores: Tensor, relevance: Tensor) -> Tensor:
    return ndcg(scores, relevance, NDCG_AT).nan_to_num(0.0)
