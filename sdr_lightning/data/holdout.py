"""Splits for collections that have none: drawn by a hash, so that an image stays where it is as others come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdr_lightning.data.table import Split
from sdr_lightning.identity import stable_hashes


def held_out(image_ids: Sequence[str], shares: Mapping[Split, float], seed: int) -> list[Split]:
    """Draw a split for every image.

    Args:
        image_ids: N ids; equal ids get the same split, so that no image's captions are divided.
        shares: share of the images in each split but ``train``, which gets the rest; each in [0, 1), together below 1.
        seed: of the draw.

    Returns:
        N splits; the realised shares differ from the asked ones by chance.

    Raises:
        ValueError: shares that leave nothing to train on.
    """
    if any(not 0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError(f"the shares held out must be in [0, 1) and leave something to train on, got {dict(shares)}")
    splits: list[Split] = []
    for key in stable_hashes(("split", seed), image_ids):
        place, split = (int(key) % 2**32) / 2**32, "train"
        for name, share in shares.items():
            if place < share:
                split = name
                break
            place -= share
        splits.append(split)  # type: ignore[arg-type]
    return splits
