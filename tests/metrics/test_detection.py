import pytest
import torch

from sdr_lightning.metrics.detection import detection


def test_auc_is_the_share_of_ordered_pairs_and_equal_estimates_count_half() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate = torch.randint(0, 8, (60,), generator=generator) / 7  # many are equal
    original = torch.rand(60, generator=generator) < 0.3 + estimate / 3
    clean, corrupted = estimate[original].tolist(), estimate[~original].tolist()
    wins = sum((a > b) + (a == b) / 2 for a in clean for b in corrupted)
    found = detection(estimate, original)
    assert found["detection_AUC"] == pytest.approx(100 * wins / len(clean) / len(corrupted))
    assert found["detection_estimated_share"] == pytest.approx(100 - 100 * sum(estimate.tolist()) / 60)
    assert found["detection_true_share"] == pytest.approx(100 * len(corrupted) / 60)
    assert found["detection_AUC"] > 55


def test_there_is_no_auc_without_pairs_of_both_kinds() -> None:
    for original in (True, False):
        found = detection(torch.full((3,), 0.75), torch.full((3,), original))
        assert found == {"detection_estimated_share": 25, "detection_true_share": 0 if original else 100}


def test_estimates_that_are_no_probabilities_of_the_pairs_are_refused() -> None:
    for estimate, message in [
        (torch.ones(4), r"shape \(4,\), expected one value for each of the 3 training pairs"),
        (torch.tensor([0.5, 1.5, 0.0]), r"must be in \[0, 1\], found 0 to 1.5"),
        (torch.tensor([0.5, float("nan"), 0.0]), r"must be in \[0, 1\], found nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            detection(estimate, torch.tensor([True, False, True]))
