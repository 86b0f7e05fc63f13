"""Alignment, uniformity and hubness, against their definitions in loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics.structure import diagnostics, hubness, preserved, uniformity


def test_equal_the_definitions():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(15, 6, generator=generator))
    index = torch.arange(15).repeat_interleave(2)
    texts = normalize(torch.randn(30, 6, generator=generator))
    found = diagnostics(images, texts, index, k=3)
    distances = [float((images[i] - text).square().sum()) for i, text in zip(index.tolist(), texts, strict=True)]
    assert found["alignment"] == pytest.approx(sum(distances) / 30, rel=1e-5)
    for name, space in (("image", images), ("text", texts)):
        terms = [
            math.exp(-2 * float((x - y).square().sum()))
            for i, x in enumerate(space)
            for j, y in enumerate(space)
            if i != j
        ]
        assert found[f"{name}_uniformity"] == pytest.approx(math.log(sum(terms) / len(terms)), rel=1e-5)
    for task, queries, gallery in (("i2t", images, texts), ("t2i", texts, images), ("i2i", images, images)):
        counts = [0] * len(gallery)
        for row, query in enumerate(queries):
            others = [j for j in range(len(gallery)) if queries is not gallery or j != row]
            for j in sorted(others, key=lambda j: -float(query @ gallery[j]))[:3]:
                counts[j] += 1
        mean = sum(counts) / len(counts)
        deviation = math.sqrt(sum((count - mean) ** 2 for count in counts) / len(counts))
        skew = sum((count - mean) ** 3 for count in counts) / len(counts) / deviation**3
        assert found[f"{task}_hubness@3"] == pytest.approx(skew)


def test_extremes():
    assert uniformity(torch.ones(5, 4) / 2) == pytest.approx(0, abs=1e-5)  # collapsed
    assert uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)  # opposite
    assert hubness(torch.arange(10)[:, None], 10) == 0  # everybody once
    assert hubness(torch.zeros(10, 1, dtype=torch.int64), 10) > 2  # one hub
    with pytest.raises(ValueError, match="hubness at 10 needs more than 10 images and captions, got 3 and 20"):
        diagnostics(torch.ones(3, 2), torch.ones(20, 2), torch.arange(20) % 3)


def test_too_few_items_have_no_neighbour_overlap():
    found = preserved(torch.eye(10), torch.eye(10))
    assert math.isnan(found["kNN@10"])
    assert found["CKA"] == pytest.approx(100)
