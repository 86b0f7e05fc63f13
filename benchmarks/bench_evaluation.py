"""Evaluation metrics: common implementations with a loop over queries against those of this package.

    sdr bench evaluate

One thread; both sides run alternately in one process. Compare ratios, not times, between machines.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.ranking import rank_scores, recall_at_k
from sdr_lightning.metrics import Relevance, RougeLRelevance, evaluate
from sdr_lightning.metrics.graded import ndcg_between


def naive_recall(scores: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> list[float]:
    """Compute R@1, 5 and 10 with one argsort per query."""
    ranks = np.empty(len(scores))
    for query, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")
        ranks[query] = np.flatnonzero(gallery_ids[order] == query_ids[query])[0]
    return [100.0 * float((ranks < k).mean()) for k in (1, 5, 10)]


def problem(images: int, per_image: int, dimensions: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Return embeddings of noisily matching images and captions, and the image of each caption."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(images).repeat_interleave(per_image)
    image = torch.randn(images, dimensions, generator=generator)
    text = image[index] + 4 * torch.randn(len(index), dimensions, generator=generator)
    return normalize(image), normalize(text), index


def captions(count: int) -> list[str]:
    """Return captions of 6 to 18 words with Zipf-distributed frequencies."""
    draw = np.random.default_rng(0)
    return [
        " ".join(f"w{word}" for word in np.minimum(draw.zipf(1.3, draw.integers(6, 19)), 5000)) for _ in range(count)
    ]


def public_ndcg(scores: np.ndarray, relevance: np.ndarray, k: int, rows: Sequence[int]) -> float:
    """Compute NDCG@k of some queries like public code: a scan of all relevance, two sorts and a loop per query."""
    values = []
    for row in rows:
        order = np.argsort(scores[row])[::-1]
        if np.all(relevance == 0):
            continue
        ranked, ideal = relevance[row][order[:k]], np.sort(relevance[row])[::-1][:k]
        dcg = sum(ranked[place] / np.log2(place + 2) for place in range(k))
        values.append(dcg / sum(ideal[place] / np.log2(place + 2) for place in range(k)))
    return float(np.mean(values))


def report(name: str, ratios: list[float], ours: float, note: str = "") -> None:
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name:<52} {ours * 1e3:>10.1f} ms {middle:>8.1f}x  ({low:.1f} to {high:.1f}) {note}", flush=True)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    name: str, naive: Callable[[], object], ours: Callable[[], object], repeats: int, scale: float = 1.0
) -> None:
    """Time both sides alternately; `scale` is the size of the whole problem over that of the naive side."""
    pairs = [(scale * timed(naive), timed(ours)) for _ in range(repeats)]
    note = "naive side measured on a sample of the queries" if scale > 1 else ""
    report(name, [theirs / mine for theirs, mine in pairs], statistics.median(mine for _, mine in pairs), note)


def recall(image: Tensor, text: Tensor, index: Tensor, repeats: int) -> None:
    scores, ids = image @ text.T, torch.arange(len(image))
    arrays = (scores.numpy(), ids.numpy(), index.numpy())

    def ours() -> list[float]:
        ranks = rank_scores(scores, ids, index).ranks
        return [recall_at_k(ranks, k) for k in (1, 5, 10)]

    assert naive_recall(*arrays) == ours()
    name = f"R@K from scores, {len(image):,} x {len(text):,}"
    compare(name, lambda: naive_recall(*arrays), ours, repeats)


def graded(image: Tensor, text: Tensor, index: Tensor, relevance: Relevance, repeats: int, sample: int) -> None:
    """Time NDCG at 10, 20 and 50 of the four tasks, from embeddings; the naive side starts from scores."""
    spaces = {"image": normalize(image), "text": normalize(text)}
    whole = slice(0, sample)
    for task, query in (("i2i", "image"), ("t2t", "text"), ("i2it", "image"), ("t2it", "text")):
        galleries = ("image", "text") if "it" in task else (query,)
        scores = torch.cat([spaces[query][whole] @ spaces[gallery].T for gallery in galleries], 1).numpy()
        gains = torch.cat([relevance.rows(query, gallery, whole) for gallery in galleries], 1).numpy()
        filler = np.zeros((len(spaces[query]), gains.shape[1]), np.float32)  # for the scan of all relevance
        filler[:sample] = gains

        def naive(scores: np.ndarray = scores, filler: np.ndarray = filler) -> None:
            for k in (10, 20, 50):
                public_ndcg(scores, filler, k, range(sample))

        def ours(query: str = query, galleries: tuple[str, ...] = galleries) -> None:
            ndcg_between(spaces, relevance, query, galleries)

        ours()  # caches the ideal ranking, which does not depend on the model
        name = f"NDCG {task}, {len(image):,} images, {len(text):,} captions"
        compare(name, naive, ours, repeats, len(spaces[query]) / sample)


def whole(image: Tensor, text: Tensor, index: Tensor, relevance: Relevance, repeats: int) -> None:
    def bare() -> None:
        for queries, gallery in ((image, text), (image, image), (text, text)):
            for start in range(0, len(queries), 256):
                queries[start : start + 256] @ gallery.T

    evaluate(image, text, index, relevance)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [(timed(bare), timed(lambda: evaluate(image, text, index, relevance))) for _ in range(repeats)]
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    name = f"whole evaluation, {len(image):,} images, {len(text):,} captions"
    ratios, mine = [ours / theirs for theirs, ours in pairs], statistics.median(ours for _, ours in pairs)
    report(name, ratios, mine, f"the time of its bare products, {more:.0f} MiB more")


def rouge(images: int, sample: int) -> Relevance:
    """Time ROUGE-L of all pairs, against the definition on a sample of pairs."""
    index = np.repeat(np.arange(images), 5)
    texts = captions(len(index))
    start = time.perf_counter()
    relevance = RougeLRelevance(texts, index, images)
    mine = time.perf_counter() - start
    draw = np.random.default_rng(1)
    pairs = draw.integers(0, [len(texts), images], (sample, 2)).tolist()
    words = [text.lower().split() for text in texts]
    start = time.perf_counter()
    literal = [literal_rouge(words[c], [words[r] for r in range(5 * j, 5 * j + 5)]) for c, j in pairs]
    theirs = (time.perf_counter() - start) * len(texts) * images / sample
    np.testing.assert_allclose([relevance.scores[c, j] for c, j in pairs], literal, rtol=1e-5)
    report(
        f"ROUGE-L, {len(texts):,} captions x {images:,} images",
        [theirs / mine],
        mine,
        "naive side on a sample of pairs",
    )
    return relevance


def literal_rouge(candidate: list[str], references: list[list[str]], beta: float = 1.2) -> float:
    lengths = [common(candidate, reference) for reference in references]
    precision = max(length / len(candidate) for length in lengths)
    recall = max(length / len(reference) for length, reference in zip(lengths, references, strict=True))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision * recall else 0.0


def common(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if word == other else max(row[place], before[place + 1]))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="repeats for the size of Flickr30K; one for COCO")
    parser.add_argument("--skip-coco", action="store_true", help="only the size of Flickr30K")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':<52} {'ours':>13} {'ratio':>9}  (range)")
    for images in (1000,) if arguments.skip_coco else (1000, 5000):
        repeats = arguments.repeats if images == 1000 else 1
        image, text, index = problem(images, 5)
        recall(image, text, index, repeats)
        relevance = rouge(images, 2000)
        graded(image, text, index, relevance, repeats, sample=100 if images == 1000 else 10)
        whole(image, text, index, relevance, repeats)


if __name__ == "__main__":
    main()
