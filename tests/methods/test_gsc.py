"""GSC against the public code and a pair-by-pair reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.mixture import low_component_posterior
from sdr_lightning.methods import GSC, InfoNCE, Temperature
from sdr_lightning.types import Pairs, TrainingPairs
from tests.methods.stateful import SHARED, SIZE, pairs_of, ready

# MediaBrain-SJTU/GSC at 2759ba0f: RINCE.train_batch and split_batch, GSC/model/RINCE.py, given cosines as similarities, over
# three epochs of pairs_of(epoch, positive=True): cosines are in (0, 1), like the public code's similarities.
LOSSES = [
    (0.8712155865393653, 1.5422459728150497),
    (0.34465863993379686, 0.6527525564394397),
    (0.19925409918513975, 0.3786938977999471),
]
MEASURED = [
    [0.7186436271282912, 0.4271489007522381, 0.40192361818302885, 0.4658108472467236, 0.4162059234965879],
    [0.9981819513359498, 0.9998076112028358, 0.9991889194499304, 0.9990010815661862, 0.9998052970365601],
]
TARGETS = [
    [0.30000000000000004, 0.5698745201907143, 0.30000000000000004, 0.30000000000000004, 0.5787958842180865],
    [0.09000000000000002, 0.45694841615564197, 0.09000000000000002, 0.09000000000000002, 0.4590993234170041],
    [0.02700000000000001, 0.4360887553732593, 0.02700000000000001, 0.02700000000000001, 0.42907394347271277],
]


def begin(method: GSC, epoch: int) -> list[float]:
    """Begin an epoch and return its targets."""
    method.begin_epoch(epoch, lambda _: torch.zeros(SIZE))
    found: list[float] = method.clean_probability.tolist()
    return found


def test_losses_measurements_and_targets_equal_the_public_code() -> None:
    method = ready(GSC())
    for epoch, ((cross, structure), targets) in enumerate(zip(LOSSES, TARGETS, strict=True)):
        found = method(pairs_of(epoch, positive=True))
        assert (found["info_nce"].item(), found["structure"].item()) == pytest.approx((cross, structure), rel=1e-6)
        last = method.measured.tolist()
        assert begin(method, epoch + 1) == pytest.approx(targets, rel=1e-6)
    assert last == [pytest.approx(row, rel=1e-6) for row in MEASURED]


def reference(pairs: Pairs, targets: list[float], tau: float) -> tuple[float, float, list[float], list[float]]:
    """Both terms, the probability and the cosine of structures of each pair, without other captions of the same image."""
    ids, everyone = pairs.image_index.tolist(), range(SIZE)
    scores, images, texts = (
        (a @ b.T).tolist() for a, b in ((pairs.image, pairs.text), (pairs.image, pairs.image), (pairs.text, pairs.text))
    )
    info_nce = structure = 0.0
    probabilities, cosines = [0.0] * SIZE, [0.0] * SIZE

    def matched(row: list[float], i: int, tau: float) -> float:
        return math.exp(row[i] / tau) / sum(math.exp(row[j] / tau) for j in everyone if j == i or ids[j] != ids[i])

    for i in everyone:
        p, other = matched(scores[i], i, tau), matched([row[i] for row in scores], i, tau)
        info_nce -= targets[i] * (math.log(p) + math.log(other)) / 2 / SIZE
        probabilities[i] = (p + other) / 2
        v = [images[i][k] * targets[k] for k in everyone]
        ws = [[texts[j][k] * targets[k] for k in everyone] for j in everyone]
        row = [sum(a * b for a, b in zip(v, w, strict=True)) for w in ws]
        structure -= targets[i] * math.log(matched(row, i, 1)) / SIZE
        cosines[i] = row[i] / (math.hypot(*v) * math.hypot(*ws[i]))
    return info_nce, structure, probabilities, cosines


@pytest.mark.parametrize("update", [0.4, 1.0])
def test_terms_and_targets_equal_a_pair_by_pair_reference(update: float) -> None:
    method = ready(GSC(Temperature(0.2), update=update))
    targets, averages = [1.0] * SIZE, [[1.0] * SIZE, [1.0] * SIZE]
    for epoch in range(3):
        assert begin(method, epoch) == pytest.approx(targets, rel=1e-6)
        info_nce, structure, probabilities, cosines = reference(pairs_of(epoch, SHARED), targets, 0.2)
        found = method(pairs_of(epoch, SHARED))
        assert (found["info_nce"].item(), found["structure"].item()) == pytest.approx((info_nce, structure), rel=1e-6)
        posterior = low_component_posterior(-torch.tensor(cosines)).tolist()
        averages = [
            [(1 - update) * old + update * new for old, new in zip(average, measured, strict=True)]
            for average, measured in zip(averages, (probabilities, posterior), strict=True)
        ]
        targets = [min(pair) for pair in zip(*averages, strict=True)]


def test_with_full_targets_and_no_structure_term_it_is_infonce() -> None:
    method = GSC(structure=0)
    total = method.total(ready(method)(pairs_of(0)))
    torch.testing.assert_close(total, InfoNCE()(pairs_of(0))["info_nce"], rtol=1e-6, atol=0)


def test_a_pair_whose_structures_differ_loses_its_target() -> None:
    method = GSC()
    method.setup(TrainingPairs(torch.arange(40), torch.ones(40, dtype=torch.bool)))
    image = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = torch.cat([image[:10].roll(1, 0), image[10:]])  # the captions of the first ten are of one another's images
    method(Pairs(image, text, torch.arange(40), torch.arange(40)))
    targets = torch.tensor(begin(method, 1))
    assert targets[:10].max() < 0.5
    assert targets[10:].mean() > 0.9


def test_pairs_that_were_in_no_batch_keep_their_target() -> None:
    method = ready(GSC())
    assert begin(method, 0) == [1] * SIZE
    method(Pairs(*(None if tensor is None else tensor[1:] for tensor in pairs_of(0))))
    targets = begin(method, 1)
    assert targets[0] == 1
    assert max(targets[1:]) < 1


def test_a_repeated_call_changes_nothing() -> None:
    method = ready(GSC())
    first = method(pairs_of(1))
    measured = method.measured.clone()
    torch.testing.assert_close(method(pairs_of(1)), first, rtol=0, atol=0)
    assert torch.equal(method.measured, measured)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": -1}, "must be finite and >= 0, got -1"),
        ({"update": 0}, r"update must be in \(0, 1\], got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GSC(**options)
