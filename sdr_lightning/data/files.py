"""Images on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdr_lightning.data.source import Pixels


class ImageFiles(Sequence[Pixels]):
    """Image files by row, decoded to RGB when they are asked for.

    Args:
        paths: N files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, row: int) -> Pixels: ...
    @overload
    def __getitem__(self, row: slice) -> ImageFiles: ...
    def __getitem__(self, row: int | slice) -> Pixels | ImageFiles:
        if isinstance(row, slice):
            return ImageFiles(self.paths[row])
        return decode(self.paths[row])


def decode(path: Path) -> Pixels:
    """Read one image as RGB, upright.

    Raises:
        ValueError: the file is not an image or is cut short; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"cannot read the image {path}: {error}; replace the file or remove its entry") from error


def to_rgb(image: Image.Image) -> Pixels:
    """An image as upright RGB, (H, W, 3) uint8; 16-bit greys keep their upper eight bits."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # PIL would cut 16-bit greys off at 255
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return np.array(upright.convert("RGB"))
