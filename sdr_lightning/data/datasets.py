"""Datasets over a split that return whole batches: pairs, items of one modality, or two views for teachers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdr_lightning.data.split import PreparedSplit, Rows
from sdr_lightning.data.transforms import Transform
from sdr_lightning.types import RetrievalBatch, UnimodalBatch


class Draw(NamedTuple):
    """Rows of a batch, and the epoch, which seeds the augmentation."""

    epoch: int
    rows: Rows


class BatchDataset(Dataset[RetrievalBatch | UnimodalBatch], ABC):
    """A dataset whose index is a :class:`Draw` and whose items are batches.

    Args:
        split: the split.

    Attributes:
        reads_texts: whether its batches hold captions.
    """

    reads_texts = True

    def __init__(self, split: PreparedSplit) -> None:
        self.split = split

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def __getitem__(self, draw: Draw) -> RetrievalBatch | UnimodalBatch:
        """Return the batch of a draw."""


class PairDataset(BatchDataset):
    """Image-caption pairs, one per caption.

    Args:
        split: the split.
        transform: random augmentation of the images, or None.
        seed: seed of the augmentation.
    """

    def __init__(self, split: PreparedSplit, transform: Transform | None, seed: int) -> None:
        super().__init__(split)
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.split.table.captions)

    def __getitem__(self, draw: Draw) -> RetrievalBatch:
        images = self.split.table.caption_image[draw.rows]
        return RetrievalBatch(
            self.split.images(images, self.transform, (self.seed, draw.epoch)),
            self.split.texts(draw.rows),
            torch.from_numpy(images),
            torch.from_numpy(draw.rows),
            self.split.teacher("image", images),
            self.split.teacher("text", draw.rows),
        )


class ImageDataset(BatchDataset):
    """Images without augmentation."""

    reads_texts = False

    def __len__(self) -> int:
        return len(self.split.table.image_ids)

    def __getitem__(self, draw: Draw) -> UnimodalBatch:
        rows = torch.from_numpy(draw.rows)
        return UnimodalBatch(self.split.images(draw.rows), rows, rows)


class CaptionDataset(BatchDataset):
    """Captions."""

    def __len__(self) -> int:
        return len(self.split.table.captions)

    def __getitem__(self, draw: Draw) -> UnimodalBatch:
        rows = torch.from_numpy(draw.rows)
        return UnimodalBatch(self.split.texts(draw.rows), rows, self.split.caption_image[rows])


class ImageViewDataset(BatchDataset):
    """Two augmented views of each image. A batch holds 2 B images: the first views, then the second views.

    Args:
        split: the split.
        transform: random augmentation; required, because the two views would be equal without it.
        seed: seed of the augmentation.

    Raises:
        ValueError: no augmentation.
    """

    reads_texts = False

    def __init__(self, split: PreparedSplit, transform: Transform | None, seed: int) -> None:
        super().__init__(split)
        if transform is None:
            raise ValueError("two views of an image need an augmentation: set data.init_args.augmentation")
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.split.table.image_ids)

    def __getitem__(self, draw: Draw) -> UnimodalBatch:
        views = [self.split.images(draw.rows, self.transform, (self.seed, draw.epoch, view)) for view in (0, 1)]
        rows = torch.from_numpy(np.tile(draw.rows, 2))
        return UnimodalBatch(torch.cat([view for view in views if isinstance(view, Tensor)]), rows, rows)


class SiblingCaptionDataset(BatchDataset):
    """Two different captions of each image. A batch holds 2 B captions: the first ones, then the second ones.

    Args:
        split: the split; images with a single caption are skipped.
        seed: seed of the choice of captions.

    Raises:
        ValueError: no image has two captions.
    """

    def __init__(self, split: PreparedSplit, seed: int) -> None:
        super().__init__(split)
        order = np.argsort(split.table.caption_image, kind="stable")
        starts = np.flatnonzero(np.diff(split.table.caption_image[order], prepend=-1))
        self.siblings = [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]
        if not self.siblings:
            raise ValueError(f"no image of {split.table.name} has two captions, which a text teacher learns from")
        self.seed = seed

    def __len__(self) -> int:
        return len(self.siblings)

    def __getitem__(self, draw: Draw) -> UnimodalBatch:
        rows = np.stack([self._draw_two(draw.epoch, int(image)) for image in draw.rows], axis=1).reshape(-1)
        index = torch.from_numpy(rows)
        return UnimodalBatch(self.split.texts(rows), index, self.split.caption_image[index])

    def _draw_two(self, epoch: int, image: int) -> Rows:
        generator = np.random.default_rng([self.seed, epoch, image])
        return generator.choice(self.siblings[image], size=2, replace=False)
