"""Table of the images and captions of one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.identity import sha256, stable_hashes
from sdr_lightning.strings import Strings

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class CaptionTable:
    """Images and captions of one split, any number of captions per image.

    Ids and captions are stored as :class:`Strings`, which worker processes share.

    Attributes:
        name: name of the collection; part of every content hash.
        split: the split.
        image_ids: N ids, unique in the collection.
        captions: C captions.
        caption_ids: C ids, unique in the collection.
        caption_image: (C,) int64, row of the image paired with each caption.

    Raises:
        ValueError: an id is repeated, the lengths differ, a row is out of range, or there are no images or captions.
    """

    name: str
    split: Split
    image_ids: Sequence[str]
    captions: Sequence[str]
    caption_ids: Sequence[str]
    caption_image: NDArray[np.int64]

    def __post_init__(self) -> None:
        for column in ("image_ids", "captions", "caption_ids"):
            if not isinstance(getattr(self, column), Strings):
                object.__setattr__(self, column, Strings(getattr(self, column)))
        for what, ids in (("image", cast(Strings, self.image_ids)), ("caption", cast(Strings, self.caption_ids))):
            if ids.repeated is not None:
                raise ValueError(f"{self.name} {self.split}: {what} id {ids.repeated!r} occurs more than once")
        if not (len(self.captions) == len(self.caption_ids) == len(self.caption_image)):
            raise ValueError(f"{self.name} {self.split}: captions, their ids and their images differ in number")
        rows = self.caption_image
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.image_ids):
            raise ValueError(
                f"{self.name} {self.split}: image rows from {rows.min()} to {rows.max()} for {len(self.image_ids)} images"
            )
        if not len(self.image_ids) or not len(self.captions):
            raise ValueError(
                f"{self.name} {self.split}: {len(self.image_ids)} images and {len(self.captions)} captions"
            )

    @cached_property
    def image_content(self) -> NDArray[np.int64]:
        """(N,) int64 hashes of collection and image id."""
        return stable_hashes(("image", self.name), self.image_ids)

    @cached_property
    def text_content(self) -> NDArray[np.int64]:
        """(C,) int64 hashes of the captions."""
        return stable_hashes(("text",), self.captions)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, captions and pairing."""
        columns = [cast(Strings, column).sha256 for column in (self.image_ids, self.caption_ids, self.captions)]
        return sha256(self.name, self.split, *columns, self.caption_image.tobytes())
