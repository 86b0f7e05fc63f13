"""Mismatched pairs, "noisy correspondence", in both published meanings.

[0] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs" (RCL), TPAMI 2023; Qin et al., DECL, 2022: level
    image. Whole images lose all their captions.
[1] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NCR), NeurIPS 2021: level caption.
    Captions are shuffled one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.imbalance.specification import Level
from sdr_lightning.data.table import CaptionTable

Rows = NDArray[np.int64]


def mismatched(table: CaptionTable, rows: Rows, level: Level) -> Rows:
    """Pair chosen items wrongly; nobody keeps their own.

    Args:
        table: a clean split.
        rows: (n,) the chosen images or captions, in random order.
        level: what the rows are of.

    Returns:
        (C,) the image that each caption is now paired with.

    Raises:
        ValueError: the chosen items cannot all be paired wrongly.
    """
    if level == "image":
        if len(rows) == 1:
            raise ValueError(
                f"{table.name} {table.split}: a mismatch needs at least two chosen images, the ratio gives one"
            )
        receiver = np.arange(len(table.image_ids))
        receiver[rows] = np.roll(rows, -1)  # each hands its captions to the next
        return receiver[table.caption_image]
    paired = table.caption_image.copy()
    paired[rows] = _deranged(table, table.caption_image[rows])
    return paired


def _deranged(table: CaptionTable, own: Rows) -> Rows:
    """The images in another order, so that nobody gets their own."""
    given = np.roll(own, -1)
    for place in np.flatnonzero(given == own):
        # Swap with the next place where neither would then have its own.
        others = np.roll(np.arange(len(own)), -place - 1)
        fits = (given[others] != own[place]) & (own[others] != given[place])
        if not fits.any():
            raise ValueError(
                f"{table.name} {table.split}: a mismatch of {len(own)} captions, too many of one image, leaves some with "
                "their own: choose more"
            )
        other = others[np.argmax(fits)]
        given[place], given[other] = given[other], given[place]
    return given
