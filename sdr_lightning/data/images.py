"""Images by row: files on disk, decoded when they are asked for, and the way every image becomes upright RGB."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sdr_lightning.data.strings import Strings
from sdr_lightning.identity import stable_hash

AnyImage = NDArray[Any]  # pixels or features
Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises over a broken file, depending on its format."""


class Images(ABC):
    """The images of a split by row: each (H, W, 3) uint8 RGB, or (R, D) float32 features computed elsewhere.

    Attributes:
        one_after_another: rows cannot be asked for one by one, only streamed.
        are_features: whether they are features.
    """

    one_after_another = False
    are_features = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, row: int) -> AnyImage:
        """One image.

        Raises:
            ValueError: it cannot be read; the message names it.
        """

    @abstractmethod
    def identity(self, row: int) -> int:
        """A signed 64-bit hash that changes when the stored image does."""

    def stream(self) -> Iterator[tuple[int, AnyImage]]:
        """All rows with their images, in whichever order is cheap."""
        for row in range(len(self)):
            yield row, self[row]


class InMemory(Images):
    """Images that are already decoded.

    Args:
        pixels: N images.
    """

    def __init__(self, pixels: Sequence[Pixels]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Pixels:
        return self.pixels[row]

    def identity(self, row: int) -> int:
        """Hash of shape and pixels."""
        return stable_hash(self.pixels[row].shape, self.pixels[row].tobytes())


class ImageFiles(Images):
    """Image files by row, decoded to RGB when they are asked for.

    Args:
        root: the folder.
        names: N paths below it.
    """

    def __init__(self, root: Path, names: Strings) -> None:
        self.root, self.names = root, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Pixels:
        return decode(self.path(row))

    def path(self, row: int) -> Path:
        """Where an image is."""
        return self.root / self.names[row]

    def identity(self, row: int) -> int:
        """Hash of the file's name below the folder, its size and its time of modification."""
        status = os.stat(self.path(row))  # noqa: PTH116 (tens of thousands)
        return stable_hash(self.names[row], status.st_size, status.st_mtime_ns)


def decode(path: Path) -> Pixels:
    """Read one image as RGB, upright.

    Raises:
        ValueError: the file is not an image or is cut short; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UNREADABLE as error:
        raise ValueError(f"cannot read the image {path}: {error}; replace the file or remove its entry") from error


def to_rgb(image: Image.Image) -> Pixels:
    """An image as upright RGB, (H, W, 3) uint8; 16-bit greys keep their upper eight bits."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # PIL would cut 16-bit greys off at 255
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.mode == "P" and "transparency" in upright.info:  # PIL warns of the short way
        upright = upright.convert("RGBA")
    return np.array(upright.convert("RGB"))
