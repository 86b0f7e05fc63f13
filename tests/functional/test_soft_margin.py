"""Triplet costs with soft margins, and predicted labels."""

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.soft_margin import mean_costs, predicted_labels, soft_margin_costs

IDS = [0, 1, 0, 2, 3, 1]


def embeddings():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(len(IDS), 5, dtype=torch.float64, generator=generator) for _ in range(2))
    return F.normalize(image, dim=1), F.normalize(text, dim=1), torch.tensor(IDS)


def test_costs_equal_a_pair_by_pair_reference():
    image, text, ids = embeddings()
    labels = torch.tensor([0.0, 1.0, 0.3, 0.8, 0.5, 0.1], dtype=torch.float64)
    scores, means, hardest = (image @ text.T).tolist(), [], []
    for i in range(len(IDS)):
        others = [j for j in range(len(IDS)) if IDS[j] != IDS[i]]
        mean = hard_text = hard_image = 0.0
        for j in others:
            mean += max(0.0, 0.2 + scores[i][j] - scores[i][i]) + max(0.0, 0.2 + scores[j][i] - scores[i][i])
            margin = 0.2 * (10 ** labels[i].item() - 1) / 9
            hard_text = max(hard_text, margin + scores[i][j] - scores[i][i])
            hard_image = max(hard_image, margin + scores[j][i] - scores[i][i])
        means.append(mean / len(IDS))
        hardest.append(hard_text + hard_image)
    assert mean_costs(image, text, ids, 0.2).tolist() == pytest.approx(means)
    assert soft_margin_costs(image, text, ids, 0.2, labels).tolist() == pytest.approx(hardest)


def test_predicted_labels_fall_with_the_cost_from_1_to_0():
    costs = torch.linspace(0, 0.6, 25, dtype=torch.float64)
    labels = predicted_labels(costs, 0.2)
    assert labels[0] == 1
    assert labels[-1] == 0
    assert bool((labels.diff() <= 0).all())
    greatest = sum((0.2 - cost / 2) for cost in costs[:3].tolist()) / 3
    assert labels[5].item() == pytest.approx((0.2 - costs[5].item() / 2) / greatest)
    assert predicted_labels(torch.full((4,), 0.4), 0.2).tolist() == [0] * 4
