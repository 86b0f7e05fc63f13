"""Cache of decoded images on disk: one memory-mapped file, shared by worker processes and safe to interrupt."""

from __future__ import annotations

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
from sdr_lightning.paths import locked, write_atomically

_CHUNK = 256
_PIXELS, _IDENTITIES = "pixels.u8", "identities.npy"


class PixelCache(Images):
    """Images of one size, from a cache written by :func:`fill`.

    An image is found by the identity of its source (a file's name, size and modification time). A changed image therefore
    counts as missing until the cache is filled again.

    Args:
        folder: the cache's folder.
        images: the source images; only their identities are read.
        side: S, side of the cached images in pixels.

    Attributes:
        side: S.

    Raises:
        ValueError: some images are not in the cache.
    """

    def __init__(self, folder: Path, images: Images, side: int) -> None:
        self._identities = identities(images)
        stored = _stored_identities(folder, side)
        order = np.argsort(stored, kind="stable")
        place = np.searchsorted(stored, self._identities, sorter=order)
        slots = order[np.minimum(place, max(len(order) - 1, 0))] if len(order) else np.empty(0, dtype=np.int64)
        absent = len(images) if not len(order) else int((stored[slots] != self._identities).sum())
        if absent:
            raise ValueError(
                f"{absent} of {len(images)} images are not in the cache {folder}: run sdr data prepare on this data"
            )
        self.side, self._slots = side, slots
        self._file, self._shape = folder / _PIXELS, (len(stored), side, side, 3)
        self._pixels = self._mapped()

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, row: int) -> Pixels:
        return np.array(self._pixels[self._slots[row]])

    def identity(self, row: int) -> int:
        """Return the identity of the source image."""
        return int(self._identities[row])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}  # pickling a memory map would copy its content

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pixels = self._mapped()

    def _mapped(self) -> Pixels:
        return np.memmap(self._file, dtype=np.uint8, mode="r", shape=self._shape)


def cache_folder(root: Path, collection: str, side: int) -> Path:
    """Return the folder of a collection's images at one size, for all splits."""
    return root / "images" / f"{collection}-{side}px"


def identities(images: Images) -> NDArray[np.int64]:
    """Return the (N,) int64 identities of all images."""
    return np.fromiter((images.identity(row) for row in range(len(images))), dtype=np.int64, count=len(images))


def fill(folder: Path, images: Images, side: int, progress: Callable[[int], object], threads: int | None = None) -> int:
    """Write all images that are not yet in a cache.

    Images are appended in chunks; the identities of a chunk are written after its pixels are on disk. After an interruption
    or a full disk, the cache is consistent, and the next call continues. A lock file lets one process write at a time.

    Args:
        folder: the cache's folder; created if missing.
        images: the source images.
        side: S, side of the cached images in pixels; each is (S, S, 3) uint8.
        progress: callback with the number of images finished; first called with the number of images already cached.
        threads: number of decoding threads; the number of cores by default.

    Returns:
        Number of images written.

    Raises:
        ValueError: an image cannot be read, or the images are features.
        OSError: the disk is full; if possible, raised before anything is written.
    """
    wanted = identities(images)
    if np.isin(wanted, _stored_identities(folder, side)).all():  # nothing to write: the folder may be read-only
        progress(len(wanted))
        return 0
    with locked(folder / "lock"):
        stored, size = _stored_identities(folder, side), side * side * 3
        todo = ~np.isin(wanted, stored)
        progress(int((~todo).sum()))
        if not todo.any():  # another process has written the images in the meantime
            return 0
        free, needed = shutil.disk_usage(folder).free, int(todo.sum()) * size
        if needed > free:
            raise OSError(f"{folder} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free")
        try:
            _append(folder, stored, size, wanted, _resized(images, todo, side, threads), progress)
        except OSError as error:
            raise OSError(f"{folder} is not complete: {error}; the next run continues from here") from error
    return int(todo.sum())


def _append(
    folder: Path,
    stored: NDArray[np.int64],
    size: int,
    wanted: NDArray[np.int64],
    resized: Iterator[tuple[int, Pixels]],
    progress: Callable[[int], object],
) -> None:
    rows: list[int] = []
    with (folder / _PIXELS).open("ab") as file:
        file.truncate(len(stored) * size)  # remove an incomplete chunk of an interrupted run

        def commit() -> None:
            nonlocal stored
            file.flush()
            os.fsync(file.fileno())
            stored = np.concatenate([stored, wanted[rows]])
            write_atomically(folder / _IDENTITIES, lambda part: np.save(part, stored))
            progress(len(rows))
            rows.clear()

        for row, pixels in resized:
            file.write(pixels.tobytes())
            rows.append(row)
            if len(rows) == _CHUNK:
                commit()
        if rows:
            commit()


def _stored_identities(folder: Path, side: int) -> NDArray[np.int64]:
    """Return the identities of the images in the pixel file, in order."""
    listed, pixels = folder / _IDENTITIES, folder / _PIXELS
    if not listed.is_file() or not pixels.is_file():
        return np.empty(0, dtype=np.int64)
    complete = pixels.stat().st_size // (side * side * 3)
    stored: NDArray[np.int64] = np.load(listed, allow_pickle=False)[:complete]
    return stored


def _resized(images: Images, todo: NDArray[np.bool_], side: int, threads: int | None) -> Iterator[tuple[int, Pixels]]:
    def resize(pixels: Pixels) -> Pixels:
        if pixels.dtype != np.uint8:
            raise ValueError("features are not cached: they are read from their own file")
        return to_input(pixels, side).permute(1, 2, 0).numpy()

    if images.one_after_another:
        yield from ((row, resize(image)) for row, image in images.stream() if todo[row])
        return
    rows = np.flatnonzero(todo).tolist()
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            yield from zip(chunk, pool.map(lambda row: resize(images[row]), chunk), strict=True)
