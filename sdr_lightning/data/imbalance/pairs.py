"""Mismatched pairs ("noisy correspondence") in both published definitions.

References:
    [0] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs" (RCL), TPAMI 2023; Qin et al., DECL, 2022: level
        image. Chosen images exchange all their captions.
    [1] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NCR), NeurIPS 2021: level caption.
        Chosen captions are shuffled individually.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdr_lightning.data.imbalance.partners import Partners, Rows, at_random, deranged, nearest, sharing_a_word
from sdr_lightning.data.imbalance.specification import Level, Partner
from sdr_lightning.data.table import CaptionTable


class Mismatch(NamedTuple):
    """A pairing in which all chosen items are mismatched.

    Attributes:
        caption_image: (C,) int64 image paired with each caption.
        partners_as_asked: share of the chosen items whose partner is of the kind asked for, in [0, 1].
    """

    caption_image: Rows
    partners_as_asked: float


def mismatched(table: CaptionTable, rows: Rows, level: Level, partner: Partner = "random", seed: int = 0) -> Mismatch:
    """Mismatch all chosen items.

    Args:
        table: a clean split.
        rows: (n,) int64 rows of the chosen images or captions, in random order.
        level: whether the rows are images or captions.
        partner: which items exchange captions, see :mod:`sdr_lightning.data.imbalance.partners`.
        seed: of the words drawn for partner ``shared_word``.

    Returns:
        The pairing.

    Raises:
        ValueError: the chosen items cannot all be mismatched.
    """
    if level == "image" and len(rows) == 1:
        raise ValueError(
            f"{table.name} {table.split}: a mismatch needs at least two chosen images, the ratio gives one"
        )
    images = rows if level == "image" else table.caption_image[rows]
    partners = _partners(table, rows, images, level, partner, seed)
    try:
        successor = deranged(partners.successor, images)
    except ValueError as error:
        raise ValueError(
            f"{table.name} {table.split}: a mismatch of {len(rows)} captions, too many of one image, leaves some with "
            "their own: choose more"
        ) from error
    as_asked = float(partners.fit(successor).mean()) if len(rows) else 1.0
    if level == "image":
        receiver = np.arange(len(table.image_ids))
        receiver[rows] = images[successor]
        return Mismatch(receiver[table.caption_image], as_asked)
    paired = table.caption_image.copy()
    paired[rows] = images[successor]
    return Mismatch(paired, as_asked)


def _partners(table: CaptionTable, rows: Rows, images: Rows, level: Level, partner: Partner, seed: int) -> Partners:
    if partner == "random" or len(rows) < 2:
        return at_random(len(rows))
    ids = table.image_ids if level == "image" else table.caption_ids
    texts = _joined(table) if level == "image" else table.captions
    chosen = [texts[row] for row in rows.tolist()]
    if partner == "nearest":
        return nearest(chosen, images, texts)
    return sharing_a_word(chosen, [ids[row] for row in rows.tolist()], images, seed)


def _joined(table: CaptionTable) -> Sequence[str]:
    """All captions of each image in one text."""
    captions: list[list[str]] = [[] for _ in table.image_ids]
    for caption, image in zip(table.captions, table.caption_image.tolist(), strict=True):
        captions[image].append(caption)
    return [" ".join(texts) for texts in captions]
