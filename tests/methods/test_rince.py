"""RINCE against the author's numbers, a pair-by-pair reference, and its limits."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch

from sdr_lightning.methods import RINCE, InfoNCE, Temperature
from tests.methods.test_methods import SIZE, some_pairs

pytestmark = pytest.mark.filterwarnings("ignore:RINCE's density")
SHARED = torch.tensor([0, 1, 0, 2, 3])


def rince(q: float, density: float, tau: float) -> RINCE:
    return RINCE(q, density, Temperature(tau, learnable=False)).double()


@pytest.mark.parametrize(
    ("tau", "density", "q", "expected"),
    [
        (0.1, 0.001, 0.5, -93.01137682749997),
        (0.3, 0.01, 0.6, -5.876180267436896),
        (0.3, 0.01, 1.0, -11.70329808057107),
    ],
)
def test_rince_equals_the_public_code(tau: float, density: float, q: float, expected: float) -> None:
    """chingyaoc/RINCE at c7f85342: MoCo.contrastive_loss of moco-v3, the mean of both directions over 2 tau."""
    assert rince(q, density, tau)(some_pairs())["rince"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_rince_equals_a_pair_by_pair_reference(q: float) -> None:
    """With several captions of an image."""
    pairs, expected = some_pairs(SHARED), 0.0
    scores = (pairs.image @ pairs.text.T / 0.2).tolist()
    for table in (scores, list(zip(*scores, strict=True))):
        for i in range(SIZE):
            matched = [math.exp(table[i][j]) ** q / q for j in range(SIZE) if SHARED[j] == SHARED[i]]
            everything = (0.02 * sum(map(math.exp, table[i]))) ** q / q
            expected += (everything - sum(matched) / len(matched)) / SIZE / 2
    assert rince(q, 0.02, 0.2)(pairs)["rince"].item() == pytest.approx(expected, rel=1e-6)


def test_rince_is_infonce_in_the_limit_up_to_a_constant() -> None:
    pairs = some_pairs(SHARED)
    nearly = rince(1e-7, 0.02, 0.07)(pairs)["rince"]
    limit = InfoNCE(Temperature(0.07, learnable=False)).double()(pairs)["info_nce"]
    torch.testing.assert_close(nearly, limit + math.log(0.02), rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, pairs.image)[0] for loss in (nearly, limit)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [0.1, 1.0])
def test_a_pair_of_low_similarity_counts_less(q: float) -> None:
    """The slope of the loss in the cosine of a pair is proportional to e_ii^q, where lambda leaves negatives out."""
    text = torch.diag(torch.tensor([0.2, 1.0, 1.0]).double()).requires_grad_()  # cosines 0.2, 1 and 1
    pairs = some_pairs()._replace(image=torch.eye(3).double(), text=text, image_index=torch.arange(3))
    rince(q, 1e-40, 0.2)(pairs)["rince"].backward()
    assert text.grad is not None
    slopes = text.grad.diag()
    assert bool((slopes < 0).all())
    assert (slopes[0] / slopes[1]).item() == pytest.approx(math.exp(-q * 0.8 / 0.2), rel=1e-3)


@pytest.mark.parametrize(("density", "sign"), [(1.1 / SIZE, 1), (0.9 / SIZE, -1)])
def test_lambda_below_one_over_the_batch_pulls_everything_together(density: float, sign: int) -> None:
    """Where all cosines are equal, the sum of the slopes in them is negative then: the loss falls as they grow."""
    same = torch.tensor([[1.0, 0.0]]).double().expand(SIZE, 2)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    rince(0.5, density, 0.2)(some_pairs()._replace(image=scale * same, text=same))["rince"].backward()
    assert scale.grad is not None
    assert scale.grad * sign > 0
    with nullcontext() if sign > 0 else pytest.warns(UserWarning, match="is below 1 / 5, one over the batch"):
        rince(0.5, density, 0.2)(some_pairs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": 0.0}, r"q must be in \(0, 1\], got 0.0: for its limit 0, use InfoNCE"),
        ({"density": 0.0}, "density must be positive, got 0"),
        ({"temperature": Temperature(0.1)}, "cannot be learned"),
        ({"q": 1.0, "temperature": Temperature(0.01, learnable=False)}, "at most 80, got 1 / 0.01: float32 overflows"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RINCE(**arguments)  # type: ignore[arg-type]
