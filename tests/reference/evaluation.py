"""Whole evaluations with whole matrices, one query at a time: what ``sdr evaluate`` should say of any combination of options.

Embeddings are unit vectors whose inner products are exact, so that what ties here ties everywhere.
"""

import numpy as np

from tests.reference import public_metric
from tests.reference.ndcg import mean_ndcg
from tests.reference.ranking import is_tied, rank_of_best_positive

KS = (10, 20, 50)


def recalls(i2t, t2i, index, ties):
    """Both directions of (N, C) and (C, N) scores; `index` (C,) is the image of each caption."""
    results = {}
    images, captions = list(range(len(i2t))), list(index)
    for way, problem in (("i2t", (i2t, images, captions)), ("t2i", (t2i, captions, images))):
        ranks = np.array(rank_of_best_positive(*problem, ties=ties))
        results |= {f"{way}_R@{k}": 100 * np.mean(ranks < k) for k in (1, 5, 10)}
        results |= {
            f"{way}_MdR": 1 + np.median(ranks),
            f"{way}_MnR": 1 + np.mean(ranks),
            f"{way}_MRR": np.mean(1 / (1 + ranks)),
            f"{way}_tie_rate": np.mean(is_tied(*problem)),
        }
    results["rsum"] = sum(results[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    return results


def gap(images, texts):
    return {"modality_gap": np.linalg.norm(images.mean(0) - texts.mean(0))}


def rounded(values):
    return values.astype(np.float32).astype(np.float64)


def centred(embeddings):
    moved = embeddings - embeddings.mean(0)
    return rounded(moved / np.linalg.norm(moved, axis=1, keepdims=True))


def graded(task, scores, gains, left_out=None):
    """NDCG of one task; `left_out` (Q, G) marks what is not there for a query."""
    absent = np.zeros(scores.shape, bool) if left_out is None else left_out
    scores, gains = np.where(absent, scores.min() - 1, scores), np.where(absent, 0, gains)
    results = {f"{task}_NDCG@{k}": 100 * mean_ndcg(scores.tolist(), gains.tolist(), k) for k in KS}
    return results | {f"{task}_NDCG_exp@25": 100 * mean_ndcg(scores.tolist(), (2.0**gains - 1).tolist(), 25)}


def scores_alone(i2t, t2i, index, rouge, ties):
    """`rouge` (C, N) is the relevance, or None."""
    found = recalls(i2t, t2i, index, ties)
    return found if rouge is None else found | graded("i2t", i2t, rouge.T) | graded("t2i", t2i, rouge)


def clean(images, texts, index, rouge, ties, siblings="keep", folds=None):
    i2t = images @ texts.T
    found = recalls(i2t, i2t.T, index, ties) | gap(images, texts)
    if rouge is not None:
        itself = index[:, None] == index if siblings == "exclude" else np.eye(len(texts), dtype=bool)
        i2i, t2t = images @ images.T, texts @ texts.T
        of_images = np.stack([rouge[index == image].mean(0) for image in range(len(images))])
        of_texts = rouge[:, index]
        everything = np.eye(len(images), dtype=bool), np.zeros_like(i2t, dtype=bool)
        found |= graded("i2t", i2t, rouge.T) | graded("t2i", i2t.T, rouge)
        found |= graded("i2i", i2i, of_images, everything[0]) | graded("t2t", t2t, of_texts, itself)
        left_out = np.hstack((everything[1].T, itself))
        for prefix, v, t in (("", images, texts), ("centred_", centred(images), centred(texts))):
            from_images, from_texts = (rounded(rows @ np.vstack((v, t)).T) for rows in (v, t))
            found |= graded(f"{prefix}i2it", from_images, np.hstack((of_images, rouge.T)), np.hstack(everything))
            found |= graded(f"{prefix}t2it", from_texts, np.hstack((rouge, of_texts)), left_out)
    if folds is not None:
        parts = []
        for rows in np.array_split(np.arange(len(images)), folds):
            told = np.isin(index, rows)
            part = i2t[np.ix_(rows, told)]
            parts.append(recalls(part, part.T, index[told] - rows[0], ties) | gap(images[rows], texts[told]))
        found |= {f"{folds}fold_{key}": np.mean([part[key] for part in parts]) for key in parts[0]}
    return found


def paper(images, texts, index, rouge, ties, scores=None):
    """Of five captions an image, image by image; `scores` are (N, C) and (C, N)."""
    i2t, t2i = (images @ texts.T, texts @ images.T) if scores is None else scores
    found = recalls(i2t, t2i, index, ties) | gap(images, texts)
    if rouge is not None:
        of_images, of_texts, table = (images @ images.T).tolist(), (texts @ texts.T).tolist(), rouge.tolist()
        for k in KS:
            found[f"i2i_NDCG@{k}"] = public_metric.i2i(of_images, table, k)
            found[f"t2t_NDCG@{k}"] = public_metric.t2t(of_texts, table, k)
            found[f"i2it_NDCG@{k}"] = public_metric.i2it(of_images, i2t.tolist(), table, k)
            found[f"t2it_NDCG@{k}"] = public_metric.t2it(of_texts, t2i.tolist(), table, k)
    return found
