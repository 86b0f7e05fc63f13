"""Agreement of unimodal features, against plain loops and by its properties; LEMoN's distance against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional import agreement
from sdr_lightning.functional.agreement import SHUFFLES, PairAgreement, pair_agreement
from sdr_lightning.functional.lemon import lemon_distance
from tests.reference import agreement as reference


def pairs(images: int, captions: int, wrong: float, level: str = "image", noise: float = 1.0) -> tuple[Tensor, ...]:
    """Features of images and captions with common content, of which a share is mismatched; and which pairs are right."""
    generator = torch.Generator().manual_seed(images)
    content = torch.randn(images, 12, generator=generator)
    image = content @ torch.randn(12, 20, generator=generator) + noise * torch.randn(images, 20, generator=generator)
    index = torch.arange(images).repeat_interleave(captions)
    text = (content @ torch.randn(12, 16, generator=generator))[index]
    text += noise * torch.randn(len(index), 16, generator=generator)
    paired = index.clone()
    if level == "image":
        chosen = torch.randperm(images, generator=generator)[: round(wrong * images)]
        receiver = torch.arange(images)
        receiver[chosen] = chosen.roll(1)
        paired = receiver[index]
    else:
        chosen = torch.randperm(len(index), generator=generator)[: round(wrong * len(index))]
        paired[chosen] = index[chosen.roll(1)]
    return image, text, paired, paired == index


def expected_calibration_error(probability: Tensor, right: Tensor) -> float:
    bins = (probability * 10).long().clamp(max=9)
    gaps = [
        ((probability[bins == k].mean() - right[bins == k].float().mean()).abs() * (bins == k).float().mean())
        for k in bins.unique()
    ]
    return float(sum(gaps))


@pytest.mark.parametrize(("level", "rounds"), [("caption", 2), ("image", 1)])
def test_agreement_equals_plain_loops(level: agreement.Level, rounds: int) -> None:
    image, text, index, _ = pairs(100, 2, 0.4, noise=3.0)
    found = pair_agreement(image, text, index, level, folds=5, rounds=rounds, ridge=0.5, seed=3)
    weights = np.ones(len(index))
    for done in range(rounds):
        given, shuffled = reference.scores(
            image.double().numpy(), text.double().numpy(), index.tolist(), weights, 5, 0.5, 3, SHUFFLES
        )
        if level == "image":
            for row in (given, *shuffled):
                row[:] = [row[(index == i).numpy()].mean() for i in index.tolist()]
        given, shuffled = (np.round(values * 2**16) / 2**16 for values in (given, shuffled))
        if done == 0:
            share, _ = agreement._share(given, shuffled, index.numpy())
        weights = reference.probabilities(given, shuffled, share)
        assert 0 < weights.mean() < 1, done
    np.testing.assert_allclose(found.score.numpy(), given, atol=3e-5)
    np.testing.assert_allclose(found.probability.numpy(), weights, atol=3e-3)
    assert found.share == pytest.approx(share)


@pytest.mark.parametrize(("wrong", "level"), [(0.0, "image"), (0.4, "caption"), (0.6, "image")])
def test_wrong_pairs_are_found_and_probabilities_are_calibrated(wrong: float, level: agreement.Level) -> None:
    image, text, index, right = pairs(3000, 2, wrong, level, noise=2.0)
    found = pair_agreement(image, text, index)
    assert found.share == pytest.approx(wrong, abs=0.05)
    assert found.interval[0] <= found.share <= found.interval[1]
    assert expected_calibration_error(found.probability, right) < 0.05
    if wrong:
        assert roc_auc_score(right, found.score) > 0.95
    order = found.score.argsort()
    assert bool((found.probability[order].diff() >= 0).all())  # monotone in the score


def test_the_captions_of_an_image_are_judged_together_at_level_image() -> None:
    image, text, index, right = pairs(400, 4, 0.4, "image", noise=3.0)
    alone, together = (pair_agreement(image, text, index, level) for level in ("caption", "image"))
    assert roc_auc_score(right, together.score) > roc_auc_score(right, alone.score) + 0.02
    for row in range(400):
        assert len(together.probability[index == row].unique()) == 1


def same(first: PairAgreement, second: PairAgreement, order: Tensor) -> bool:
    return (
        torch.equal(first.score[order], second.score)
        and torch.equal(first.probability[order], second.probability)
        and first[1:3] == second[1:3]
    )


def test_the_order_of_pairs_and_the_number_of_threads_change_no_bit() -> None:
    image, text, index, _ = pairs(300, 3, 0.3)
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(1))
    found = pair_agreement(image, text, index)
    assert same(found, pair_agreement(image, text[order], index[order]), order)
    per_pair = pair_agreement(image[index], text)  # the image of each pair, equal rows are the same image
    assert same(per_pair, pair_agreement(image[index[order]], text[order]), order)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        assert same(found, pair_agreement(image, text, index), torch.arange(len(index)))
    finally:
        torch.set_num_threads(threads)


def test_teachers_without_agreement_give_no_probability() -> None:
    image, text, index, _ = pairs(200, 3, 0.0)
    for other in (torch.randn(text.shape, generator=torch.Generator().manual_seed(5)), torch.ones_like(text)):
        found = pair_agreement(image, other, index)
        assert not found.probability.any()
        assert (found.share, found.interval[1]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "pair"}, "caption or image, got 'pair'"),
        ({"folds": 1}, "at least 2 folds, at least 1 round and a positive ridge, got 1, 2 and 1.0"),
        ({"folds": 20}, "at least 6 images in each of 20 folds, 120 in all; got 60"),
        ({"image_index": torch.arange(60)}, "got 60 and 120"),
        ({"text_features": torch.full((120, 16), math.nan)}, "the text features hold NaN"),
    ],
)
def test_bad_input_is_refused_in_one_line(options: dict[str, object], message: str) -> None:
    image, text, index, _ = pairs(60, 2, 0.2)
    given = {"image_features": image, "text_features": text, "image_index": index} | options
    with pytest.raises(ValueError, match=message):
        pair_agreement(**given)  # type: ignore[arg-type]


def test_lemons_distance_equals_its_formula() -> None:
    image, text, index, _ = pairs(12, 2, 0.3)
    text = text @ torch.randn(16, 20, generator=torch.Generator().manual_seed(2))
    found = lemon_distance(image, text, index, neighbours=3, beta=2, gamma=3, tau1=0.5, tau2=1.5)
    x, t = normalize(image.double(), dim=1)[index], normalize(text.double(), dim=1)
    for c in range(len(index)):
        expected = 1 - x[c] @ t[c]
        for weight, here, other in ((2, x, t), (3, t, x)):
            others = [j for j in range(len(index)) if index[j] != index[c]]
            # Captions of an image are equally near by their image: the first come first.
            near = sorted(others, key=lambda j: (round(float(1 - here[c] @ here[j]), 6), j))[:3]
            for j in near:
                discount = torch.exp(-0.5 * (1 - here[c] @ here[j]) - 1.5 * (1 - x[j] @ t[j]))
                expected = expected + weight * (1 - other[c] @ other[j]) * discount / 3
        assert found[c].item() == pytest.approx(expected.item(), abs=1e-5)
