"""Images by row, decoded on access, and their conversion to upright RGB."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sdr_lightning.identity import stable_hash
from sdr_lightning.strings import Strings

AnyImage = NDArray[Any]  # pixels or features
Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


DECODER_VERSION = 2
"""Part of every image's identity: increment it when decoding changes, so that caches are refilled."""

_WHITE = (255, 255, 255, 255)
_TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Images(ABC):
    """The images of a split by row: (H, W, 3) uint8 RGB pixels, or (R, D) float32 precomputed features.

    Attributes:
        one_after_another: whether rows can only be streamed, without random access.
        are_features: whether the images are precomputed features.
    """

    one_after_another = False
    are_features = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, row: int) -> AnyImage:
        """Return one image.

        Raises:
            ValueError: the image cannot be read; with its name.
        """

    @abstractmethod
    def identity(self, row: int) -> int:
        """Return a signed 64-bit hash that changes when the stored image changes."""

    def stream(self) -> Iterator[tuple[int, AnyImage]]:
        """Yield all rows with their images, in the order that is cheapest to read."""
        for row in range(len(self)):
            yield row, self[row]


class InMemory(Images):
    """Decoded images in memory.

    Args:
        pixels: N images, each (H, W, 3) uint8.
    """

    def __init__(self, pixels: Sequence[Pixels]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> Pixels:
        return self.pixels[row]

    def identity(self, row: int) -> int:
        """Return a hash of shape and pixels."""
        return stable_hash(self.pixels[row].shape, self.pixels[row].tobytes())


class ImageFiles(Images):
    """Image files, decoded to RGB on access.

    Args:
        root: the folder.
        names: N paths relative to it.
    """

    def __init__(self, root: Path, names: Strings) -> None:
        self.root, self.names = root, names
        self._folder = str(root.resolve())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Pixels:
        return decode(self.path(row))

    def path(self, row: int) -> Path:
        """Return the path of an image."""
        return self.root / self.names[row]

    def identity(self, row: int) -> int:
        """Return a hash of the folder, and of the file's name, size and modification time."""
        status = os.stat(self.path(row))  # noqa: PTH116 (called for tens of thousands of files)
        return stable_hash(DECODER_VERSION, self._folder, self.names[row], status.st_size, status.st_mtime_ns)


def decode(path: Path) -> Pixels:
    """Decode an image file to upright RGB, see :func:`to_rgb`.

    Raises:
        ValueError: the file is not an image, is truncated, or has values of unknown range; with its name.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # decoders raise different exceptions for broken files
        raise ValueError(
            f"cannot read the image {path}: {reason(error)}; replace the file, or name its id in the source's leave_out "
            "(sdr data check --unusable FILE lists all such ids)"
        ) from error


def reason(error: Exception) -> str:
    """Return the message of an error in one line, with the type of an unexpected error."""
    message = " ".join(str(error).split())
    return message if isinstance(error, OSError | ValueError) and message else f"{type(error).__name__}: {message}"


def to_rgb(image: Image.Image) -> Pixels:
    """Convert an image to upright RGB.

    EXIF orientation is applied, transparent pixels are blended with white, 16-bit grey values keep their upper eight bits,
    and floats in [0, 1] are scaled to [0, 255]. Only the first frame is used.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the image holds 32-bit integers, whose range is unknown, or floats outside [0, 1].
    """
    image.load()  # before reading the orientation: some decoders apply it themselves, and a PNG may store it at its end
    transpose = _TRANSPOSES.get(orientation(image))
    upright = image if transpose is None else image.transpose(transpose)
    upright = _eight_bits(upright, image.format)
    if upright.has_transparency_data or upright.mode in ("La", "RGBa"):
        colours = _with_alpha(upright)
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, _WHITE), colours)
    return np.array(upright.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or malformed."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a malformed block can raise any exception; the pixels are still readable
        return 1
    return found if found in _TRANSPOSES else 1


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):  # 16-bit range
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        low, high = image.getextrema()
        raise ValueError(f"it has 32-bit integers ({low} to {high}) of unknown range: convert it to 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.size and values.min() >= 0 and values.max() <= 1):  # NaN fails
            raise ValueError(
                f"it has floats from {values.min():g} to {values.max():g}, expected 0 to 1: convert it to 8 or 16 bits"
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return image


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied alpha: no direct conversion to RGBA
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")
