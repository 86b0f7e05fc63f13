"""A part of a training split: fewer images with all their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.images import AnyImage, Images
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.identity import stable_hashes


def chosen_rows(image_ids: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Choose images by a hash of seed and id: a smaller subset of the same seed is part of a larger one.

    Args:
        image_ids: N ids.
        count: number of images to choose, from 1 to N.
        seed: seed of the choice.

    Returns:
        (count,) rows in ascending order.

    Raises:
        ValueError: the count is out of range.
    """
    if not 1 <= count <= len(image_ids):
        raise ValueError(
            f"train_images must be from 1 to the {len(image_ids)} images of the training split, got {count}"
        )
    return np.sort(np.argsort(stable_hashes(("subset", seed), image_ids), kind="stable")[:count])


def subset_table(table: CaptionTable, rows: NDArray[np.int64]) -> CaptionTable:
    """Keep some images of a split with all their captions, in the same order.

    Args:
        table: the split.
        rows: (n,) rows of the images in ascending order.
    """
    kept = np.flatnonzero(np.isin(table.caption_image, rows))
    return CaptionTable(
        table.name,
        table.split,
        [table.image_ids[row] for row in rows.tolist()],
        [table.captions[row] for row in kept.tolist()],
        [table.caption_ids[row] for row in kept.tolist()],
        np.searchsorted(rows, table.caption_image[kept]),
    )


class SubsetImages(Images):
    """Some images of a split.

    Args:
        images: the images of the split.
        rows: (n,) rows of the images in ascending order.
    """

    def __init__(self, images: Images, rows: NDArray[np.int64]) -> None:
        self.images, self.rows = images, rows
        self.one_after_another, self.are_features = images.one_after_another, images.are_features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> AnyImage:
        return self.images[int(self.rows[row])]

    def identity(self, row: int) -> int:
        """Return the identity of the image, the same as in the whole split."""
        return self.images.identity(int(self.rows[row]))

    def stream(self) -> Iterator[tuple[int, AnyImage]]:
        """Yield the images of the subset in the order of the whole stream."""
        place = {int(row): number for number, row in enumerate(self.rows)}
        for row, image in self.images.stream():
            if row in place:
                yield place[row], image
