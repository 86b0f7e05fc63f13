"""Concatenation of splits, for published protocols that train on more than the training split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sdr_lightning.data.images import AnyImage, Images
from sdr_lightning.data.table import CaptionTable


def join_tables(tables: Sequence[CaptionTable]) -> CaptionTable:
    """Concatenate the images and captions of several splits, under the name of the first.

    Args:
        tables: splits of one collection.

    Raises:
        ValueError: an id occurs in two splits.
    """
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *(len(table.image_ids) for table in tables[:-1])])
    return CaptionTable(
        tables[0].name,
        tables[0].split,
        [name for table in tables for name in table.image_ids],
        [caption for table in tables for caption in table.captions],
        [name for table in tables for name in table.caption_ids],
        np.concatenate([table.caption_image + start for table, start in zip(tables, starts, strict=True)]),
    )


def join_images(parts: Sequence[Images]) -> Images:
    """Concatenate the images of several splits, in the order of :func:`join_tables`."""
    return parts[0] if len(parts) == 1 else _Joined(parts)


class _Joined(Images):
    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.one_after_another = any(part.one_after_another for part in parts)
        self.are_features = parts[0].are_features
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> AnyImage:
        part, row = self._place(row)
        return part[row]

    def identity(self, row: int) -> int:
        part, row = self._place(row)
        return part.identity(row)

    def stream(self) -> Iterator[tuple[int, AnyImage]]:
        start = 0
        for part in self.parts:
            for row, image in part.stream():
                yield start + row, image
            start += len(part)

    def _place(self, row: int) -> tuple[Images, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[number], row - (int(self._ends[number - 1]) if number else 0)
