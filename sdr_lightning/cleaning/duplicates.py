"""Images that occur more than once, within a split or in two splits."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.data.images import AnyImage
from sdr_lightning.data.table import Split
from sdr_lightning.functional.search import Advance, top_k

NEAR_COSINE = 0.9
"""Cosine of features from which two images are near duplicates. Measured for EfficientNet-lite2: docs/clean.md."""
_NEIGHBOURS = 8  # of each image; a group of more copies is still connected by those of lowest row


class Member(NamedTuple):
    """An image of a group.

    Attributes:
        split: its split.
        row: its row in the split.
        digest: hash of its decoded pixels; equal for exact duplicates.
    """

    split: Split
    row: int
    digest: str


Group = tuple[Member, ...]
"""Images that are exact or near duplicates of one another, directly or through others."""


def duplicate_groups(
    features: Mapping[Split, Tensor],
    picture: Callable[[Split, int], AnyImage],
    near: float = NEAR_COSINE,
    advance: Advance | None = None,
) -> list[Group]:
    """Group images whose features are similar, and hash their pixels.

    Only images with a near neighbour are decoded: equal pixels have equal features. Each image is compared with all others by
    tiles, and joined with its eight nearest if they are near enough.

    Args:
        features: (n, D) features of the images of each split.
        picture: returns a decoded image.
        near: cosine from which images are near duplicates, in (0, 1].
        advance: progress callback, called with the number of cosines just computed.

    Returns:
        The groups of at least two images, the largest first.

    Raises:
        ValueError: ``near`` is out of range.
    """
    check_cosine(near)
    places = [(split, row) for split, rows in features.items() for row in range(len(rows))]
    unit = normalize(torch.cat(list(features.values())).float(), dim=1)
    found = top_k(unit, unit, _NEIGHBOURS + 1, advance=advance)
    limit = near - 1e-6  # rounding: a copy has a cosine of nearly 1
    joined = list(range(len(places)))
    for row, column in torch.nonzero(found.scores >= limit).tolist():
        _join(joined, row, int(found.items[row, column]))
    groups: dict[int, list[int]] = defaultdict(list)
    for row in range(len(places)):
        groups[_root(joined, row)].append(row)
    together = [[places[row] for row in rows] for rows in groups.values() if len(rows) > 1]
    hashed = [tuple(Member(split, row, _digest(picture(split, row))) for split, row in rows) for rows in together]
    return sorted(hashed, key=lambda group: (-len(group), group[0].row))


def check_cosine(near: float) -> None:
    """Raise a ValueError unless the cosine of near duplicates is in (0, 1]."""
    if not 0 < near <= 1:
        raise ValueError(f"the cosine of near duplicates must be in (0, 1], got {near}")


class ImageFlags(NamedTuple):
    """What is known about an image of the judged split.

    Attributes:
        copy: ``exact`` or ``near`` if another image of its split is one, else empty.
        leak: the same for images of other splits.
    """

    copy: str
    leak: str


def image_flags(groups: Sequence[Group], split: Split) -> dict[int, ImageFlags]:
    """Return what the groups say of the images of a split, by row; other images are left out."""
    found = {}
    for group in groups:
        everywhere = Counter(member.digest for member in group)
        here = Counter(member.digest for member in group if member.split == split)
        inside = here.total()
        for member in group:
            if member.split != split:
                continue
            own, same = here[member.digest], everywhere[member.digest]
            found[member.row] = ImageFlags(
                "exact" if own > 1 else "near" if inside > 1 else "",
                "exact" if same > own else "near" if len(group) > inside else "",
            )
    return found


def _digest(image: AnyImage) -> str:
    return hashlib.sha256(f"{image.shape} {image.dtype}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _root(joined: list[int], row: int) -> int:
    while joined[row] != row:
        joined[row] = joined[joined[row]]
        row = joined[row]
    return row


def _join(joined: list[int], first: int, second: int) -> None:
    first, second = _root(joined, first), _root(joined, second)
    joined[max(first, second)] = min(first, second)
