"""Images by row: files on disk, decoded on access, and the conversion of every image to upright RGB."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from sdr_lightning.data.strings import Strings
from sdr_lightning.identity import stable_hash

AnyImage = NDArray[Any]  # pixels or features
Pixels = NDArray[np.uint8]
Features = NDArray[np.float32]


DECODER_VERSION = 2
"""Part of every image's identity: raise it when the same file is decoded to other pixels, so that caches are filled again."""

_WHITE = (255, 255, 255, 255)
_TURNS = {  # of the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
        self._folder = str(root.resolve())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Pixels:
        return decode(self.path(row))

    def path(self, row: int) -> Path:
        """Where an image is."""
        return self.root / self.names[row]

    def identity(self, row: int) -> int:
        """Hash of the folder, the file's name below it, its size and its time of modification."""
        status = os.stat(self.path(row))  # noqa: PTH116 (tens of thousands)
        return stable_hash(DECODER_VERSION, self._folder, self.names[row], status.st_size, status.st_mtime_ns)


def decode(path: Path) -> Pixels:
    """Read one image as upright RGB.

    Raises:
        ValueError: the file is not an image, is cut short, or has values of unknown range; the message names it.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except Exception as error:  # what a decoder raises over a broken file depends on its format
        raise ValueError(
            f"cannot read the image {path}: {reason(error)}; replace the file, or name its id in the source's leave_out "
            "(sdr data check --unusable FILE lists all such ids)"
        ) from error


def reason(error: Exception) -> str:
    """What went wrong, in one line: the message of an expected error, with the type of any other."""
    message = " ".join(str(error).split())
    return message if isinstance(error, OSError | ValueError) and message else f"{type(error).__name__}: {message}"


def to_rgb(image: Image.Image) -> Pixels:
    """Convert an image to upright RGB.

    EXIF orientation is applied, transparent pixels are laid on white, 16-bit greys keep their upper eight bits, and floats
    in [0, 1] are scaled to [0, 255]. Of several frames the first is taken.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: 32-bit integers, whose range is unknown, or floats outside [0, 1].
    """
    image.load()  # before the orientation is asked for: some decoders apply it themselves, and a PNG may have it at its end
    turn = _TURNS.get(orientation(image))
    upright = image if turn is None else image.transpose(turn)
    upright = _eight_bits(upright, image.format)
    if upright.has_transparency_data or upright.mode in ("La", "RGBa"):
        colours = _with_alpha(upright)
        upright = Image.alpha_composite(Image.new("RGBA", colours.size, _WHITE), colours)
    return np.array(upright.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or the EXIF block is malformed."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a malformed block raises anything; the pixels can still be read
        return 1
    return found if found in _TURNS else 1


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):  # both scale to 16 bits
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
    if image.mode == "La":  # premultiplied; there is no direct way to RGBA
        image = image.convert("LA")
    return image if image.mode == "RGBA" else image.convert("RGBA")
