"""Groups of duplicate images, against the connected components of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.cleaning.duplicates import Member, duplicate_groups, image_flags
from sdr_lightning.data.images import Pixels
from sdr_lightning.data.table import Split


def constant(split: Split, row: int) -> Pixels:
    return np.full((2, 2, 3), row % 3, dtype=np.uint8)


def components(features: Tensor, near: float) -> set[frozenset[int]]:
    unit = normalize(features, dim=1)
    label = list(range(len(unit)))
    for first, second in torch.nonzero(unit @ unit.T >= near).tolist():
        label = [label[first] if name == label[second] else name for name in label]
    found = [frozenset(row for row, name in enumerate(label) if name == chosen) for chosen in set(label)]
    return {rows for rows in found if len(rows) > 1}


def test_groups_are_the_connected_components_of_near_images() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 6, generator=generator).repeat(3, 1)
    features = centres + 0.2 * torch.randn(60, 6, generator=generator)
    features = torch.cat([features, features[:1].repeat(30, 1)])  # more copies than neighbours are looked at
    found = duplicate_groups({"train": features[:40], "test": features[40:]}, constant, 0.97)
    rows = {frozenset(row + 40 * (split == "test") for split, row, _ in group) for group in found}
    assert rows == components(features, 0.97)
    assert max(map(len, rows)) > 30
    assert [len(group) for group in found] == sorted(map(len, rows), reverse=True)


def test_an_image_is_flagged_for_its_own_copies_only() -> None:
    group = (
        Member("train", 0, "a"), Member("train", 1, "b"), Member("train", 2, "a"), Member("val", 3, "b"), Member("val", 4, "c"),
    )  # fmt: skip
    assert image_flags([group], "train") == {0: ("exact", "near"), 1: ("near", "exact"), 2: ("exact", "near")}
    assert image_flags([group], "val") == {3: ("near", "exact"), 4: ("near", "near")}
    assert image_flags([group[:1] + group[3:4]], "train") == {0: ("", "near")}


@pytest.mark.parametrize("near", [0.0, 1.5])
def test_a_cosine_out_of_range_is_refused(near: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        duplicate_groups({"train": torch.eye(3)}, constant, near)
