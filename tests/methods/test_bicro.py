"""BiCro against an independent reference and the public code."""

from __future__ import annotations

import pytest
import torch

from sdr_lightning.methods import BiCro
from sdr_lightning.methods.co_teaching import networks_of
from tests.methods.test_co_teaching import SHARED, ready, slow_loss, slow_network
from tests.methods.test_methods import training_pairs
from tests.methods.twin import SIZE, one_network, twin_pairs


def test_the_warm_up_equals_the_public_code() -> None:
    """xu5zhao/BiCro at 02316315: ContrastiveLoss in mode warmup_sele with rate 0.6, over 5, the mean of two networks."""
    found = ready(BiCro, warming_up=True, warmup_share=0.6)(twin_pairs())["triplet"]
    assert found.item() == pytest.approx((0.07013172346596146 + 0.060450163249569956) / 2)


def slow_labels(
    image: list[list[float]],
    text: list[list[float]],
    scores: list[list[float]],
    costs: list[float],
    probability: list[float],
    least: float,
) -> list[float]:
    """Steps 3 and 4 of the docstring, pair by pair; image and text are cosines within each modality."""
    everyone = range(len(costs))
    clean = [i for i in everyone if probability[i] > 0.5]
    anchors = sorted(clean, key=lambda i: (costs[i], -scores[i][i]))[: len(clean) // 10 + 1]
    labels = []
    for i in everyone:
        consistency = 0.0
        for near, other in ((image, text), (text, image)):
            c = max(anchors, key=lambda a: near[i][a])
            ratio = near[i][c] / other[i][c]
            consistency += min(ratio, 1 / ratio) / 2 if ratio > 0 else ratio / 2
        label = (1 + consistency) / 2 if i in clean else consistency
        label = min(1.0, max(0.0, label))
        labels.append(1.0 if i in anchors else label if label > least else 0.0)
    return labels


@pytest.mark.parametrize(("size", "least"), [(5, 0.5), (24, 0.3), (24, 0.0)])
@pytest.mark.parametrize("with_noisy", [False, True])
def test_bicro_equals_a_pair_by_pair_reference(size: int, least: float, with_noisy: bool) -> None:
    ids = SHARED if size == SIZE else torch.arange(size) // 2
    pairs = twin_pairs(ids, size)
    probability = torch.rand(2, size, generator=torch.Generator().manual_seed(0)) ** 0.5
    networks = networks_of(pairs)
    scores = [(network.image @ network.text.T).tolist() for network in networks]
    expected = 0.0
    for own, other in ((0, 1), (1, 0)):
        within = [(rows @ rows.T).tolist() for rows in (networks[other].image, networks[other].text)]
        costs = slow_network(scores[other], ids.tolist())[0]
        labels: list[float | None] = [*slow_labels(*within, scores[other], costs, probability[other].tolist(), least)]
        if not with_noisy:
            labels = [y if p > 0.5 else None for y, p in zip(labels, probability[other].tolist(), strict=True)]
        expected += slow_loss(scores[own], ids.tolist(), labels) / 2
    method = BiCro(least_label=least).double()
    method.setup(training_pairs(size))
    method.warming_up.fill_(False)
    method.with_noisy.fill_(with_noisy)
    method.network_probability.copy_(probability)
    assert method(pairs)["triplet"].item() == pytest.approx(expected, rel=1e-6)


def test_a_network_labels_the_pairs_of_the_other() -> None:
    """Where one network embeds images like captions, it finds every pair of the other consistent."""
    image, _ = one_network(1.7, 2.3)
    _, (second_image, second_text) = one_network(1.7, 2.3), one_network(0.9, 1.3)
    networks = networks_of(twin_pairs())
    consistent = networks[0]._replace(image=image, text=image)
    method = ready(BiCro)
    labels = method.labels((consistent, networks[1]), torch.tensor([[0.9] * SIZE, [0.2] * 4 + [0.9]]).double())
    assert labels[1].tolist() == pytest.approx([1] * SIZE)
    assert labels[0].max() == 1
    assert labels[0].min() < 0.9
    torch.testing.assert_close(networks[1].image, second_image)
    torch.testing.assert_close(networks[1].text, second_text)


def test_without_a_clean_pair_every_label_is_zero() -> None:
    method = ready(BiCro)
    assert method.labels(networks_of(twin_pairs()), torch.full((2, SIZE), 0.4)).tolist() == [[0] * SIZE] * 2


def test_the_warm_up_leaves_out_the_pairs_with_the_greatest_losses() -> None:
    method = ready(BiCro, warming_up=True, warmup_share=0.4)
    for network in networks_of(twin_pairs(size=24)):
        costs = method.costs(network)
        expected = [cost if cost < sorted(costs)[9] else 0 for cost in costs]
        assert method.warmup_costs(network).tolist() == expected


def test_of_equal_costs_the_pair_with_the_greater_cosine_is_the_anchor() -> None:
    axes, cosines = torch.eye(4, dtype=torch.float64), torch.tensor([0.9, 0.95, 0.7, 0.99], dtype=torch.float64)
    rest = torch.eye(4, dtype=torch.float64) * (1 - cosines**2).sqrt()
    image, text = torch.cat([axes, 0 * axes], dim=1), torch.cat([axes * cosines, rest], dim=1)
    network = networks_of(twin_pairs(size=4))[0]._replace(image=image, text=text)
    assert ready(BiCro).costs(network).tolist() == [0] * 4
    labels = ready(BiCro).labels((network, network), torch.tensor([[0.9, 0.9, 0.9, 0.2]] * 2).double())
    assert labels.tolist() == [[0, 1, 0, 0]] * 2
