"""Approximate search by a graph (HNSW) of faiss, an optional package. Scores are exact, the choice of items is not.

Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", TPAMI 2018.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdr_lightning.functional.search import chunks, paired_similarity
from sdr_lightning.retrieval.retriever import Embeddings, Hits, search

_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 200, 128  # M, efConstruction, efSearch
_QUERIES = 200  # for the measurement of recall


def library() -> Any:
    """Import faiss.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            "approximate search needs the package faiss: pip install 'sdr_lightning[search]', or search exactly"
        ) from error
    return faiss


def build_graph(embeddings: Embeddings, path: Path) -> None:
    """Write the graph of a gallery (G, d)."""
    faiss = library()
    graph = faiss.IndexHNSWFlat(embeddings.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_WIDTH
    for rows in chunks(len(embeddings), 65536):
        graph.add(np.ascontiguousarray(embeddings[rows]))
    faiss.write_index(graph, str(path))


def read_graph(path: Path) -> Any:
    """Read a graph.

    Raises:
        ValueError: the file is no graph.
    """
    try:
        return library().read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is no graph of faiss: build the index again") from error


def nearest_by_graph(graph: Any, query: Embeddings, gallery: Embeddings, k: int) -> Hits:
    """Find the first k items of one query among those that the graph proposes; with exact scores.

    Args:
        graph: from :func:`read_graph`.
        query: (1, d) embedding.
        gallery: (G, d) embeddings that the graph was built from.
        k: at least 1. Fewer items are found if the graph proposes fewer.
    """
    wide = min(max(k, _SEARCH_WIDTH), len(gallery))
    _, proposed = graph.search(query, wide, params=library().SearchParametersHNSW(efSearch=wide))
    rows = torch.from_numpy(np.sort(proposed[0][proposed[0] >= 0]))
    scores = paired_similarity(torch.from_numpy(query), torch.from_numpy(gallery), torch.zeros_like(rows), rows)
    best = scores.sort(descending=True, stable=True)
    return Hits(best.values[None, :k].numpy(), rows[best.indices][None, :k].numpy())


def recall_at_10(graph: Any, gallery: Embeddings, queries: Embeddings) -> float:
    """Return the share of the first 10 items that the graph finds, in percent, over up to 200 queries (Q, d)."""
    chosen = np.linspace(0, len(queries) - 1, min(_QUERIES, len(queries))).astype(np.int64)
    some = np.ascontiguousarray(queries[chosen])
    exact = search(some, gallery, 10).rows
    found = [nearest_by_graph(graph, some[row : row + 1], gallery, 10).rows[0] for row in range(len(some))]
    shared = [len(np.intersect1d(mine, right)) for mine, right in zip(found, exact, strict=True)]
    return 100 * sum(shared) / exact.size
