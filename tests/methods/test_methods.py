"""Each method against an independent reference, and what it refuses. What every method promises: test_contract.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.mixture import low_component_posterior
from sdr_lightning.methods import (
    AGREE,
    GCE,
    NCR,
    SDR,
    InfoNCE,
    Method,
    Oracle,
    SigLIP,
    Temperature,
)
from sdr_lightning.types import Pairs, TrainingPairs

SIZE = 5


def training_pairs(number: int) -> TrainingPairs:
    return TrainingPairs(torch.arange(number), torch.ones(number, dtype=torch.bool))


def ncr(warming_up: bool, noisy: bool = True) -> NCR:
    method = NCR()
    method.setup(training_pairs(SIZE))
    method.warming_up.fill_(warming_up)
    method.with_noisy.fill_(noisy)
    method.clean_probability.copy_(torch.tensor([1.0, 0.9, 0.2, 0.7, 0.1]))
    return method


def oracle() -> Oracle:
    method = Oracle()
    right = torch.tensor([True, False, True, True, False])
    method.setup(training_pairs(SIZE)._replace(is_original=right))
    return method


def agreeing_pairs(wrong: int = 500) -> TrainingPairs:
    """Of 2,000 images with a caption each, of which the first ``wrong`` are of one another's images; teachers that agree."""
    image = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    text = torch.cat([image[:wrong].roll(1, 0), image[wrong:]]) @ torch.randn(
        8, 6, generator=torch.Generator().manual_seed(1)
    )
    return TrainingPairs(torch.arange(2000), torch.arange(2000) >= wrong, image, text)


def some_pairs(ids: Tensor | None = None) -> Pairs:
    """Five pairs; those of the public code's numbers below."""
    image = F.normalize(torch.arange(20, dtype=torch.float64).mul(1.7).sin().reshape(SIZE, 4), dim=1)
    text = F.normalize(torch.arange(20, dtype=torch.float64).mul(2.3).cos().reshape(SIZE, 4), dim=1)
    text = F.normalize(image + text, dim=1)
    teachers = torch.arange(15, dtype=torch.float64).cos().reshape(SIZE, 3), torch.arange(15.0).sin().reshape(SIZE, 3)
    index = torch.arange(SIZE)
    return Pairs(image.requires_grad_(), text.requires_grad_(), index if ids is None else ids, index, *teachers)


# --- InfoNCE and SigLIP


