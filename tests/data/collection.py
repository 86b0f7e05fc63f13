"""A collection in memory whose every item is recognisable, with any number of captions per image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sdr_lightning.data.images import Images, InMemory
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.source import Source
from sdr_lightning.data.split import PreparedSplit
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import Tokenizer
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.metrics.relevance import Relevance
from sdr_lightning.types import Modality

COUNTS = (3, 1, 2, 5, 2, 4, 1, 2)  # captions of image 0, 1, 2 ...
_COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
_SHAPES = ("circle", "square", "triangle", "cross", "diamond")
_PLACES = ("top", "left", "centre", "right", "bottom")


def caption(image: int, number: int) -> str:
    """A caption of six words that no other image or number has (below 30 images)."""
    colour, shape = _COLOURS[image % 6], _SHAPES[image // 6]
    return f"a {colour} {shape} at the {_PLACES[number % 5]}"


def make_table(counts: Sequence[int] = COUNTS, split: Split = "train", name: str = "memory") -> CaptionTable:
    """Images ``i0``, ``i1`` ... with captions ``c0.0``, ``c0.1`` ..., image by image."""
    return CaptionTable(
        name,
        split,
        [f"i{i}" for i in range(len(counts))],
        [caption(i, k) for i, n in enumerate(counts) for k in range(n)],
        [f"c{i}.{k}" for i, n in enumerate(counts) for k in range(n)],
        np.repeat(np.arange(len(counts)), counts),
    )


class MemorySource(Source):
    """Image ``i`` is a random picture of its own; val and test have other ids than train."""

    name = "memory"

    def __init__(self, counts: Sequence[int] = COUNTS, size: int = 16, seed: int = 0) -> None:
        self.counts, self.size, self.seed = counts, size, seed

    def table(self, split: Split) -> CaptionTable:
        return make_table(self.counts, split)

    def images(self, split: Split) -> Images:
        generator = np.random.default_rng(self.seed)
        shape = (self.size, self.size, 3)
        return InMemory([generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(len(self.counts))])

    def relevance(self, split: Split, cache: Path) -> Relevance:
        raise AssertionError("not asked for here")


def prepared(
    source: Source, tokenizer: Tokenizer, image_size: int, imbalances: Sequence[Imbalance], split: Split = "train"
) -> PreparedSplit:
    """A split of a source under imbalances, with nothing kept on disk."""
    return PreparedSplit(
        source.table(split), source.images(split), tokenizer, image_size, imbalances, Path("no cache here")
    )


def bank_of(split: PreparedSplit, modality: Modality, width: int = 3) -> FeatureBank:
    """A bank in reversed order, so that a look-up by position goes wrong; row r of the split has the features r."""
    rows = np.arange(len(split.ids(modality)))[::-1].copy()
    return FeatureBank(
        modality,
        [split.ids(modality)[row] for row in rows],
        split.content(modality)[rows],
        torch.from_numpy(rows).float()[:, None].repeat(1, width),
        "a tower",
    )
