"""Evaluation as commonly written (sorting row by row) against this package's, on one thread.

    python benchmarks/bench_evaluation.py

Both sides run interleaved in one process; the ratio of their medians is what carries over between machines.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.ndcg import ndcg
from sdr_lightning.functional.ranking import rank_scores, recall_at_k
from sdr_lightning.metrics import FactRelevance, RougeLRelevance, evaluate


def naive_recall(scores: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> list[float]:
    """R@1, 5, 10: argsort a row, look for the first positive."""
    ranks = np.empty(len(scores))
    for query, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")
        ranks[query] = np.flatnonzero(gallery_ids[order] == query_ids[query])[0]
    return [100.0 * float((ranks < k).mean()) for k in (1, 5, 10)]


def naive_ndcg(scores: np.ndarray, relevance: np.ndarray) -> list[float]:
    """NDCG@10, 20, 50: argsort the scores and the relevances of a row."""
    values: list[list[float]] = []
    for row, gains in zip(scores, relevance, strict=True):
        ranked, ideal = gains[np.argsort(-row, kind="stable")], np.sort(gains)[::-1]
        discount = np.log2(np.arange(2, len(row) + 2))
        values.append([float((ranked / discount)[:k].sum() / (ideal / discount)[:k].sum()) for k in (10, 20, 50)])
    return np.mean(values, axis=0).tolist()


def interleaved(naive: Callable[[], list[float]], ours: Callable[[], list[float]], repeats: int) -> tuple[float, float]:
    """Median seconds of both, after checking that they agree."""
    np.testing.assert_allclose(naive(), ours(), rtol=1e-6)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run in enumerate((naive, ours)):
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def problem(images: int, per_image: int, dimensions: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of images and captions that match to a degree, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(images).repeat_interleave(per_image)
    image = torch.randn(images, dimensions, generator=generator)
    text = image[index] + 4 * torch.randn(len(index), dimensions, generator=generator)
    return normalize(image), normalize(text), index


def captions(count: int) -> list[str]:
    """Captions of 6 to 18 words, the frequent ones far more frequent."""
    draw = np.random.default_rng(0)
    return [
        " ".join(f"w{word}" for word in np.minimum(draw.zipf(1.3, draw.integers(6, 19)), 5000)) for _ in range(count)
    ]


def report(name: str, naive: float, ours: float) -> None:
    print(f"{name:<44} {naive * 1e3:>9.1f} ms {ours * 1e3:>9.1f} ms {naive / ours:>7.1f}x")


def alone(name: str, run: Callable[[], object], repeats: int = 1) -> None:
    """Print the median time of what has no naive side worth waiting for."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    print(f"{name:<44} {'':>12} {statistics.median(seconds) * 1e3:>9.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    image, text, index = problem(arguments.images, arguments.captions_per_image)
    scores, ids = image @ text.T, torch.arange(len(image))
    size = f"{len(image):,} x {len(text):,}"
    print(f"{'':<44} {'naive':>12} {'ours':>12} {'ratio':>8}")

    def recalls() -> list[float]:
        ranks = rank_scores(scores, ids, index).ranks
        return [recall_at_k(ranks, k) for k in (1, 5, 10)]

    arrays = (scores.numpy(), ids.numpy(), index.numpy())
    report(f"R@K from scores, {size}", *interleaved(lambda: naive_recall(*arrays), recalls, arguments.repeats))

    relevance = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1))
    pair = (scores.numpy(), relevance.numpy())
    medians = interleaved(
        lambda: naive_ndcg(*pair), lambda: ndcg(scores, relevance).mean(0).tolist(), arguments.repeats
    )
    report(f"NDCG from scores, {size}", *medians)

    alone("evaluate without NDCG", lambda: evaluate(image, text, index), arguments.repeats)
    facts = torch.randint(0, 3, (len(image), 40), generator=torch.Generator().manual_seed(2))
    by_facts = FactRelevance(facts, facts[index])
    alone("evaluate, relevance of facts", lambda: evaluate(image, text, index, by_facts), arguments.repeats)
    texts = captions(len(text))
    alone(f"ROUGE-L, {len(text):,} x {len(text):,}", lambda: RougeLRelevance(texts, index, len(image)))
    by_rouge = RougeLRelevance(texts, index, len(image))
    alone("evaluate, relevance of ROUGE-L", lambda: evaluate(image, text, index, by_rouge), arguments.repeats)
    same = (torch.ones_like(image), torch.ones_like(text), index)
    alone("evaluate a collapsed model, ROUGE-L", lambda: evaluate(*same, by_rouge))


if __name__ == "__main__":
    main()
