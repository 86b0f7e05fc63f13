import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdr_lightning.data.images import ImageFiles, Images, InMemory, Pixels
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.pixel_cache import PixelCache, cache_folder, fill
from sdr_lightning.data.precomputed import FeatureRows
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.data.transforms import to_input
from sdr_lightning.strings import Strings
from sdr_lightning.types import RetrievalBatch

SIDE = 8
ROW = SIDE * SIDE * 3
CHUNK = 16
ABSENT = r"{} of {} images are not in the cache .*: run sdr data prepare"


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdr_lightning.data.pixel_cache._CHUNK", CHUNK)


def pictures(count: int, seed: int = 0) -> list[Pixels]:
    """Pictures of all shapes, one of them of the cache's own side."""
    generator = np.random.default_rng(seed)
    shapes = [(SIDE, SIDE), *((int(h), int(w)) for h, w in generator.integers(4, 30, (count - 1, 2)))]
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def in_files(folder: Path, count: int) -> ImageFiles:
    for row, pixels in enumerate(pictures(count)):
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return ImageFiles(folder, Strings(f"{row}.png" for row in range(count)))


class Streamed(InMemory):
    """Images that come one after another, the last first."""

    one_after_another = True
    streams = 0

    def __getitem__(self, row: int) -> Pixels:
        raise AssertionError("a stream is not asked for single rows")

    def stream(self) -> Iterator[tuple[int, Pixels]]:
        self.streams += 1
        for row in reversed(range(len(self))):
            yield row, self.pixels[row]


class Hooked(InMemory):
    """Images that call something before they are handed out."""

    def __init__(self, pixels: Sequence[Pixels], hook: Callable[[int], object]) -> None:
        super().__init__(pixels)
        self.hook = hook

    def __getitem__(self, row: int) -> Pixels:
        self.hook(row)
        return super().__getitem__(row)


def breaking_at(row: int) -> Callable[[int], None]:
    def hook(asked: int) -> None:
        if asked == row:
            raise ValueError("cannot read the image")

    return hook


def fill_here(folder: Path, images: Images) -> int:
    return fill(folder, images, SIDE, lambda done: None, threads=2)


