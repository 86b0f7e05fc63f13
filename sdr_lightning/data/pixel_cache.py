"""Decoded images on disk, memory-mapped: one file that worker processes share, filled once, safe to interrupt."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.images import Images, Pixels
from sdr_lightning.data.transforms import to_input
from sdr_lightning.paths import write_atomically

_CHUNK = 256
_PIXELS, _IDENTITIES = "pixels.u8", "identities.npy"


class PixelCache(Images):
    """Images of one size, from a file that :func:`fill` wrote.

    Every image is found by the identity of its source (a file's name, size and time of modification), so one that has
    changed since, or was never written, is not used: the cache is refused until it is filled again.

    Args:
        folder: the cache's folder.
        images: the source; its identities are compared, its pixels are not read.
        side: S, side of the kept images.

    Attributes:
        side: S.

    Raises:
        ValueError: images that are not in the cache.
    """

    def __init__(self, folder: Path, images: Images, side: int) -> None:
        self._identities = identities(images)
        kept = _kept(folder, side)
        order = np.argsort(kept, kind="stable")
        place = np.searchsorted(kept, self._identities, sorter=order)
        slots = order[np.minimum(place, max(len(order) - 1, 0))] if len(order) else np.empty(0, dtype=np.int64)
        absent = len(images) if not len(order) else int((kept[slots] != self._identities).sum())
        if absent:
            raise ValueError(
                f"{absent} of {len(images)} images are not in the cache {folder}: run sdr data prepare on this data"
            )
        self.side, self._slots = side, slots
        self._file, self._shape = folder / _PIXELS, (len(kept), side, side, 3)
        self._pixels = self._mapped()

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, row: int) -> Pixels:
        return np.array(self._pixels[self._slots[row]])

    def identity(self, row: int) -> int:
        """Of the source."""
        return int(self._identities[row])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # a map is pickled as all that it maps

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pixels = self._mapped()

    def _mapped(self) -> Pixels:
        return np.memmap(self._file, dtype=np.uint8, mode="r", shape=self._shape)


def cache_folder(root: Path, collection: str, side: int) -> Path:
    """Where the images of a collection are kept at one size, all splits together."""
    return root / "images" / f"{collection}-{side}px"


def identities(images: Images) -> NDArray[np.int64]:
    """(N,) int64 identity of every image."""
    return np.fromiter((images.identity(row) for row in range(len(images))), dtype=np.int64, count=len(images))


def fill(folder: Path, images: Images, side: int, progress: Callable[[int], object], threads: int | None = None) -> int:
    """Write every image that is not in a cache yet.

    Images are appended in chunks, and a chunk's identities are kept only once its pixels are on disk: after an interruption
    or on a full disk what is there is whole, and the next call goes on behind it. One process fills at a time.

    Args:
        folder: the cache's folder; made when it is not there.
        images: the source.
        side: S, side of the kept images; (S, S, 3) uint8 each.
        progress: called with the number of images that were finished, at once for those that were there before.
        threads: that decode; as many as there are cores by default.

    Returns:
        Number of images written.

    Raises:
        ValueError: an image cannot be read, or the images are features.
        OSError: the disk is full, which is found out before anything is written if it can be.
    """
    wanted = identities(images)
    if np.isin(wanted, _kept(folder, side)).all():  # nothing is written, so the folder may be read-only
        progress(len(wanted))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept, size = _kept(folder, side), side * side * 3
        todo = ~np.isin(wanted, kept)
        progress(int((~todo).sum()))
        if not todo.any():  # another process was faster
            return 0
        free, needed = shutil.disk_usage(folder).free, int(todo.sum()) * size
        if needed > free:
            raise OSError(f"{folder} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free")
        try:
            _append(folder, kept, size, wanted, _shrunk(images, todo, side, threads), progress)
        except OSError as error:
            raise OSError(f"{folder} is not complete: {error}; the next time it goes on where it stopped") from error
    return int(todo.sum())


def _append(
    folder: Path,
    kept: NDArray[np.int64],
    size: int,
    wanted: NDArray[np.int64],
    shrunk: Iterator[tuple[int, Pixels]],
    progress: Callable[[int], object],
) -> None:
    rows: list[int] = []
    with (folder / _PIXELS).open("ab") as file:
        file.truncate(len(kept) * size)  # what an interruption left behind its last whole chunk

        def keep() -> None:
            nonlocal kept
            file.flush()
            os.fsync(file.fileno())
            kept = np.concatenate([kept, wanted[rows]])
            write_atomically(folder / _IDENTITIES, lambda part: np.save(part, kept))
            progress(len(rows))
            rows.clear()

        for row, pixels in shrunk:
            file.write(pixels.tobytes())
            rows.append(row)
            if len(rows) == _CHUNK:
                keep()
        if rows:
            keep()


def _kept(folder: Path, side: int) -> NDArray[np.int64]:
    """Identities of the images in the file of pixels, in their order."""
    listed, pixels = folder / _IDENTITIES, folder / _PIXELS
    if not listed.is_file() or not pixels.is_file():
        return np.empty(0, dtype=np.int64)
    whole = pixels.stat().st_size // (side * side * 3)
    kept: NDArray[np.int64] = np.load(listed, allow_pickle=False)[:whole]
    return kept


def _shrunk(images: Images, todo: NDArray[np.bool_], side: int, threads: int | None) -> Iterator[tuple[int, Pixels]]:
    def shrink(pixels: Pixels) -> Pixels:
        if pixels.dtype != np.uint8:
            raise ValueError("features are not cached: they are read from their own file")
        return to_input(pixels, side).permute(1, 2, 0).numpy()

    if images.one_after_another:
        yield from ((row, shrink(image)) for row, image in images.stream() if todo[row])
        return
    rows = np.flatnonzero(todo).tolist()
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            yield from zip(chunk, pool.map(lambda row: shrink(images[row]), chunk), strict=True)
