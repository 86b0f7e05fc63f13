"""What several tests of imbalances share."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sdr_lightning.data.table import CaptionTable, Split


def worded(counts: Sequence[int], words: int = 1, split: Split = "train") -> CaptionTable:
    """Any number of images, image by image, every word of whose captions occurs once."""
    names = [f"{i}.{k}" for i, count in enumerate(counts) for k in range(count)]
    captions = [" ".join(f"{name}w{w}" for w in range(words)) for name in names]
    rows = np.repeat(np.arange(len(counts)), counts)
    return CaptionTable("worded", split, [f"i{i}" for i in range(len(counts))], captions, names, rows)


def shuffled(table: CaptionTable, seed: int = 9) -> CaptionTable:
    """The same collection read in another order."""
    generator = np.random.default_rng(seed)
    images, captions = generator.permutation(len(table.image_ids)), generator.permutation(len(table.captions))
    return replace(
        table,
        image_ids=[table.image_ids[i] for i in images],
        captions=[table.captions[c] for c in captions],
        caption_ids=[table.caption_ids[c] for c in captions],
        caption_image=np.argsort(images)[table.caption_image[captions]],
    )


def image_of_caption(table: CaptionTable) -> dict[str, str]:
    """Image id by caption id."""
    return {c: table.image_ids[i] for c, i in zip(table.caption_ids, table.caption_image.tolist(), strict=True)}


def words_of_caption(table: CaptionTable) -> dict[str, str]:
    """Caption by caption id."""
    return dict(zip(table.caption_ids, table.captions, strict=True))
