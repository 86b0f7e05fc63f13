"""Splits for collections without splits: assigned by a hash of the image id, independent of the other images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdr_lightning.data.table import Split
from sdr_lightning.identity import stable_hashes


def held_out(image_ids: Sequence[str], shares: Mapping[Split, float], seed: int) -> list[Split]:
    """Assign a split to every image by a hash of its id.

    Args:
        image_ids: N ids; equal ids get the same split, so the captions of an image stay together.
        shares: expected share of each split except ``train``, which gets the rest; each in [0, 1), sum below 1.
        seed: random seed.

    Returns:
        N splits; the actual shares vary around the expected ones.

    Raises:
        ValueError: a share is out of range, or the shares leave no training images.
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
