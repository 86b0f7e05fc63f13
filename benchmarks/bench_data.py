"""Data loading: decoding of files against the image cache, noise, and memory of workers.

    python benchmarks/bench_data.py                     # generated JPEG files and annotations
    python benchmarks/bench_data.py --images FOLDER     # JPEG files of a folder

One thread; both sides run alternately in one process. Compare ratios of medians, not times, between machines. Memory is
that of the worker processes after an epoch over a collection of the size of Flickr30K (29,000 images, 145,000 captions).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdr_lightning.data import KarpathySource, RetrievalDataModule, SceneTokenizer
from sdr_lightning.data.images import ImageFiles
from sdr_lightning.data.imbalance import KINDS, Imbalance, NoiseTable, imbalanced
from sdr_lightning.data.pixel_cache import PixelCache, fill
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.data.transforms import augmentation, seeded
from sdr_lightning.strings import Strings

IMAGES, PER_IMAGE = 29_000, 5
WORDS = [
    "a",
    "man",
    "woman",
    "dog",
    "child",
    "red",
    "blue",
    "small",
    "runs",
    "sits",
    "street",
    "beach",
    "ball",
    "near",
    "water",
]


def make_photographs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> list[str]:
    """Write smooth random JPEG files with some detail, which compress like photographs."""
    generator = np.random.default_rng(0)
    names = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size)
        detail = generator.normal(0, 12, (size[1], size[0], 1))
        pixels = np.clip(np.asarray(coarse) + detail, 0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(pixels).save(folder / names[-1], quality=90)
    return names


def interleaved(slow: Callable[[], object], fast: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median seconds of both functions, called alternately."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, run in enumerate((slow, fast)):
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def timed(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the median seconds of a function."""
    return interleaved(lambda: None, run, repeats)[1]


def decode_and_resize(paths: Sequence[Path], side: int) -> list[np.ndarray]:
    """Decode and resize every file, as commonly done."""
    read = []
    for path in paths:
        with Image.open(path) as image:
            read.append(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)))
    return read


def bench_images(folder: Path, names: list[str], cache: Path, repeats: int) -> None:
    files = ImageFiles(folder, Strings(names))
    paths = [folder / name for name in names]
    for side in (224, 64):
        fill(cache / str(side), files, side, lambda _: None)
        kept = PixelCache(cache / str(side), files, side)
        slow, fast = interleaved(
            lambda side=side: decode_and_resize(paths, side),
            lambda kept=kept: [kept[i] for i in range(len(kept))],
            repeats,
        )
        report(f"images at {side} px", slow, fast, len(names), "images/s")
    fill(cache / "256", files, 256, lambda _: None)
    kept, crop = PixelCache(cache / "256", files, 256), augmentation("paper", 224)
    assert crop is not None

    def augmented(read: Callable[[int], np.ndarray]) -> None:
        for row in range(len(names)):
            seeded(crop, torch.from_numpy(read(row)).permute(2, 0, 1), row)

    slow, fast = interleaved(lambda: augmented(files.__getitem__), lambda: augmented(kept.__getitem__), repeats)
    report("images at 224 px, cropped and RandAugmented", slow, fast, len(names), "images/s")


def make_annotations(folder: Path) -> KarpathySource:
    """Write annotations of the size of Flickr30K in Karpathy's schema; all images are links to one small file."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "images" / "0.jpg")
    entries = []
    for number in range(IMAGES):
        if number:
            os.link(folder / "images" / "0.jpg", folder / "images" / f"{number}.jpg")
        sentences = []
        for k in range(PER_IMAGE):
            words = [WORDS[i] for i in generator.integers(len(WORDS), size=12)]
            identifier = PER_IMAGE * number + k
            sentences.append({"raw": " ".join(words), "tokens": words, "imgid": number, "sentid": identifier})
        ids = [sentence["sentid"] for sentence in sentences]
        split = "train" if number < IMAGES - 10 else "val"
        entries.append(
            {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentids": ids, "sentences": sentences}
        )
    (folder / "dataset.json").write_text(json.dumps({"images": entries, "dataset": "made"}))
    return KarpathySource(str(folder / "dataset.json"), str(folder / "images"), "made")


def bench_tables(source: KarpathySource) -> CaptionTable:
    """Time reading annotations and applying noise to all captions."""
    arguments = (source.annotations, source.root, source.name)
    seconds = timed(lambda: KarpathySource(*arguments).table("train"))
    print(f"{'table of 145,000 captions from Karpathy JSON':48} {seconds:8.2f} s")
    table = source.table("train")
    mismatch = Imbalance("mismatch", 0.4, level="caption")
    applied, made = timed(lambda: imbalanced(table, [mismatch])), timed(lambda: NoiseTable.draw(table, mismatch))
    print(f"{'mismatch of 40 % of the captions, drawn and applied':48} {applied:8.2f} s  (drawing: {made:.2f} s)")
    for kind, entry in KINDS.items():
        if "text" in entry.modalities:
            noise = Imbalance(kind, 1.0, modality="text")
            print(f"{f'{kind} in every caption':48} {timed(lambda noise=noise: imbalanced(table, [noise]), 1):8.2f} s")
    return table


def bench_memory(source: KarpathySource, cache: Path) -> None:
    """Measure resident and private memory of workers after an epoch."""
    print(f"\n{'workers':>8} {'RSS of the process':>20} {'RSS a worker':>14} {'of it private':>14}")
    for workers in (0, 2, 4):
        data = RetrievalDataModule(
            source,
            SceneTokenizer(),
            256,
            32,
            workers=workers,
            cached_size=32,
            cache=str(cache),
            imbalance=Imbalance("mismatch", 0.4),
        )
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        iterator = iter(loader)
        for _ in range(len(loader) - 1):
            next(iterator)
        children = [worker.pid for worker in getattr(iterator, "_workers", [])]
        own = memory(os.getpid())
        of_workers = [memory(pid) for pid in children]
        rss = f"{statistics.mean(m[0] for m in of_workers):11,.0f} MB" if of_workers else ""
        private = f"{statistics.mean(m[1] for m in of_workers):11,.0f} MB" if of_workers else ""
        print(f"{workers:8} {own[0]:17,.0f} MB {rss:>14} {private:>14}", flush=True)
        del iterator, loader


def memory(pid: int) -> tuple[float, float]:
    """Return resident and private memory of a process in MB, from /proc."""
    values = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split(":")
        values[name] = int(amount.split()[0]) / 1024
    return values["Rss"], values["Private_Clean"] + values["Private_Dirty"]


def report(name: str, slow: float, fast: float, items: int, unit: str) -> None:
    print(f"{name:48} {items / slow:8,.0f} {items / fast:9,.0f} {unit} {slow / fast:7.1f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of JPEG files")
    parser.add_argument("--count", type=int, default=300, help="how many of them")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photographs").mkdir()
        images = arguments.images or folder / "photographs"
        names = (
            make_photographs(images, arguments.count)
            if arguments.images is None
            else sorted(path.name for path in images.glob("*.jpg"))[: arguments.count]
        )
        print(f"{'':48} {'decoding':>8} {'cached':>9}")
        bench_images(images, names, folder / "cache", arguments.repeats)
        print()
        source = make_annotations(folder)
        bench_tables(source)
        bench_memory(source, folder / "cache")


if __name__ == "__main__":
    main()
