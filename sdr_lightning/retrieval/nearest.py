"""Exact search for one query in a gallery of normalised embeddings."""

from __future__ import annotations

import numpy as np
import torch

from sdr_lightning.functional.search import check_finite, paired_similarity, top_k
from sdr_lightning.retrieval.retriever import Embeddings, Hits

_LONGEST = 1.001  # bound on the norm of an L2-normalised embedding in fp32
_MARGIN = 8  # candidates beyond k, so that the whole gallery rarely has to be scored again


def nearest(query: Embeddings, gallery: Embeddings, k: int) -> Hits:
    """Find the first k items of one query: the result of :func:`~sdr_lightning.functional.search.top_k`, faster for one query.

    The gallery is scored in fp32, whose error is at most ``(d + 8) u |q| |g|`` (u = 2^-24). The candidates are scored again in
    fp64. If the bound leaves open whether another item belongs to the first k, ``top_k`` decides.

    Args:
        query: (1, d) embedding.
        gallery: (G, d) embeddings, L2-normalised or zero; may be memory-mapped.
        k: at least 1; all G items if greater.
    """
    rows, vector = torch.from_numpy(gallery), torch.from_numpy(query)
    k = min(k, len(gallery))
    wide = min(k + _MARGIN, len(gallery))
    scores = torch.from_numpy(np.ascontiguousarray(query) @ gallery.T)
    check_finite(scores)
    screened = scores[0].topk(wide)
    candidates = screened.indices.sort().values
    exact = paired_similarity(vector, rows, torch.zeros_like(candidates), candidates)
    best = exact.sort(descending=True, stable=True)  # ties in ascending order of rows
    bound = (query.shape[1] + 8) * 2.0**-24 * 1.01 * float(np.linalg.norm(query)) * _LONGEST
    if wide < len(gallery) and screened.values[-1].item() + bound >= best.values[k - 1].item():
        found = top_k(vector, rows, k)
        return Hits(found.scores.numpy(), found.items.numpy())
    return Hits(best.values[None, :k].numpy(), candidates[best.indices][None, :k].numpy())