def test_infonce_equals_the_public_code_and_sdrs_matching_term() -> None:
    """mlfoundations/open_clip at 89fb801f: ClipLoss at scale 1 / 0.07."""
    found = InfoNCE()(some_pairs())["info_nce"]
    assert found.item() == pytest.approx(4.0769901717812544, rel=1e-6)
    shared = some_pairs(torch.tensor([0, 1, 0, 2, 3]))
    torch.testing.assert_close(InfoNCE()(shared)["info_nce"], SDR({"itc": 1})(shared)["itc"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("scale", "bias", "expected"), [(10.0, -10.0, 4.188959640507443), (5.0, -1.0, 7.807465161426116)]
)
def test_siglip_equals_the_public_code(scale: float, bias: float, expected: float) -> None:
    """mlfoundations/open_clip at 89fb801f: SigLipLoss."""
    assert SigLIP(scale, bias)(some_pairs())["sigmoid"].item() == pytest.approx(expected, rel=1e-6)


def test_siglip_counts_captions_of_the_same_image_as_positives() -> None:
    ids = torch.tensor([0, 1, 0, 2, 3])
    pairs, expected = some_pairs(ids), 0.0
    scores = (pairs.image @ pairs.text.T).tolist()
    for i in range(SIZE):
        for j in range(SIZE):
            sign = 1 if ids[i] == ids[j] else -1
            expected += math.log1p(math.exp(-sign * (10 * scores[i][j] - 10))) / SIZE
    assert SigLIP()(pairs)["sigmoid"].item() == pytest.approx(expected, rel=1e-6)


# --- GCE


@pytest.mark.parametrize(
    ("tau", "q", "expected"),
    [(0.07, 0.7, 0.997984886533283), (0.3, 0.7, 0.9229492358231473), (0.07, 1, 0.7578003223479606)],
)
def test_gce_equals_the_public_code(tau: float, q: float, expected: float) -> None:
    """HanxunH/Active-Passive-Losses at 0c207f77: GeneralizedCrossEntropy, the mean of both directions at scale 1 / tau."""
    assert GCE(q, Temperature(tau)).double()(some_pairs())["gce"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_gce_equals_a_pair_by_pair_reference(q: float) -> None:
    """With several captions of an image."""
    ids = [0, 1, 0, 2, 3]
    pairs, expected = some_pairs(torch.tensor(ids)), 0.0
    scores = (pairs.image @ pairs.text.T / 0.2).tolist()
    for table in (scores, list(zip(*scores, strict=True))):
        for i in range(SIZE):
            total = sum(math.exp(score) for score in table[i])
            losses = [(1 - (math.exp(table[i][j]) / total) ** q) / q for j in range(SIZE) if ids[i] == ids[j]]
            expected += sum(losses) / len(losses) / SIZE / 2
    assert GCE(q, Temperature(0.2)).double()(pairs)["gce"].item() == pytest.approx(expected, rel=1e-6)


def test_gce_is_infonce_in_the_limit_and_bounded_otherwise() -> None:
    pairs, opposite = some_pairs(torch.tensor([0, 1, 0, 2, 3])), some_pairs()
    nearly, limit = GCE(1e-9)(pairs)["gce"], InfoNCE()(pairs)["info_nce"]
    torch.testing.assert_close(nearly, limit, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, pairs.image)[0] for loss in (nearly, limit)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    opposite = opposite._replace(text=-opposite.image.detach())
    assert InfoNCE(Temperature(0.01))(opposite)["info_nce"] > 100
    loss = GCE(0.5, Temperature(0.01))(opposite)["gce"]
    loss.backward()
    assert 1.99 < loss.item() <= 2
    assert opposite.image.grad is not None
    assert bool(opposite.image.grad.isfinite().all())


# --- NCR


def test_ncrs_costs_and_predictions_equal_the_public_code() -> None:
    """XLearning-SCU/2021-NeurIPS-NCR at 60256ba1: ContrastiveLoss in modes eval_loss, warmup (over 5) and predict."""
    pairs, method = some_pairs(), ncr(True).double()
    costs = [0.6634543517244935, 0.15265835995643684, 0.14708798611395568, 0.8325849488790684, 0.050912271259414776]
    assert method._mean_cost(pairs).tolist() == pytest.approx(costs)
    assert method(pairs)["triplet"].item() == pytest.approx(0.36933958358667385)
    method.clean_probability.zero_()
    labels, counts = method._soft_labels(pairs)
    assert labels.tolist() == pytest.approx([0.0, 0.7085371947501717, 0.7244941401935925, 0.0, 1.0])
    assert counts.tolist() == [1, 1, 1, 1, 1]


def test_ncr_with_equal_labels_equals_the_public_code() -> None:
    """The same commit, mode train, label 0.6 for every pair, over 5."""
    method, pairs = ncr(False).double(), some_pairs()
    method._soft_labels = lambda _: (torch.full((SIZE,), 0.6).double(), torch.ones(SIZE).double())  # type: ignore[method-assign]
    assert method(pairs)["triplet"].item() == pytest.approx(0.6349405409628821, rel=1e-6)


def slow_ncr(pairs: Pairs, probability: list[float], with_noisy: bool, margin: float = 0.2) -> float:
    """The steps 3 and 4 of NCR's docstring, pair by pair."""
    scores, ids = (pairs.image @ pairs.text.T).tolist(), pairs.image_index.tolist()
    everyone = range(len(ids))

    def hinges(i: int, margin: float) -> tuple[list[float], list[float]]:
        others = [j for j in everyone if ids[j] != ids[i]]
        to_text = [max(0.0, margin + scores[i][j] - scores[i][i]) for j in others]
        return to_text, [max(0.0, margin + scores[j][i] - scores[i][i]) for j in others]

    predicted = [min(margin, max(0.0, margin - sum(map(sum, hinges(i, margin))) / len(ids) / 2)) for i in everyone]
    greatest = sorted(predicted)[-(len(ids) // 10 + 1) :]
    total = 0.0
    for i in everyone:
        label = min(1.0, predicted[i] / (sum(greatest) / len(greatest)))
        if probability[i] > 0.5:
            label = probability[i] + (1 - probability[i]) * label
        elif not with_noisy:
            continue
        total += sum(map(max, hinges(i, margin * (10**label - 1) / 9)))
    return total / len(ids)


@pytest.mark.parametrize("with_noisy", [False, True])
def test_ncr_equals_a_pair_by_pair_reference(with_noisy: bool) -> None:
    method, pairs = ncr(False, with_noisy).double(), some_pairs(torch.tensor([0, 1, 0, 2, 3]))
    expected = slow_ncr(pairs, method.clean_probability.tolist(), with_noisy)
    assert method(pairs)["triplet"].item() == pytest.approx(expected, rel=1e-6)


def test_ncr_tells_mismatched_pairs_apart_after_the_warm_up() -> None:
    method = NCR(warmup_epochs=2, noisy_from=3)
    method.setup(training_pairs(100))
    losses = torch.cat([torch.linspace(0, 0.3, 60), torch.linspace(2, 2.3, 40)])
    for epoch, (clean, warming_up, noisy) in enumerate(
        [(1, True, False), (1, True, False), (0.6, False, False), (0.6, False, True)]
    ):
        method.begin_epoch(epoch, lambda _: losses)
        assert method.scalars()["clean_share"].item() == pytest.approx(clean)
        assert (bool(method.warming_up), bool(method.with_noisy)) == (warming_up, noisy)


@pytest.mark.parametrize("make", [lambda: ncr(False), lambda: oracle()], ids=["NCR", "Oracle"])
def test_methods_with_probabilities_need_pair_indices_and_a_setup(make: Callable[[], Method]) -> None:
    with pytest.raises(ValueError, match="the batch must hold pair_index"):
        make()(some_pairs()._replace(pair_index=None))
    with pytest.raises(ValueError, match="call setup with the training pairs first"):
        Oracle()(some_pairs())


def test_the_posterior_of_equal_values_is_one_and_of_bad_values_refused() -> None:
    assert low_component_posterior(torch.ones(4)).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="two finite values, got 2 of which 1 are"):
        low_component_posterior(torch.tensor([1.0, math.nan]))


# --- AGREE and the oracle


@pytest.mark.parametrize("weights", [[1.0, 0.9, 0.2, 0.7, 0.1], [1.0, 1.0, 0.0, 1.0, 0.0], [0.0] * SIZE])
def test_a_pair_counts_by_its_probability_as_query_and_as_positive(weights: list[float]) -> None:
    method, pairs = oracle().double(), some_pairs(torch.tensor([0, 1, 0, 2, 3]))
    method.clean_probability.copy_(torch.tensor(weights))
    scores, expected = (pairs.image @ pairs.text.T / method.temperature()).tolist(), 0.0
    for i, weight in enumerate(weights):
        for row in (scores[i], [other[i] for other in scores]):
            same = [j for j in range(SIZE) if pairs.image_index[j] == pairs.image_index[i]]
            total, mass = math.log(sum(map(math.exp, row))), sum(weights[j] for j in same) or 1
            loss = sum(weights[j] / mass * (total - row[j]) for j in same)
            expected += weight * loss / 2 / (sum(weights) or 1)
    assert method(pairs)["info_nce"].item() == pytest.approx(expected, rel=1e-6)


def test_the_oracle_of_clean_data_is_infonce() -> None:
    method = Oracle()
    method.setup(training_pairs(SIZE))
    torch.testing.assert_close(method(some_pairs()), InfoNCE()(some_pairs()), rtol=1e-6, atol=0)


def test_agree_weights_the_pairs_that_the_teachers_agree_on() -> None:
    method, training = AGREE(folds=2), agreeing_pairs()
    method.setup(training)
    assert method.clean_probability[training.is_original].mean() > 0.9
    assert method.clean_probability[~training.is_original].mean() < 0.2
    assert method.scalars()["wrong_share"].item() == pytest.approx(0.25, abs=0.02)
    clean = AGREE(folds=2)
    clean.setup(agreeing_pairs(wrong=0))
    assert clean.clean_probability.tolist() == [1] * 2000


def test_agree_counts_all_pairs_equally_where_the_teachers_do_not_agree() -> None:
    method, training = AGREE(folds=2), agreeing_pairs()
    placebo = training._replace(text_teacher=torch.randn(2000, 6, generator=torch.Generator().manual_seed(3)))
    with pytest.warns(UserWarning, match="no more on the training pairs than on shuffled ones"):
        method.setup(placebo)
    assert method.scalars()["wrong_share"] == 1
    torch.testing.assert_close(method(some_pairs()), InfoNCE()(some_pairs()), rtol=1e-6, atol=0)


def test_the_oracle_refuses_data_without_an_unchanged_pair() -> None:
    with pytest.raises(ValueError, match="changed every training pair"):
        Oracle().setup(training_pairs(SIZE)._replace(is_original=torch.zeros(SIZE, dtype=torch.bool)))


def test_agree_needs_both_teachers() -> None:
    assert AGREE().needs == {"image_teacher", "text_teacher"}
    with pytest.raises(ValueError, match="one of them is absent"):
        AGREE().setup(agreeing_pairs()._replace(text_teacher=None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigLIP(scale=0), "scale must be positive, got 0"),
        (lambda: GCE(q=0), r"q must be in \(0, 1\], got 0: for its limit 0, use InfoNCE"),
        (lambda: GCE(q=1.5), r"q must be in \(0, 1\], got 1.5"),
        (lambda: NCR(margin=0), "margin must be positive, got 0"),
        (lambda: NCR(warmup_epochs=0), "at least 1 warm-up epoch"),
        (lambda: NCR(threshold=1), r"threshold must be in \[0, 1\), got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
