"""RCL against the author's numbers, a pair-by-pair reference, and its limits."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from sdr_lightning.functional.robust_contrastive import Complementary
from sdr_lightning.methods import GCE, RCL, Temperature
from tests.methods.test_methods import SIZE, some_pairs
from tests.reference.losses import softmax

KINDS = get_args(Complementary)
SHARED = torch.tensor([0, 1, 0, 2, 3])
COSTS = {
    "log": lambda p: -math.log(1 - p),
    "tan": math.tan,
    "abs": lambda p: p,
    "exp": lambda p: math.exp(p - 1),
    "gce": lambda p: (1 - (1 - p) ** 0.5) / 0.5,
}


def rcl(kind: Complementary, tau: float) -> RCL:
    return RCL(kind, temperature=Temperature(tau, learnable=False)).double()


@pytest.mark.parametrize(
    ("kind", "sharp", "smooth"),
    [
        ("log", 2.202822551762702, 0.9520075693910315),
        ("tan", 0.9867286363835434, 0.7984813057625588),
        ("abs", 0.7559739615878445, 0.7558365224732051),
        ("exp", 1.8884980941779914, 1.8057478340759086),
        ("gce", 1.099923901904274, 0.843244833693263),
    ],
)
def test_rcl_equals_the_public_code(kind: Complementary, sharp: float, smooth: float) -> None:
    """penghu-cs/RCL at 1096a241: CCL with tau 0.05 and 0.3, q 0.5, halved because it sums both directions."""
    for tau, expected in ((0.05, sharp), (0.3, smooth)):
        assert rcl(kind, tau)(some_pairs())["complementary"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_the_same_image_are_not_negatives(kind: Complementary) -> None:
    pairs, expected = some_pairs(SHARED), 0.0
    scores = (pairs.image @ pairs.text.T / 0.2).tolist()
    for table in (scores, list(zip(*scores, strict=True))):
        for i in range(SIZE):
            costs = [COSTS[kind](p) for j, p in enumerate(softmax(table[i])) if SHARED[j] != SHARED[i]]
            expected += sum(costs) / SIZE / 2
    assert rcl(kind, 0.2)(pairs)["complementary"].item() == pytest.approx(expected, rel=1e-6)


def test_abs_is_the_mean_absolute_error_of_gce() -> None:
    expected = GCE(1.0, Temperature(0.3)).double()(some_pairs())["gce"]
    torch.testing.assert_close(rcl("abs", 0.3)(some_pairs())["complementary"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_are_pushed_apart_also_where_they_have_all_the_probability(kind: Complementary) -> None:
    """Two pairs whose captions are exchanged, in float32, where the probability of a negative rounds to 1."""
    image = torch.eye(2, requires_grad=True)
    pairs = some_pairs()._replace(image=image, text=torch.eye(2).flip(0), image_index=torch.arange(2))
    loss = rcl(kind, 0.05).float()(pairs)["complementary"]
    loss.backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
    if kind == "log":  # nearly (s_ij - s_ii) / tau, the mean over both queries of both directions
        assert loss.item() == pytest.approx(20.0)
        torch.testing.assert_close(image.grad, torch.tensor([[10.0, -10.0], [-10.0, 10.0]]))


def test_a_batch_without_negatives_costs_nothing() -> None:
    pairs = some_pairs(torch.zeros(SIZE, dtype=torch.int64))
    loss = rcl("log", 0.05)(pairs)["complementary"]
    loss.backward()
    assert loss.item() == 0
    assert pairs.image.grad is not None
    assert pairs.image.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "sin"}, "one of log, tan, abs, exp, gce, got 'sin'"),
        ({"kind": "log", "q": 0.5}, "kind 'log' has no q, got 0.5"),
        ({"kind": "gce", "q": 0.0}, r"q must be in \(0, 1\], got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RCL(**arguments)  # type: ignore[arg-type]
