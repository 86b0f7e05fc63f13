"""Shards: writing, the index, the order of an epoch, and reading all pairs of an epoch; CPU seconds and memory.

    python benchmarks/bench_shards.py                         # 200,000 images with 5 captions each: 1,000,000 pairs
    python benchmarks/bench_shards.py --images 20000 --kind pixels

Images are vectors of 64 features or 32-pixel noise, so that the reader is measured and not the decoder. Everything runs in one
process without workers; CPU seconds are those of the process. Memory is the resident memory of the process: before, with the
index, and the maximum during the epoch, of which the files that the kernel caches are no part.
"""

import argparse
import json
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, ShardSource
from sdr_lightning.data.images import AnyImage, Images
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.scenes import vocabulary
from sdr_lightning.data.shards.stream import StreamedPairs, StreamLoader
from sdr_lightning.data.shards.writing import write_shards
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import CaptionTable, Split

PER_IMAGE, WORDS = 5, 8


class Noise(Images):
    """Random features or pixels."""

    def __init__(self, count: int, are_features: bool) -> None:
        self.count, self.are_features = count, are_features

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> AnyImage:
        generator = np.random.default_rng(row)
        if self.are_features:
            return generator.standard_normal((1, 64), dtype=np.float32)
        return generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def identity(self, row: int) -> int:
        return row


class NoiseSource(Source):
    """Random captions of eight words; val has 100 images."""

    name = "noise"
    splits = ("train", "val")  # type: ignore[assignment]

    def __init__(self, images: int, are_features: bool) -> None:
        self.count, self.are_features = images, are_features

    def images(self, split: Split) -> Images:
        return Noise(self.count if split == "train" else 100, self.are_features)

    def table(self, split: Split) -> CaptionTable:
        images = len(self.images(split))
        words = np.array(vocabulary())[
            np.random.default_rng(0).integers(0, len(vocabulary()), (images * PER_IMAGE, WORDS))
        ]
        ids = [f"{split}-{k:09d}" for k in range(images)]
        captions = [" ".join(row) for row in words.tolist()]
        names = [f"{name}#{k}" for name in ids for k in range(PER_IMAGE)]
        return CaptionTable("noise", split, ids, captions, names, np.repeat(np.arange(images), PER_IMAGE))


class Clock:
    """Prints CPU and wall seconds of parts, and the memory afterwards."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._begun = time.process_time(), time.perf_counter()

    def part(self, name: str, count: int = 0) -> None:
        cpu, wall = time.process_time() - self._begun[0], time.perf_counter() - self._begun[1]
        memory, most = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rate = f", {count / cpu:,.0f} per CPU second" if count else ""
        print(f"{name:42} {cpu:8.1f} CPU s {wall:8.1f} s {memory:8,.0f} MiB, at most {most:,.0f} MiB{rate}", flush=True)
        self.found[name] = {"cpu_s": cpu, "wall_s": wall, "mib": memory, "most_mib": most, "count": count}
        self._begun = time.process_time(), time.perf_counter()


def resident() -> float:
    """Return the resident memory of this process in MiB, without files that are mapped."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--kind", choices=["features", "pixels"], default="features")
    parser.add_argument("--images-per-shard", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--shuffle-buffer", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="batches to read (default: an epoch)")
    parser.add_argument("--folder", type=Path, help="keep the shards here; those that are here are not written again")
    parser.add_argument("--output", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.folder or Path(temporary))


def measure(options: argparse.Namespace, folder: Path) -> None:
    clock, are_features = Clock(), options.kind == "features"
    clock.part("start")
    source = NoiseSource(options.images, are_features)
    source.table("train")
    clock.part("generate captions")
    written = write_shards(source, folder, options.images_per_shard, {}, lambda *_: None)
    clock.part("write (images)", min(options.images, written * options.images_per_shard))
    shards = ShardSource(str(folder), shuffle_buffer=options.shuffle_buffer)
    pairs = len(shards.table("train").captions)
    clock.part("index")
    noise = Imbalance("mismatch", 0.4, level="caption")
    size = None if are_features else 32
    data = RetrievalDataModule(shards, SceneTokenizer(), options.batch_size, size, imbalance=noise)
    data.split("train")
    clock.part("corruption: 40 % of captions mismatched")
    loader = data.train_dataloader()
    assert isinstance(loader, StreamLoader)
    assert isinstance(loader.dataset, StreamedPairs)
    loader.sampler.stream_order.epoch(0)
    clock.part("order of an epoch", pairs)
    seen, held = torch.zeros(pairs, dtype=torch.int8), 0
    for batch in islice(loader, options.steps):
        seen[batch.pair_index] += 1
        held = max(held, sum(len(reader) for reader in loader.dataset._readers.values()))
    clock.part("read (pairs)", int(seen.sum()))
    bytes_on_disk, tars = sum(file.stat().st_size for file in folder.iterdir()), len(list(folder.glob("[!.]*.tar")))
    print(
        f"{pairs:,} pairs in {tars} shards, {bytes_on_disk / 1e9:.2f} GB; {int(seen.sum()):,} pairs "
        f"were read, each at most {int(seen.max())} time; at most {held:,} images waited in {shards.streams} streams"
    )
    if options.output:
        options.output.write_text(
            json.dumps({"options": vars(options) | {"folder": None, "output": None}} | clock.found)
        )


if __name__ == "__main__":
    main()
