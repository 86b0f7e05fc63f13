"""A split as training and evaluation read it: under its imbalance, with tokens, teachers' features and caches in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.data.imbalance import Imbalance, Realised, imbalanced, noisy_images, noisy_pixels
from sdr_lightning.data.source import Pixels, Source
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import Tokenizer, take
from sdr_lightning.data.transforms import Transform, seeded, to_input
from sdr_lightning.features.bank import FeatureBank, Modality
from sdr_lightning.identity import stable_hash
from sdr_lightning.types import Tokens

Rows = NDArray[np.int64]


class PreparedSplit:
    """One split under one imbalance.

    Args:
        source: the collection.
        split: which split.
        tokenizer: of the text tower.
        image_size: S, side of the images handed out.
        imbalance: what is wrong with it.

    Attributes:
        table: the captions as they are paired and worded under the imbalance.
        realised: what the imbalance came to.
    """

    def __init__(
        self, source: Source, split: Split, tokenizer: Tokenizer, image_size: int, imbalance: Imbalance
    ) -> None:
        self.table: CaptionTable
        self.realised: Realised
        self.table, self.realised = imbalanced(source.table(split), imbalance)
        self.image_size = image_size
        self.caption_image = torch.from_numpy(self.table.caption_image)
        self._imbalance = imbalance
        self._noisy = noisy_images(self.table, imbalance)
        self._images: Sequence[Pixels] = source.images(split)
        self._tokenizer = tokenizer
        self._tokens = tokenizer(self.table.captions)
        self._cached: dict[Modality, Tensor] = {}
        self._teacher: dict[Modality, Tensor] = {}

    def ids(self, modality: Modality) -> Sequence[str]:
        """Ids of the images or of the captions, by row."""
        return self.table.image_ids if modality == "image" else self.table.caption_ids

    def content(self, modality: Modality) -> NDArray[np.int64]:
        """(n,) int64 hash of each item's content under the imbalance, by row."""
        if modality == "text":
            return self.table.text_content
        content = self.table.image_content.copy()
        for row in np.flatnonzero(self._noisy):
            content[row] = stable_hash("noisy", content[row], self._imbalance)
        return content

    def input_description(self, modality: Modality) -> str:
        """What the items are turned into before a tower sees them."""
        return f"{self.image_size} px" if modality == "image" else f"{self._tokenizer.max_tokens} tokens"

    def cache(self, bank: FeatureBank) -> None:
        """Hand out a frozen tower's features from now on, instead of pixels or tokens.

        Raises:
            ValueError: a bank of other items, see :meth:`FeatureBank.rows`.
        """
        self._cached[bank.modality] = bank.rows(self.ids(bank.modality), self.content(bank.modality))

    def attach_teacher(self, bank: FeatureBank) -> None:
        """Hand out a teacher's features with every pair.

        Raises:
            ValueError: a bank of other items, see :meth:`FeatureBank.rows`.
        """
        self._teacher[bank.modality] = bank.rows(self.ids(bank.modality), self.content(bank.modality))

    def pixels(self, row: int) -> Pixels:
        """One image as the collection has it, in its own size and without noise, (H, W, 3) uint8."""
        return self._images[row]

    def images(self, rows: Rows, transform: Transform | None = None, key: tuple[int, ...] = ()) -> Tensor:
        """Images of some rows.

        Args:
            rows: (B,) image rows.
            transform: a random augmentation, applied after noise; None for none.
            key: what the augmentation is a function of, together with the row.

        Returns:
            (B, 3, S, S) uint8 pixels, or (B, D) cached features.

        Raises:
            ValueError: an augmentation of images whose features are cached.
        """
        if "image" in self._cached:
            if transform is not None:
                raise ValueError(
                    "a frozen image tower's features are computed once, so images cannot be augmented: set "
                    "data.init_args.augmentation to none, or the tower's frozen to false"
                )
            return self._cached["image"][torch.from_numpy(rows)]
        return torch.stack([self._image(int(row), transform, key) for row in rows])

    def texts(self, rows: Rows) -> Tokens | Tensor:
        """Tokens of some captions, or (B, D) cached features."""
        if "text" in self._cached:
            return self._cached["text"][torch.from_numpy(rows)]
        return take(self._tokens, torch.from_numpy(rows))

    def teacher(self, modality: Modality, rows: Rows) -> Tensor | None:
        """(B, D) teacher features of some rows, or None where no bank is attached."""
        features = self._teacher.get(modality)
        return None if features is None else features[torch.from_numpy(rows)]

    def _image(self, row: int, transform: Transform | None, key: tuple[int, ...]) -> Tensor:
        if self._noisy[row]:
            small = to_input(self._images[row], self.image_size).permute(1, 2, 0).numpy()
            image = torch.from_numpy(noisy_pixels(small, self.table.image_ids[row], self._imbalance)).permute(2, 0, 1)
        else:
            pixels = self._images[row]
            image = torch.from_numpy(pixels).permute(2, 0, 1) if transform else to_input(pixels, self.image_size)
        return image if transform is None else seeded(transform, image, *key, row)
