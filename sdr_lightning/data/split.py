"""A split as used by training and evaluation: corrupted, tokenised, with teacher features and caches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.data.degree import measure_degree
from sdr_lightning.data.images import AnyImage, Images
from sdr_lightning.data.imbalance import Imbalance, Realised, imbalanced
from sdr_lightning.data.pixel_cache import PixelCache, identities
from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.data.tokenizer import Tokenizer, take, tokenised, trimmed
from sdr_lightning.data.transforms import Transform, seeded, to_input
from sdr_lightning.data.wording import Wording
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.types import CachedFeatures, ImageInputs, Modality, TextInputs, Tokens, TrainingPairs

Rows = NDArray[np.int64]


class _Features(NamedTuple):
    """The features of a bank, not copied, and the position of each row of the split in them."""

    features: Tensor
    positions: Tensor

    def at(self, rows: Rows) -> Tensor:
        return self.features[self.positions[torch.from_numpy(rows)]]

    def all(self) -> Tensor:
        """All features by row; not copied if the bank has this order."""
        in_order = len(self.positions) == len(self.features) and bool((self.positions.diff() == 1).all())
        return self.features if in_order else self.features[self.positions]


class PreparedSplit:
    """One split with its corruptions applied.

    Args:
        clean: captions of the split, without corruption.
        images: images of the split.
        tokenizer: tokenizer of the text tower.
        image_size: S, side of the returned images in pixels; None for a collection of features.
        imbalances: corruptions, applied in order; those of other splits are ignored.
        cache: folder with cached tokens.
        wording: normalisation of captions before tokenisation.

    Attributes:
        table: the captions and their pairing after corruption.
        realised: what the corruptions changed.
        teacher_sources: fingerprint of the tower, or placebo, of each attached teacher.

    Raises:
        ValueError: a corruption does not fit the split, or the tokenizer's mask token is not ``[MASK]``.
    """

    def __init__(
        self,
        clean: CaptionTable,
        images: Images,
        tokenizer: Tokenizer,
        image_size: int | None,
        imbalances: Sequence[Imbalance],
        cache: Path,
        wording: Wording = Wording(),  # noqa: B008 (frozen)
    ) -> None:
        self._clean, self._state = clean, imbalanced(clean, imbalances)
        masks = any(part.imbalance.kind == "mask_words" for part in self._state.realised.parts)
        if masks and tokenizer.tokenizer.mask_token != "[MASK]":
            raise ValueError(
                f"mask_words writes [MASK], and this tokenizer's mask is {tokenizer.tokenizer.mask_token}: use drop_words"
            )
        self.table: CaptionTable = self._state.table
        self.realised: Realised = self._state.realised
        self.image_size = image_size
        self.caption_image = torch.from_numpy(self.table.caption_image)
        self._images = images
        self._tokenises_batches = isinstance(images, ShardImages)  # all tokens of millions of captions fill the memory
        self._tokenizer = tokenizer
        self._wording = wording
        self._cache = cache
        self._cached: dict[Modality, _Features] = {}
        self._teacher: dict[Modality, _Features] = {}
        self.teacher_sources: dict[Modality, str] = {}
        self._placebo = False

    def ids(self, modality: Modality) -> Sequence[str]:
        """Return the ids of the images or captions, by row."""
        return self.table.image_ids if modality == "image" else self.table.caption_ids

    def content(self, modality: Modality) -> NDArray[np.int64]:
        """Return (n,) int64 hashes of the items' content after corruption, by row; for images including the file's state."""
        if modality == "text":
            return self.table.text_content
        return self._state.image_content ^ self._identities

    @cached_property
    def tokens(self) -> Tokens:
        """(C, L) tokens of the captions. Computed at the first use: cached features of the text tower do not need them."""
        return tokenised(self._tokenizer, self._wording(self.table.captions), self._cache)

    def share_tokens(self) -> None:
        """Compute the tokens if batches need them; call it before worker processes start, so that they share them."""
        if "text" in self._cached:
            return
        if self._tokenises_batches:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warns in forked workers
            _ = self._tokenizer.tokenizer
        else:
            _ = self.tokens

    @cached_property
    def _identities(self) -> NDArray[np.int64]:
        return identities(self._images)

    def input_description(self, modality: Modality) -> str:
        """Describe the preprocessing between the stored items and a tower's input."""
        if modality == "text":
            worded = "" if self._wording == Wording() else f" {self._wording}"
            return f"tokens {self._tokenizer.fingerprint}{worded}"
        kept = self._images.side if isinstance(self._images, PixelCache) else None
        return f"{self.image_size} px" + (f" from {kept} px" if kept not in (None, self.image_size) else "")

    def cache(self, bank: FeatureBank) -> None:
        """Return a frozen tower's features from now on, instead of pixels or tokens.

        Raises:
            ValueError: the bank is of other items, see :meth:`FeatureBank.positions`.
        """
        self._cached[bank.modality] = self._found(bank)

    def uncache(self, modality: Modality) -> None:
        """Return pixels or tokens again."""
        self._cached.pop(modality, None)

    def attach_teacher(self, bank: FeatureBank) -> None:
        """Return a teacher's features with every pair from now on.

        Raises:
            ValueError: the bank is of other items, see :meth:`FeatureBank.positions`.
        """
        self._teacher[bank.modality] = self._found(bank)
        self.teacher_sources[bank.modality] = bank.source
        self._placebo = self._placebo or bank.is_placebo

    def attach_rows(self, modality: Modality, features: Tensor, source: str, is_placebo: bool) -> None:
        """Return a teacher's features with every pair from now on; as :meth:`attach_teacher`, but for features by row.

        Args:
            modality: modality of the teacher.
            features: (n, D) features of all images or captions of the split, not copied.
            source: fingerprint of the tower.
            is_placebo: whether the features are random.

        Raises:
            ValueError: a corruption changes items, whose features differ then.
        """
        content = self._state.image_content if modality == "image" else self.table.text_content
        clean = self._clean.image_content if modality == "image" else self._clean.text_content
        if changed := int((content != clean).sum()):
            raise ValueError(
                f"the shards hold the {modality} teacher's features of clean data, and a corruption changes {changed} of "
                f"{len(content)} {modality}s: write a bank with sdr extract, and name it as --data.init_args.{modality}_bank"
            )
        self._teacher[modality] = _Features(features, torch.arange(len(features)))
        self.teacher_sources[modality] = source
        self._placebo = self._placebo or is_placebo

    @property
    def streamed(self) -> ShardImages | None:
        """The images, if training on pairs reads them from shards; None if they are elsewhere, or cached features."""
        return self._images if isinstance(self._images, ShardImages) and "image" not in self._cached else None

    def original(self, row: int) -> AnyImage:
        """Return one image without corruption, in its original size or that of the pixel cache."""
        return self._images[row]

    def images(self, rows: Rows, transform: Transform | None = None, key: tuple[int, ...] = ()) -> ImageInputs:
        """Return the images of some rows.

        Args:
            rows: (B,) image rows.
            transform: random augmentation, applied after corruption; None for none.
            key: determines the augmentation, together with the row.

        Returns:
            (B, 3, S, S) uint8 pixels, (B, R, D) float32 features of a collection of features, or cached features.

        Raises:
            ValueError: an augmentation is given, but the features are cached.
        """
        if "image" in self._cached:
            if transform is not None:
                raise ValueError(
                    "a frozen image tower's features are computed once, so images cannot be augmented: set "
                    "data.init_args.augmentation to none, or the tower's frozen to false"
                )
            return CachedFeatures(self._cached["image"].at(rows))
        return torch.stack([self._image(int(row), transform, key) for row in rows])

    def texts(self, rows: Rows) -> TextInputs:
        """Return the tokens of some captions, or cached features."""
        if "text" in self._cached:
            return CachedFeatures(self._cached["text"].at(rows))
        if self._tokenises_batches:
            return trimmed(self._tokenizer(self._wording([self.table.captions[row] for row in rows.tolist()])))
        return take(self.tokens, torch.from_numpy(rows))

    def teacher(self, modality: Modality, rows: Rows) -> Tensor | None:
        """Return (B, D) teacher features of some rows, or None if no bank is attached."""
        features = self._teacher.get(modality)
        return None if features is None else features.at(rows)

    @property
    def is_original(self) -> Tensor:
        """(C,) bool, whether the corruptions left image, caption and pairing of a pair as they were."""
        return torch.from_numpy(self._state.is_original)

    def training_pairs(self) -> TrainingPairs:
        """Return the pairs with all features of the attached teachers, see :class:`~sdr_lightning.types.TrainingPairs`."""
        image, text = (
            self._teacher[modality].all() if modality in self._teacher else None for modality in get_args(Modality)
        )
        return TrainingPairs(self.caption_image, self.is_original, image, text)

    def record(self) -> dict[str, Any]:
        """Return what the corruptions changed, for a run's record; with the measured degree if two teachers are attached."""
        record = self.realised.record()
        if len(self._teacher) == 2 and not self._placebo:
            image, text = (self._teacher[modality].all() for modality in get_args(Modality))
            degree = measure_degree(image, text, self.caption_image)
            record["degree"] = {**degree._asdict(), "mean": degree.mean}
        return record

    def _found(self, bank: FeatureBank) -> _Features:
        return _Features(bank.features, bank.positions(self.ids(bank.modality), self.content(bank.modality)))

    def _image(self, row: int, transform: Transform | None, key: tuple[int, ...]) -> Tensor:
        stored = self._images[row]
        if stored.dtype != np.uint8:
            return torch.from_numpy(self._state.image(row, stored))
        assert self.image_size is not None  # checked by the data module
        if self._state.changes_image(row):  # corrupt at the input size, independent of the original size
            small = to_input(stored, self.image_size).permute(1, 2, 0).numpy()
            stored = self._state.image(row, small)
        if transform is None:
            return to_input(stored, self.image_size)
        return seeded(transform, torch.from_numpy(stored).permute(2, 0, 1), *key, row)
