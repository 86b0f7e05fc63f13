"""Pictures from and for a browser: uploads within limits, and thumbnails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from sdr_lightning.data.images import Pixels, reason, to_rgb
from sdr_lightning.retrieval.small_pictures import write_small

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # of uploads: those that a browser shows
_QUALITY = 85


def uploaded(content: bytes, max_pixels: int) -> Pixels:
    """Decode an uploaded picture.

    Args:
        content: JPEG, PNG, WebP, GIF or BMP.
        max_pixels: limit of width times height, checked before anything is decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: no such picture, a broken one, or one that is too large.
    """
    return _decoded(io.BytesIO(content), max_pixels, _FORMATS)


def thumbnail(path: Path, side: int, max_pixels: int) -> bytes:
    """Return a picture as a JPEG of at most ``side`` pixels in width and height.

    Raises:
        ValueError: the file is missing, no picture, broken, or too large.
    """
    output = io.BytesIO()
    write_small(Image.fromarray(_decoded(path, max_pixels, None, draft=side)), output, side, _QUALITY)
    return output.getvalue()


def _decoded(
    source: Path | IO[bytes], max_pixels: int, formats: tuple[str, ...] | None, draft: int | None = None
) -> Pixels:
    try:
        with Image.open(source, formats=formats) as image:
            if draft is not None:  # a JPEG is decoded at a fraction of its size
                image.draft("RGB", (draft, draft))
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"it has {width} x {height} pixels, more than {max_pixels / 1e6:g} million")
            return to_rgb(image)
    except Exception as error:  # decoders raise different exceptions for broken files
        why = "it is none, or of another format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise ValueError(f"the picture cannot be read: {why}") from error
