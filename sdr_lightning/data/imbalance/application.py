"""Application of corruptions: pairing, captions and pixels of a split under a list of specifications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdr_lightning.data.images import AnyImage
from sdr_lightning.data.imbalance.noise_table import NoiseTable, read_noise, wrong_captions_per_image
from sdr_lightning.data.imbalance.pictures import IMAGE_KINDS
from sdr_lightning.data.imbalance.specification import Imbalance
from sdr_lightning.data.imbalance.texts import TEXT_KINDS
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.identity import sha256, stable_hash
from sdr_lightning.paths import expand


@dataclass(frozen=True)
class Realised:
    """What a list of corruptions changed in a split.

    Attributes:
        parts: the items changed by each corruption.
        sha256: hash of pairing, captions and images; equal for two runs on the same data.
        wrong_captions_per_image: numbers of images with 0, 1, 2, ... captions of another image.
    """

    parts: tuple[NoiseTable, ...]
    sha256: str
    wrong_captions_per_image: dict[int, int]

    def record(self) -> dict[str, Any]:
        """Return plain values for a run's record."""
        histogram = {str(wrong): images for wrong, images in self.wrong_captions_per_image.items()}
        parts = [part.record() for part in self.parts]
        return {"imbalances": parts, "sha256": self.sha256, "wrong_captions_per_image": histogram}


class Imbalanced:
    """A split with corruptions applied.

    Args:
        clean: the split without corruption.
        parts: the corruptions with the items they change, in order.

    Attributes:
        table: captions and pairing after corruption; ids and order are those of the clean table.
        image_content: (N,) int64 hashes of the images' content after corruption.
        is_original: (C,) bool, whether the image, the caption and the pairing of a caption are unchanged.
        realised: what was changed.
    """

    def __init__(self, clean: CaptionTable, parts: Sequence[NoiseTable]) -> None:
        paired, captions = clean.caption_image, None
        content = clean.image_content.copy()
        self._of_image: dict[int, list[Imbalance]] = {}
        self._image_ids = clean.image_ids
        for part in parts:
            if part.imbalance.modality == "pair":
                paired = np.where(part.caption_image != clean.caption_image, part.caption_image, paired)
            elif part.imbalance.modality == "text":
                captions = list(clean.captions) if captions is None else captions
                _reword(captions, clean, part)
            else:
                for row in part.rows.tolist():
                    self._of_image.setdefault(row, []).append(part.imbalance)
                    content[row] = stable_hash("noisy", content[row], *part.imbalance.content_key)
        self.table = replace(clean, caption_image=paired, captions=clean.captions if captions is None else captions)
        self.image_content = content
        image_is_original = content == clean.image_content
        self.is_original = (paired == clean.caption_image) & image_is_original[paired]
        self.is_original &= self.table.text_content == clean.text_content
        self.realised = Realised(
            tuple(parts),
            sha256(self.table.fingerprint, content.tobytes()),
            wrong_captions_per_image(clean.caption_image, paired, len(clean.image_ids)),
        )

    def changes_image(self, row: int) -> bool:
        """Whether an image is corrupted."""
        return row in self._of_image

    def image(self, row: int, image: AnyImage) -> AnyImage:
        """Return an image after corruption, a function of its id and the specifications.

        Args:
            row: row of the image.
            image: (H, W, 3) uint8 pixels, or (R, D) features, for which ``missing`` (zeros) is the only corruption.

        Raises:
            ValueError: a corruption of pixels is applied to features.
        """
        for imbalance in self._of_image.get(row, ()):
            if image.dtype == np.uint8:
                corrupt = IMAGE_KINDS[imbalance.kind]
                image = corrupt(image, imbalance.severity, imbalance.generator(self._image_ids[row]))
            elif imbalance.kind == "missing":
                image = np.zeros_like(image)
            else:
                raise ValueError(f"{imbalance.kind} is done to pixels, and this collection has features: use missing")
        return image


def imbalanced(clean: CaptionTable, imbalances: Sequence[Imbalance]) -> Imbalanced:
    """Apply corruptions to a split, in order.

    Each corruption chooses among all items, independent of the others. If two mismatches choose the same caption, the later
    one applies.

    Args:
        clean: the split without corruption.
        imbalances: the corruptions; those of other splits are ignored.

    Returns:
        The corrupted split.

    Raises:
        ValueError: a noise table is of other data, or the chosen items cannot all be mismatched.
    """
    active = [imbalance for imbalance in imbalances if imbalance.active and clean.split in imbalance.splits]
    return Imbalanced(clean, [_resolve(clean, imbalance) for imbalance in active])


def _resolve(clean: CaptionTable, imbalance: Imbalance) -> NoiseTable:
    if imbalance.file is None:
        return NoiseTable.draw(clean, imbalance)
    part = read_noise(Path(expand(imbalance.file)), clean)
    return replace(
        part, imbalance=replace(part.imbalance, splits=imbalance.splits)
    )  # raises for a mismatched test split


def _reword(captions: list[str], clean: CaptionTable, part: NoiseTable) -> None:
    imbalance, rows = part.imbalance, part.rows
    if imbalance.level == "image":
        rows = np.flatnonzero(np.isin(clean.caption_image, rows))
    change: Any = TEXT_KINDS[imbalance.kind]
    for row in rows.tolist():
        words = captions[row].split()
        captions[row] = " ".join(change(words, imbalance.severity, imbalance.generator(clean.caption_ids[row])))