def kept(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return len(np.load(folder / "identities.npy"))
    return 0


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def assert_holds(folder: Path, images: Images, sources: Sequence[Pixels]) -> None:
    cache = PixelCache(folder, images, SIDE)
    assert len(cache) == len(sources)
    for row, pixels in enumerate(sources):
        assert torch.equal(torch.from_numpy(cache[row]).permute(2, 0, 1), to_input(pixels, SIDE)), row


@pytest.mark.parametrize(
    ("count", "kind"), [(1, "files"), (2 * CHUNK + 5, "files"), (CHUNK, "memory"), (2 * CHUNK + 5, "stream")]
)
def test_the_cache_holds_the_model_s_input_of_every_image_by_row(kind: str, count: int, tmp_path: Path) -> None:
    sources = pictures(count)
    images: Images = {
        "files": in_files,
        "memory": lambda *_: InMemory(sources),
        "stream": lambda *_: Streamed(sources),
    }[kind](tmp_path, count)
    assert fill_here(tmp_path / "cache", images) == count
    assert_holds(tmp_path / "cache", images, sources)
    assert (tmp_path / "cache/pixels.u8").stat().st_size == count * ROW


def test_rows_keep_the_identity_of_the_source_and_are_copies(tmp_path: Path) -> None:
    images = InMemory(pictures(5))
    fill_here(tmp_path, images)
    cache = PixelCache(tmp_path, images, SIDE)
    assert [cache.identity(row) for row in range(5)] == [images.identity(row) for row in range(5)]
    assert cache.side == SIDE
    before = cache[2].copy()
    cache[2][:] = 0
    assert np.array_equal(cache[2], before)


@pytest.mark.parametrize("kind", [InMemory, Streamed])
def test_filling_twice_reads_and_writes_nothing(kind: type[InMemory], tmp_path: Path) -> None:
    images = kind(pictures(20))
    fill_here(tmp_path, images)
    before, seen = contents(tmp_path), []
    reading = Hooked(images.pixels, lambda row: pytest.fail(f"row {row} was read again"))
    again = reading if kind is InMemory else images
    assert fill(tmp_path, again, SIDE, seen.append) == 0
    assert contents(tmp_path) == before
    assert seen == [20]
    assert getattr(images, "streams", 1) == 1


def test_progress_adds_up_and_counts_what_was_there(tmp_path: Path) -> None:
    sources, seen = pictures(2 * CHUNK + 3), []
    fill_here(tmp_path, InMemory(sources[:4]))
    fill(tmp_path, InMemory(sources), SIDE, seen.append)
    assert seen == [4, CHUNK, CHUNK - 1]


@pytest.mark.parametrize("rows", [[7, 3, 19, 0], [5, 5, 5]])
def test_subsets_and_permutations_use_the_same_cache(rows: list[int], tmp_path: Path) -> None:
    sources = pictures(20)
    fill_here(tmp_path, InMemory(sources))
    before = contents(tmp_path)
    part = InMemory([sources[row] for row in rows])
    assert fill_here(tmp_path, part) == 0
    assert_holds(tmp_path, part, part.pixels)
    assert contents(tmp_path) == before


def test_splits_share_a_cache(tmp_path: Path) -> None:
    parts = [pictures(9, seed) for seed in (1, 2, 3)]
    assert [fill_here(tmp_path, InMemory(part)) for part in parts] == [9, 9, 9]
    for part in parts:
        assert_holds(tmp_path, InMemory(part), part)


def grow(file: Path) -> None:
    """Another size at the same time of modification."""
    when = file.stat().st_mtime_ns
    Image.new("RGB", (50, 20), "red").save(file)
    os.utime(file, ns=(0, when))


def touch(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [grow, touch])
def test_changed_file_is_refused_and_only_it_is_rewritten(change: Callable[[Path], None], tmp_path: Path) -> None:
    images = in_files(tmp_path, 6)
    fill_here(tmp_path / "cache", images)
    change(tmp_path / "4.png")
    with pytest.raises(ValueError, match=ABSENT.format(1, 6)):
        PixelCache(tmp_path / "cache", images, SIDE)
    assert fill_here(tmp_path / "cache", images) == 1
    assert_holds(tmp_path / "cache", images, [images[row] for row in range(6)])


def test_an_empty_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=ABSENT.format(3, 3)):
        PixelCache(tmp_path / "none", InMemory(pictures(3)), SIDE)


