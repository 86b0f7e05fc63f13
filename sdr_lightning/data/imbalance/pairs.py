"""Mismatched pairs ("noisy correspondence") in both published definitions.

References:
    [0] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs" (RCL), TPAMI 2023; Qin et al., DECL, 2022: level
        image. Chosen images exchange all their captions.
    [1] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching" (NCR), NeurIPS 2021: level caption.
        Chosen captions are shuffled individually.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.imbalance.specification import Level
from sdr_lightning.data.table import CaptionTable

Rows = NDArray[np.int64]


def mismatched(table: CaptionTable, rows: Rows, level: Level) -> Rows:
    """Mismatch all chosen items.

    Args:
        table: a clean split.
        rows: (n,) int64 rows of the chosen images or captions, in random order.
        level: whether the rows are images or captions.

    Returns:
        (C,) int64 image paired with each caption.

    Raises:
        ValueError: the chosen items cannot all be mismatched.
    """
    if level == "image":
        if len(rows) == 1:
            raise ValueError(
                f"{table.name} {table.split}: a mismatch needs at least two chosen images, the ratio gives one"
            )
        receiver = np.arange(len(table.image_ids))
        receiver[rows] = np.roll(rows, -1)  # each passes its captions to the next
        return receiver[table.caption_image]
    paired = table.caption_image.copy()
    paired[rows] = _deranged(table, table.caption_image[rows])
    return paired


def _deranged(table: CaptionTable, own: Rows) -> Rows:
    """Permute the images so that no caption keeps its own."""
    given = np.roll(own, -1)
    for place in np.flatnonzero(given == own):
        # Swap with the next place such that neither gets its own image.
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
