"""DECL against the public code and a pair-by-pair reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.special import digamma, gammaln
from torch import Tensor

from sdr_lightning.functional.evidential import evidential_losses
from sdr_lightning.methods import DECL, Measure
from sdr_lightning.types import Pairs
from tests.methods.stateful import SHARED, SIZE, pairs_of, ready

# QinYang79/DECL at 1b0a7756: DECL.warmup_batch (three steps) and train_batch (three steps, with the predictions RIGHT), given
# cosines as sims_tanh, eta 0.5 and mu 2: loss_edl, loss_rdh, K.
RIGHT = [1.0, 1.0, 0.0, 1.0, 0.0]
STEPS = [
    (6.755998108057957, 1.8466979179333691, 4),
    (6.760983221300241, 1.1005302283054104, 4),
    (6.646391193480407, 1.0033165899749894, 3),
    (6.502267322887333, 0.5953220022077064, 3),
    (6.312274399586032, 0.7462938094393021, 2),
    (6.144547483754273, 0.6419040125191158, 2),
]
GRADIENT = [-1.3286525974600263, 0.740291649913405, -0.5178681850743073, -1.1814831895077011]  # last step, first image


def test_losses_annealing_and_gradient_equal_the_public_code() -> None:
    method = ready(DECL(decay=0.5, hardest=2))
    for step, (evidential, hinge, negatives) in enumerate(STEPS):
        pairs = pairs_of(step)
        if step == 3:
            method.clean_probability.copy_(torch.tensor(RIGHT))
        assert method.negatives(SIZE) == negatives
        terms = method(pairs)
        assert (terms["evidential"] + 0.1 * terms["divergence"]).item() == pytest.approx(evidential, rel=1e-6)
        assert 0.8 * terms["hinge"].item() == pytest.approx(hinge, rel=1e-6)
        method.after_step()
    gradient = torch.autograd.grad(method.total(terms), pairs.image)[0]
    assert gradient[0].tolist() == pytest.approx(GRADIENT, rel=1e-6)


@pytest.mark.parametrize(("epoch", "right"), [(0, [0, 0, 0, 0, 1]), (5, [0, 0, 1, 0, 1])])
def test_the_pairs_that_count_as_right_equal_those_of_the_public_code(epoch: int, right: list[int]) -> None:
    """The same commit: get_correspondence of train.py."""
    method = ready(DECL())
    method.begin_epoch(2, measure(pairs_of(epoch)))
    assert (method.clean_probability >= 0.5).int().tolist() == right
    assert method.scalars()["clean_share"].item() == pytest.approx(sum(right) / SIZE)


def measure(pairs: Pairs) -> Measure:
    return lambda per_pair: per_pair(pairs).detach().float()


def reference(pairs: Pairs, right: list[float], tau: float, negatives: int) -> dict[str, float]:
    """The terms by the docstrings, pair by pair, without other captions of the same image."""
    scores, ids = (pairs.image @ pairs.text.T).tolist(), pairs.image_index.tolist()
    found = dict.fromkeys(("evidential", "divergence", "hinge"), 0.0)
    for i in range(SIZE):
        for row in (scores[i], [other[i] for other in scores]):
            classes = [j for j in range(SIZE) if j == i or ids[j] != ids[i]]
            alpha = {j: math.exp(row[j] / tau) + 1 for j in classes}
            total = sum(alpha.values())
            for j in classes:
                target = right[i] if j == i else 0.0
                found["evidential"] += (target - alpha[j] / total) ** 2 / SIZE
                found["evidential"] += alpha[j] * (total - alpha[j]) / (total**2 * (total + 1)) / SIZE
            wrong = {j: 1.0 if j == i and right[i] else alpha[j] for j in classes}
            total = sum(wrong.values())
            divergence = gammaln(total) - gammaln(len(classes))
            divergence += sum((a - 1) * (digamma(a) - digamma(total)) - gammaln(a) for a in wrong.values())
            found["divergence"] += divergence / SIZE
            costs = [max(0.0, 0.2 + row[j] - row[i]) if ids[j] != ids[i] else 0.0 for j in range(SIZE)]
            found["hinge"] += right[i] * sum(sorted(costs)[-negatives:]) / negatives
    return found


@pytest.mark.parametrize("right", [[1.0] * SIZE, RIGHT, [0.0] * SIZE])
@pytest.mark.parametrize("ids", [SHARED, None])
def test_terms_equal_a_pair_by_pair_reference(right: list[float], ids: Tensor | None) -> None:
    method = ready(DECL(tau=0.3, hardest=2, decay=10))
    method.clean_probability.copy_(torch.tensor(right) * 0.8)
    found = {name: value.item() for name, value in method(pairs_of(0, ids)).items()}
    assert found == pytest.approx(reference(pairs_of(0, ids), right, 0.3, negatives=2), rel=1e-6)


def test_the_divergence_is_zero_without_evidence_for_wrong_matches_only() -> None:
    evidence = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
    _, divergence = evidential_losses(evidence, torch.tensor([1.0, 1.0, 0.0]), torch.ones(3, 3, dtype=torch.bool))
    assert divergence[:2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert divergence[2] > 0.1


def test_evidence_for_a_pair_grows_if_it_counts_as_right_and_shrinks_otherwise() -> None:
    evidence = (pairs_of(3).image @ pairs_of(3).text.T / 0.1).detach().exp().requires_grad_()
    losses = evidential_losses(evidence, torch.tensor(RIGHT), torch.ones(SIZE, SIZE, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), evidence)
    assert (gradient.diag() < 0).tolist() == [right == 1 for right in RIGHT]


def test_the_probability_compares_a_pair_with_its_strongest_rival_of_another_image() -> None:
    method = ready(DECL(tau=0.5))
    method.begin_epoch(0, measure(pairs_of(0)))
    assert method.clean_probability.tolist() == [1] * SIZE  # the warm-up
    pairs = pairs_of(0, SHARED)
    method.begin_epoch(2, measure(pairs))
    evidence = (pairs.image @ pairs.text.T / 0.5).exp()
    both = (evidence + evidence.T).tolist()
    for i, found in enumerate(method.clean_probability.tolist()):
        rival = max(both[i][j] for j in range(SIZE) if SHARED[j] != SHARED[i])
        assert found == pytest.approx(both[i][i] / (both[i][i] + rival), rel=1e-6)
    method.begin_epoch(3, measure(pairs._replace(image_index=torch.zeros(SIZE, dtype=torch.int64))))
    assert method.clean_probability.tolist() == [1] * SIZE  # no rivals


@pytest.mark.parametrize(("step", "pairs", "expected"), [(0, 128, 127), (1000, 128, 102), (9999, 128, 5), (9999, 3, 2)])
def test_negatives_become_fewer_by_step(step: int, pairs: int, expected: int) -> None:
    method = DECL()
    method.step.fill_(step)
    assert method.negatives(pairs) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.01}, "tau must be at least 0.05, got 0.01"),
        ({"margin": 0}, "margin must be positive, got 0"),
        ({"hinge": -1}, "weights must be finite and >= 0, got hinge -1, divergence 0.1"),
        ({"decay": -1}, "decay must be >= 0 and hardest at least 1, got -1 and 5"),
        ({"hardest": 0}, "hardest at least 1, got 0.025 and 0"),
        ({"warmup_epochs": -1}, "warm-up must be at least 0 epochs, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DECL(**options)
