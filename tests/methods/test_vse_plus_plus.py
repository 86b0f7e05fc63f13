"""VSE++ against the authors' numbers, a pair-by-pair reference, and its schedule."""

from __future__ import annotations

import pytest
import torch

from sdr_lightning.methods import VSEPlusPlus
from tests.methods.test_methods import SIZE, some_pairs

SHARED = torch.tensor([0, 1, 0, 2, 3])


def vse(warming_up: bool) -> VSEPlusPlus:
    return VSEPlusPlus(warmup_epochs=int(warming_up)).double()


@pytest.mark.parametrize(("warming_up", "expected"), [(True, 1.8466979179333691), (False, 0.8964338793206768)])
def test_vse_equals_the_public_code(warming_up: bool, expected: float) -> None:
    """naver-ai/pcmepp at 8829c0d7 and fartashf/vsepp at abe382fd: TripletLoss and ContrastiveLoss without and with
    max_violation, margin 0.2, over the 5 pairs."""
    assert vse(warming_up)(some_pairs())["triplet"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("warming_up", [True, False])
def test_captions_of_the_same_image_are_not_negatives(warming_up: bool) -> None:
    pairs, expected = some_pairs(SHARED), 0.0
    scores = (pairs.image @ pairs.text.T).tolist()
    for table in (scores, list(zip(*scores, strict=True))):
        for i in range(SIZE):
            others = [j for j in range(SIZE) if SHARED[j] != SHARED[i]]
            costs = [max(0.0, 0.2 + table[i][j] - table[i][i]) for j in others]
            expected += (sum(costs) if warming_up else max(costs)) / SIZE
    assert vse(warming_up)(pairs)["triplet"].item() == pytest.approx(expected, rel=1e-6)


def test_only_the_hardest_negative_has_a_gradient_after_the_warm_up() -> None:
    """Of the first image, captions 1 and 2 violate the margin."""
    text = torch.tensor([[0.7, 0.0, 0.0], [0.6, 1.0, 0.0], [0.55, 0.0, 1.0]])
    for warming_up, expected in ((True, [-2.0, 1.0, 1.0]), (False, [-1.0, 1.0, 0.0])):
        pairs = some_pairs()._replace(
            image=torch.eye(3), text=text.clone().requires_grad_(), image_index=torch.arange(3)
        )
        (3 * vse(warming_up)(pairs)["triplet"]).backward()
        assert pairs.text.grad is not None
        assert pairs.text.grad[:, 0].tolist() == expected


def test_the_warm_up_ends_after_its_epochs() -> None:
    method, seen = VSEPlusPlus(warmup_epochs=2), []
    for epoch in range(4):
        method.begin_epoch(epoch, lambda _: torch.empty(0))
        seen.append(method.scalars()["warming_up"].item())
    assert seen == [1, 1, 0, 0]
    assert VSEPlusPlus(warmup_epochs=0).scalars()["warming_up"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"margin": 0.0}, "margin must be positive, got 0"), ({"warmup_epochs": -1}, "at least 0, got -1")],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VSEPlusPlus(**arguments)  # type: ignore[arg-type]
