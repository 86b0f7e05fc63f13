import math

import pytest
import torch

from sdr_lightning.metrics.cross_modal import cross_modal_rankings, modality_gap, summarise_both


def cross_modal_retrieval(images, texts, index, recall_at=(1, 5, 10), **options):
    return summarise_both(*cross_modal_rankings(images, texts, index, **options), recall_at)


def unit(*degrees):
    """Unit vectors in the plane at the given angles."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=1).float()


def test_by_hand():
    images = unit(0, 90, 180)
    texts = unit(10, 80, 200, 95)
    index = torch.tensor([0, 0, 2, 1])
    # i2t: 0 -> text 0 (10 deg); 90 -> text 3 (5 deg), first; 180 -> text 2 (20 deg). All at rank 0.
    # t2i: 10 -> image 0; 80 -> image 1 first, image 0 second; 200 -> image 2; 95 -> image 1.
    found = cross_modal_retrieval(images, texts, index, recall_at=(1, 2))
    assert found["i2t_R@1"] == 100.0
    assert found["t2i_R@1"] == 75.0
    assert found["t2i_R@2"] == 100.0
    assert found["rsum"] == 375.0
    assert found["t2i_MdR"] == 1.0
    assert found["t2i_MnR"] == 1.25
    assert found["t2i_MRR"] == pytest.approx(3.5 / 4)
    assert found["t2i_tie_rate"] == 0.0


def test_keys():
    found = cross_modal_retrieval(unit(0, 90), unit(0, 90), torch.arange(2))
    one_way = ["R@1", "R@5", "R@10", "MdR", "MnR", "MRR", "tie_rate"]
    assert list(found) == [f"{way}_{key}" for way in ("i2t", "t2i") for key in one_way] + [
        "rsum",
    ]
    assert found["rsum"] == 600.0
    assert all(type(value) is float for value in found.values())


def test_ties_and_rule():
    same = unit(30, 30, 30)
    found = cross_modal_retrieval(same, same, torch.arange(3))
    assert found["i2t_tie_rate"] == found["t2i_tie_rate"] == 1.0
    assert found["i2t_R@1"] == pytest.approx(100 / 3)
    assert cross_modal_retrieval(same, same, torch.arange(3), recall_at=(1, 2), ties="pessimistic")["rsum"] == 0.0


def test_modality_gap_is_the_distance_of_the_means():
    # Means (1/2, 1/2) and (0, -1).
    assert modality_gap(unit(0, 90), unit(270)) == pytest.approx(math.sqrt(0.25 + 2.25))
    assert modality_gap(unit(0, 90), unit(90, 0)) == pytest.approx(0.0, abs=1e-7)
