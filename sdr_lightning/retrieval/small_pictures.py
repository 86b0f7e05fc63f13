"""Small copies of pictures, for the index and the page."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from PIL import Image

_TINY = 100  # pixels; the page shows single pixels of such pictures, so they are stored without visible loss


def write_small(image: Image.Image, file: Path | IO[bytes], side: int, quality: int) -> None:
    """Write an RGB picture as a JPEG of at most ``side`` pixels in width and height.

    Args:
        image: the picture; it is shrunk in place.
        file: where to write.
        side: greatest width and height.
        quality: quality of the JPEG; that of tiny pictures is the best.
    """
    image.thumbnail((side, side))
    tiny = max(image.size) < _TINY
    image.save(file, "JPEG", quality=100 if tiny else quality, subsampling=0 if tiny else -1)
