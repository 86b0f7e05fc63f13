"""What a collection must offer to be used: a table per split, pixels by row, and graded relevance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.metrics.relevance import Relevance, RougeLRelevance

Pixels = NDArray[np.uint8]


class Source(ABC):
    """A captioned image collection.

    Attributes:
        name: of the collection; part of every fingerprint.
        relevance_description: one sentence that says what the graded relevance is.
    """

    name: str
    relevance_description = (
        "ROUGE-L between captions: of a caption and an image, against all captions of that image; "
        "of two captions, against all captions of the second one's image; "
        "of two images, the mean over the first one's captions"
    )

    @abstractmethod
    def table(self, split: Split) -> CaptionTable:
        """Images and captions of a split, clean.

        Raises:
            ValueError: the collection on disk is absent, incomplete or malformed.
        """

    @abstractmethod
    def images(self, split: Split) -> Sequence[Pixels]:
        """RGB images of a split by row, each (H, W, 3) uint8, decoded when they are asked for."""

    def relevance(self, split: Split, cache: Path) -> Relevance:
        """Graded relevance between the items of a split: ROUGE-L unless the collection knows better.

        Args:
            split: which split.
            cache: folder for what is dear to compute.
        """
        table = self.table(split)
        return RougeLRelevance(table.captions, table.caption_image, len(table.image_ids), cache=cache)
