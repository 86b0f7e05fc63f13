"""Exact search in an index: this package against bare products in numpy and torch, and against faiss if it is installed.

    sdr bench search
    sdr bench search --gallery 100000

Scores of this package are inner products summed in fp64, with ties in a defined order; those of the others are fp32. All sides
run alternately in one process, on one thread. Compare ratios, not times, between machines. Memory is the growth of the process
during a search.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from sdr_lightning.functional.search import chunks, top_k
from sdr_lightning.retrieval.nearest import nearest

PAGE = 4096  # bytes
TILE = 64  # queries of the bare products at a time, so that their scores fit in memory

Search = Callable[[np.ndarray], np.ndarray]


def by_numpy(gallery: np.ndarray, k: int) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        found = []
        for rows in chunks(len(queries), TILE):
            scores = queries[rows] @ gallery.T
            some = np.argpartition(-scores, k, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1)
            found.append(np.take_along_axis(some, order, axis=1))
        return np.concatenate(found)

    return search


def by_torch(gallery: np.ndarray, k: int) -> Search:
    rows_of = torch.from_numpy(gallery)

    def search(queries: np.ndarray) -> np.ndarray:
        every = torch.from_numpy(queries)
        found = [(every[rows] @ rows_of.T).topk(k).indices for rows in chunks(len(every), TILE)]
        return torch.cat(found).numpy()

    return search


def by_faiss(gallery: np.ndarray, k: int, threads: int) -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    return lambda queries: index.search(queries, k)[1]


def by_this_package(gallery: np.ndarray, k: int) -> Search:
    def search(queries: np.ndarray) -> np.ndarray:
        if len(queries) == 1:  # as in Index.search
            return nearest(queries, gallery, k).rows
        return top_k(torch.from_numpy(queries), torch.from_numpy(gallery), k).items.numpy()

    return search


@contextmanager
def growth() -> Iterator[Callable[[], float]]:
    """Sample the memory of the process; yields a function that returns its growth in MiB."""
    statm, stop = Path("/proc/self/statm"), threading.Event()

    def resident() -> float:
        return int(statm.read_text().split()[1]) * PAGE / 2**20

    before, peak = resident(), [resident()]

    def sample() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: peak[0] - before
    finally:
        stop.set()
        thread.join()


def normalised(rows: int, width: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    made = np.empty((rows, width), np.float32)
    for part in chunks(rows, 65536):
        made[part] = draw.standard_normal((part.stop - part.start, width), dtype=np.float32)
        made[part] /= np.linalg.norm(made[part], axis=1, keepdims=True)
    return made


def compare(name: str, queries: np.ndarray, sides: dict[str, Search], repeats: int) -> None:
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    memory, found = {}, {}
    for _ in range(repeats):
        for side, search in sides.items():
            with growth() as grown:
                start = time.perf_counter()
                found[side] = search(queries)
                seconds[side].append(time.perf_counter() - start)
                memory[side] = max(memory.get(side, 0), grown())
    own = next(iter(sides))
    for side in sides:
        ratios = [mine / theirs for mine, theirs in zip(seconds[own], seconds[side], strict=True)]
        same = 100 * (found[side] == found[own]).mean()
        middle = 1e3 * statistics.median(seconds[side]) / len(queries)
        print(
            f"{name:<12} {side:<14} {middle:>9.2f} ms/query {memory[side]:>7.0f} MiB   {own} takes "
            f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})   {same:.2f} % same items",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=int, default=1_000_000, help="items (default: 1,000,000)")
    parser.add_argument("--width", type=int, default=256, help="dimensions (default: 256)")
    parser.add_argument("--batch", type=int, default=256, help="queries of the batched search (default: 256)")
    parser.add_argument("-k", type=int, default=10, help="results (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every side (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        gallery = normalised(options.gallery, options.width, 0)
        queries = normalised(options.batch, options.width, 1)
        sides = {"this package": by_this_package(gallery, options.k)}
        sides |= {"numpy": by_numpy(gallery, options.k), "torch": by_torch(gallery, options.k)}
        if find_spec("faiss") is not None:
            sides["faiss"] = by_faiss(gallery, options.k, options.threads)
        size = gallery.nbytes / 2**20
        print(f"{options.gallery:,} x {options.width} ({size:,.0f} MiB), k = {options.k}, {options.threads} thread(s)")
        for side in sides.values():
            side(queries[:1])
        compare("one query", queries[:1], sides, options.repeats)
        compare(f"{options.batch} queries", queries, sides, options.repeats)


if __name__ == "__main__":
    main()
