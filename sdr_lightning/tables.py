"""Conventions of tables of images and captions. Imports nothing heavy."""

from typing import Literal

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".jp2"}
"""Endings of image files, in lower case."""

SPLIT_OF: dict[str, Literal["train", "val", "test"]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits in the column of a table, in lower case, and the split that each means."""