def test_features_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "ims.npy", np.ones((3, 2, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="features are not cached"):
        fill_here(tmp_path / "cache", FeatureRows(tmp_path / "ims.npy", np.arange(3)))
    assert kept(tmp_path / "cache") == 0


@pytest.mark.parametrize("broken", [0, CHUNK - 1, CHUNK + 7])
def test_fill_continues_after_an_unreadable_image(broken: int, tmp_path: Path) -> None:
    sources = pictures(3 * CHUNK)
    with pytest.raises(ValueError, match="cannot read the image"):
        fill_here(tmp_path, Hooked(sources, breaking_at(broken)))
    whole = broken // CHUNK * CHUNK
    assert kept(tmp_path) == whole
    images = InMemory(sources)
    with pytest.raises(ValueError, match=ABSENT.format(len(sources) - whole, len(sources))):
        PixelCache(tmp_path, images, SIDE)
    if whole:
        assert_holds(tmp_path, InMemory(sources[:whole]), sources[:whole])
    assert fill_here(tmp_path, images) == len(sources) - whole
    assert_holds(tmp_path, images, sources)
    assert (tmp_path / "pixels.u8").stat().st_size == len(sources) * ROW


@pytest.mark.parametrize("tail", [1, ROW + 17])
def test_data_after_the_last_chunk_is_truncated(tail: int, tmp_path: Path) -> None:
    sources = pictures(10)
    fill_here(tmp_path, InMemory(sources[:7]))
    with (tmp_path / "pixels.u8").open("ab") as file:
        file.write(b"\x55" * tail)
    assert_holds(tmp_path, InMemory(sources[:7]), sources[:7])
    assert fill_here(tmp_path, InMemory(sources)) == 3
    assert_holds(tmp_path, InMemory(sources), sources)
    assert (tmp_path / "pixels.u8").stat().st_size == 10 * ROW


@pytest.mark.parametrize("left", [None, 0, 3 * ROW + 5])
def test_truncated_pixel_file_is_refused_and_refilled(left: int | None, tmp_path: Path) -> None:
    images = InMemory(pictures(10))
    fill_here(tmp_path, images)
    if left is None:
        (tmp_path / "pixels.u8").unlink()
    else:
        os.truncate(tmp_path / "pixels.u8", left)
    lost = 10 - (left or 0) // ROW
    with pytest.raises(ValueError, match=ABSENT.format(lost, 10)):
        PixelCache(tmp_path, images, SIDE)
    assert fill_here(tmp_path, images) == lost
    assert_holds(tmp_path, images, images.pixels)


def forked(target: Callable[..., object], *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_fill_continues_after_a_killed_process(tmp_path: Path) -> None:
    sources = pictures(4 * CHUNK)
    stuck = Hooked(sources, lambda row: time.sleep(600) if row == 2 * CHUNK + 9 else None)
    process = forked(fill, tmp_path, stuck, SIDE, lambda done: None, 1)
    # Some pixels of a third chunk may be on their way to the disk.
    until(lambda: kept(tmp_path) == 2 * CHUNK)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(ValueError, match=ABSENT.format(2 * CHUNK, 4 * CHUNK)):
        PixelCache(tmp_path, InMemory(sources), SIDE)
    assert fill_here(tmp_path, InMemory(sources)) == 2 * CHUNK
    assert_holds(tmp_path, InMemory(sources), sources)


def test_repeatedly_killed_fill_completes_the_cache(tmp_path: Path) -> None:
    sources, generator = pictures(4 * CHUNK), np.random.default_rng(0)
    slow, killed = Hooked(sources, lambda row: time.sleep(0.003)), 0
    while (before := kept(tmp_path)) < len(sources):
        process = forked(fill, tmp_path, slow, SIDE, lambda done: None, 1)
        until(lambda: kept(tmp_path) > before)
        time.sleep(generator.uniform(0, 0.06))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert kept(tmp_path) % CHUNK == 0
    assert killed
    assert fill_here(tmp_path, InMemory(sources)) == 0
    assert_holds(tmp_path, InMemory(sources), sources)


def fill_within(limit: int, folder: Path, images: Images, said: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        fill_here(folder, images)
    except OSError as error:
        said.send(str(error))


@pytest.mark.parametrize("room", [CHUNK // 2 * ROW, 2 * CHUNK * ROW + ROW // 2, 2 * CHUNK * ROW])
def test_full_disk_is_reported_and_leaves_complete_chunks(room: int, tmp_path: Path) -> None:
    sources = pictures(3 * CHUNK)
    heard, said = multiprocessing.Pipe(duplex=False)
    process = forked(fill_within, room, tmp_path, InMemory(sources), said)
    process.join()
    message = heard.recv() if heard.poll() else ""
    assert f"{tmp_path} is not complete: [Errno 27] File too large" in message
    whole = room // (CHUNK * ROW) * CHUNK
    assert kept(tmp_path) == whole
    if whole:
        assert_holds(tmp_path, InMemory(sources[:whole]), sources[:whole])
    with pytest.raises(ValueError, match=ABSENT.format(3 * CHUNK - whole, 3 * CHUNK)):
        PixelCache(tmp_path, InMemory(sources), SIDE)
    assert fill_here(tmp_path, InMemory(sources)) == 3 * CHUNK - whole
    assert_holds(tmp_path, InMemory(sources), sources)


def test_insufficient_disk_space_is_detected_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = InMemory(pictures(10))
    for free, enough in ((10 * ROW - 1, False), (10 * ROW, True)):
        usage = type(shutil.disk_usage(tmp_path))(10**12, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if enough:
            assert fill_here(tmp_path, images) == 10
        else:
            with pytest.raises(OSError, match=r"needs .* GB and the disk has .* GB free"):
                fill_here(tmp_path, images)
            assert kept(tmp_path) == 0
            assert not (tmp_path / "pixels.u8").exists()


def test_two_processes_at_a_time_write_every_image_once(tmp_path: Path) -> None:
    sources = pictures(4 * CHUNK)
    ways = [InMemory(sources), InMemory(sources[::-1])]
    slowly = [Hooked(way.pixels, lambda row: time.sleep(0.003)) for way in ways]
    processes = [forked(fill_here, tmp_path, images) for images in slowly]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "pixels.u8").stat().st_size == len(sources) * ROW
    for way in ways:
        assert_holds(tmp_path, way, way.pixels)


def test_fill_reads_nothing_after_waiting_for_another_process(tmp_path: Path) -> None:
    sources = pictures(CHUNK)
    started = threading.Event()

    def slowly(row: int) -> None:
        started.set()
        time.sleep(0.01)

    writing = threading.Thread(target=fill_here, args=(tmp_path, Hooked(sources, slowly)))
    writing.start()
    assert started.wait(20)
    late = Streamed(sources)
    assert fill_here(tmp_path, late) == 0
    writing.join()
    assert late.streams == 0
    assert_holds(tmp_path, late, sources)


def test_reader_is_consistent_during_writing(tmp_path: Path) -> None:
    sources = pictures(4 * CHUNK)
    first = InMemory(sources[:CHUNK])
    fill_here(tmp_path, first)
    writing = threading.Thread(target=fill_here, args=(tmp_path, Hooked(sources, lambda row: time.sleep(0.002))))
    writing.start()
    rounds = 0
    while writing.is_alive():
        assert_holds(tmp_path, first, first.pixels)
        rounds += 1
    writing.join()
    assert rounds > 1


def test_a_pickled_cache_holds_no_pixels(tmp_path: Path) -> None:
    images = InMemory(pictures(100))
    fill_here(tmp_path, images)
    pickled = pickle.dumps(PixelCache(tmp_path, images, SIDE))
    assert len(pickled) < 100 * ROW / 4
    again = pickle.loads(pickled)  # noqa: S301
    assert np.array_equal(again[37], PixelCache(tmp_path, images, SIDE)[37])


# --- Through the data module.

SCENES = SceneSource(num_train=20, num_val=4, num_test=4, size=32)


def batches(cache: Path, **options: Any) -> list[RetrievalBatch]:
    data = RetrievalDataModule(SCENES, SceneTokenizer(), batch_size=20, cache=str(cache), **options)
    data.prepare_data()
    data.setup("fit")
    return list(data.train_dataloader())


@pytest.mark.parametrize(("workers", "imbalance"), [(0, Imbalance("gaussian_noise", 0.5)), (2, Imbalance())])
def test_batches_are_those_without_a_cache_of_the_same_size(workers: int, imbalance: Imbalance, tmp_path: Path) -> None:
    same: dict[str, Any] = {"image_size": 16, "imbalance": imbalance}
    plain = batches(tmp_path, **same)
    cached = batches(tmp_path, **same, cached_size=16, workers=workers)
    assert len(plain) == len(cached) == 5
    for a, b in zip(plain, cached, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.pair_index, b.pair_index)
    assert kept(cache_folder(tmp_path, SCENES.name, 16)) == 28


def test_crops_are_taken_from_a_larger_cache(tmp_path: Path) -> None:
    same: dict[str, Any] = {"image_size": 16, "augmentation": "paper"}
    larger, smaller = batches(tmp_path, **same, cached_size=32), batches(tmp_path, **same, cached_size=16)
    plain = batches(tmp_path, **same)
    assert larger[0].images.shape == (20, 3, 16, 16)
    for a, b in zip(plain, larger, strict=True):  # the scenes' own size is the cache's
        assert torch.equal(a.images, b.images)
    assert not torch.equal(larger[0].images, smaller[0].images)


def test_split_is_cached_on_first_use(tmp_path: Path) -> None:
    data = RetrievalDataModule(
        SCENES, SceneTokenizer(), batch_size=20, cache=str(tmp_path), image_size=16, cached_size=16
    )
    data.setup("test")
    assert kept(cache_folder(tmp_path, SCENES.name, 16)) == 4
    data.prepare_data()
    assert kept(cache_folder(tmp_path, SCENES.name, 16)) == 28
