"""Mixtures of two beta distributions."""

import math

import pytest
import torch

from sdr_lightning.functional.beta_mixture import low_beta_posterior


def slow_posterior(values, iterations=10):
    """Expectation maximisation, value by value."""
    low, high = min(values), max(values)
    scaled = [min(max((value - low) / (high - low), 1e-4), 1 - 1e-4) for value in values]
    groups = [(0.5, 1.0, 2.0), (0.5, 2.0, 1.0)]

    def density(x, a, b):
        log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + (a - 1) * math.log(x) + (b - 1) * math.log(1 - x)
        return math.exp(log)

    def expectation():
        joint = [[weight * density(x, a, b) for weight, a, b in groups] for x in scaled]
        return [[value / sum(row) for value in row] for row in joint]

    for _ in range(iterations):
        posterior, groups = expectation(), []
        for group in range(2):
            mass = [row[group] for row in posterior]
            mean = sum(m * x for m, x in zip(mass, scaled, strict=True)) / sum(mass)
            variance = sum(m * (x - mean) ** 2 for m, x in zip(mass, scaled, strict=True)) / sum(mass)
            a = mean * (mean * (1 - mean) / variance - 1)
            groups.append((sum(mass) / len(mass), a, a * (1 - mean) / mean))
    means = [a / (a + b) for _, a, b in groups]
    found = [row[means.index(min(means))] for row in expectation()]
    corrected = []
    for x, p in zip(scaled, found, strict=True):
        between = [q for y, q in zip(scaled, found, strict=True) if x <= y < min(means) or max(means) < y <= x]
        corrected.append(max(between) if x < min(means) else min(between) if x > max(means) else p)
    return corrected


@pytest.mark.parametrize(("iterations", "zeros"), [(1, 0), (10, 0), (10, 15)])
def test_the_posterior_equals_a_value_by_value_reference(iterations, zeros):
    generator = torch.Generator().manual_seed(0)
    low, high = torch.rand(30, generator=generator), 2 + torch.rand(20, generator=generator)
    values = torch.cat([torch.zeros(zeros), low, high]).double()
    expected = slow_posterior(values.tolist(), iterations)
    assert low_beta_posterior(values, iterations).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_posterior_equals_the_public_code_between_the_ends():
    """xu5zhao/BiCro at 02316315: BetaMixture1D(max_iters=10).posterior(x, 0)."""
    values = torch.cat([torch.linspace(0, 0.4, 12), torch.linspace(0.5, 1, 8)]).double()
    expected = [0.9434360919107682, 0.9193972767941344, 0.8979402665756404, 0.8767444998546136, 0.8548588579667296]
    expected += [0.8317138931753004, 0.8068853370882049, 0.7800136009074929, 0.7507729036383571, 0.7188617245426013]
    expected += [0.6840056403551593, 0.5712851179655695, 0.4751711034758074, 0.36835755118501096, 0.2571261483460992]
    expected += [0.15237134226739224, 0.0679136653271409, 0.015774385381809586]
    found = low_beta_posterior(values)
    assert found[1:-1].tolist() == pytest.approx(expected, abs=1e-6)
    assert found[0] > found[1]
    assert found[-1] < found[-2]


def test_the_posterior_tells_two_groups_apart_on_any_scale_in_any_order():
    torch.manual_seed(1)
    low, high = (torch.distributions.Beta(*shape).sample((400,)) for shape in ((2.0, 12.0), (12.0, 3.0)))
    values, order = torch.cat([low, high]), torch.randperm(800)
    found = low_beta_posterior(values)
    assert found[:400].mean() > 0.95
    assert found[400:].mean() < 0.05
    torch.testing.assert_close(low_beta_posterior((5 * values - 3)[order]), found[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("zeros", [1, 60])
def test_the_least_values_are_never_the_worst(zeros):
    """Many values of exactly 0, as of pairs without any loss, where a beta distribution may be high at both ends."""
    generator = torch.Generator().manual_seed(0)
    low, high = 0.05 + 0.05 * torch.rand(60, generator=generator), 0.8 + 0.2 * torch.rand(40, generator=generator)
    found = low_beta_posterior(torch.cat([torch.zeros(zeros), low, high]))
    assert found[:zeros].min() > 0.9
    assert found[-40:].max() < 0.5


def test_equal_values_are_low_and_bad_ones_are_refused():
    assert low_beta_posterior(torch.ones(4)).tolist() == [1] * 4
    apart = low_beta_posterior(torch.tensor([0.0, 0.0, 1.0, 1.0])).tolist()
    assert apart == pytest.approx([1, 1, 0, 0], abs=1e-3)
    with pytest.raises(ValueError, match="two finite values, got 2 of which 1 are"):
        low_beta_posterior(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        low_beta_posterior(torch.rand(4), iterations=0)
