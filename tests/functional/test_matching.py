import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sdr_lightning.functional.matching import UNLABELLED, draw_negatives, matching_loss, negative_weights
from tests.reference import losses as reference


def unit_rows(count, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Weights.


@pytest.mark.parametrize(("temperature", "by_text"), [(0.07, False), (torch.tensor(0.5, dtype=torch.float64), True)])
def test_weights_equal_the_reference_on_a_gallery_of_another_size(temperature, by_text):
    queries, gallery = unit_rows(4), unit_rows(7, seed=1)
    query_ids, gallery_ids = [9, 4, 7, 9], [4, 9, 4, 2, 9, 9, 7]
    if by_text:  # positives by image or by caption
        query_ids = [list(pair) for pair in zip(query_ids, [0, 1, 2, 3], strict=True)]
        gallery_ids = [list(pair) for pair in zip(gallery_ids, [3, 0, 0, 2, 1, 5, 5], strict=True)]
    weights = negative_weights(queries, gallery, torch.tensor(query_ids), torch.tensor(gallery_ids), temperature)
    expected = reference.negative_weights(
        queries.tolist(), gallery.tolist(), query_ids, gallery_ids, float(temperature)
    )
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


def test_weights_by_hand():
    # The query's own image takes 3/4 of the softmax, which is not shared out among the others.
    queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = negative_weights(queries, gallery, torch.tensor([5]), torch.tensor([5, 6]), 1 / math.log(3))
    assert weights.tolist() == [[0, pytest.approx(0.25 + 1e-5, abs=1e-7)]]


def test_the_weights_carry_no_gradient():
    rows, temperature = unit_rows(3).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    assert not negative_weights(rows, rows, torch.arange(3), torch.arange(3), temperature).requires_grad


def test_weights_are_computed_in_float32_at_least():
    for dtype in [torch.float16, torch.bfloat16, torch.float32, torch.float64]:
        for autocast in [False, True]:
            queries, gallery = unit_rows(6, 32).to(dtype), unit_rows(9, 32, seed=1).to(dtype)
            ids = torch.arange(6), torch.arange(9)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                weights = negative_weights(queries, gallery, *ids, 0.01)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert weights.dtype == wide
            torch.testing.assert_close(
                weights, negative_weights(queries.to(wide), gallery.to(wide), *ids, 0.01), rtol=0, atol=0
            )


def test_weights_are_finite_and_positive_for_all_non_positives():
    for dtype in [torch.float16, torch.bfloat16, torch.float32]:
        for temperature in [1e-4, 0.01, 100.0]:
            rows = torch.cat([unit_rows(1), -unit_rows(1), unit_rows(6, seed=1)]).to(dtype)  # cosines from -1 to 1
            weights = negative_weights(rows, rows, torch.arange(8), torch.arange(8), temperature)
            assert weights.isfinite().all()
            assert (weights.diagonal() == 0).all()
            assert (weights >= 1e-5).sum() == 8 * 7


# --- Draws.


@settings(max_examples=100, deadline=None)
@given(
    query_ids=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    gallery_ids=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.005, 2),
)
def test_negatives_are_never_positives(query_ids, gallery_ids, seed, temperature):
    queries, gallery = unit_rows(len(query_ids), seed=seed), unit_rows(len(gallery_ids), seed=seed + 1)
    index, gallery_index = torch.tensor(query_ids), torch.tensor(gallery_ids)
    rows, exist = draw_negatives(negative_weights(queries, gallery, index, gallery_index, temperature), seeded(seed))
    assert rows.shape == exist.shape == index.shape
    assert rows.dtype == torch.int64
    assert exist.tolist() == [any(other != own for other in gallery_ids) for own in query_ids]
    assert (gallery_index[rows] != index)[exist].all()
    assert (rows[~exist] == 0).all()


def test_one_image_has_no_negative():
    rows, ids = unit_rows(4), torch.full((4,), 7)
    negatives = draw_negatives(negative_weights(rows, rows, ids, ids, 0.07), seeded())
    assert negatives.exist.tolist() == [False] * 4
    assert negatives.rows.tolist() == [0] * 4


def test_draws_equal_a_loop_over_rows():
    for sizes in (range(2, 33), range(33, 257, 14), (255, 256)):
        for size in sizes:
            rows, ids = unit_rows(size, seed=size).float(), torch.arange(size) // 2
            weights = negative_weights(rows, rows, ids, ids, 0.07)
            loop, batched = seeded(size), seeded(size)
            expected = [torch.multinomial(row if row.any() else row + 1, 1, generator=loop).item() for row in weights]
            found = draw_negatives(weights, batched)
            assert torch.where(found.exist, found.rows, torch.tensor(expected)).tolist() == expected
            assert torch.equal(loop.get_state(), batched.get_state())


def test_row_without_negatives_does_not_change_other_draws():
    weights = torch.rand(5, 6, generator=seeded())
    whole = draw_negatives(weights, seeded(1))
    weights[2] = 0
    rows, exist = draw_negatives(weights, seeded(1))
    assert exist.tolist() == [True, True, False, True, True]
    assert rows[exist].tolist() == whole.rows[exist].tolist()


def test_without_a_generator_the_global_one_draws():
    weights = torch.rand(50, 40, generator=seeded())
    torch.manual_seed(3)
    drawn = draw_negatives(weights)
    assert torch.equal(drawn.rows, draw_negatives(weights, seeded(3)).rows)
    assert not torch.equal(drawn.rows, draw_negatives(weights).rows)


def test_frequencies_follow_the_weights():
    queries, gallery = unit_rows(1), unit_rows(6, seed=1)
    weights = negative_weights(queries, gallery, torch.tensor([2]), torch.arange(6), 0.4)
    draws = draw_negatives(weights.expand(20_000, -1), seeded()).rows
    counts = torch.bincount(draws, minlength=6)
    assert counts[2] == 0
    others = [0, 1, 3, 4, 5]
    expected = weights[0, others] / weights[0, others].sum() * 20_000
    assert expected.min() > 100  # every item has its say
    assert chisquare(counts[others], expected).pvalue > 0.01
    assert chisquare(counts[others]).pvalue < 1e-6  # which even draws would not pass


# --- The loss.


def test_the_loss_by_hand():
    # Chances of the label: 3/4 matched, 1/2 unmatched; the third pair is not counted.
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0], [9.0, -9.0]])
    loss = matching_loss(logits, torch.tensor([1, 0, UNLABELLED]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_the_loss_and_its_gradient_equal_the_reference():
    logits, labels = (3 * unit_rows(7, 2)).requires_grad_(), [1, 1, 0, UNLABELLED, 0, 0, UNLABELLED]
    loss = matching_loss(logits, torch.tensor(labels))
    loss.backward()
    plain = logits.tolist()
    assert loss.item() == pytest.approx(reference.matching(plain, labels), rel=1e-12)
    expected = reference.gradient(lambda rows: reference.matching(rows, labels), plain)
    torch.testing.assert_close(logits.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-9)
    assert not logits.grad[[3, 6]].any()


def test_a_query_without_negative_is_not_counted():
    rows, ids, gallery_ids = unit_rows(3), torch.tensor([4, 5, 4]), torch.tensor([4, 4, 4])
    _, exist = draw_negatives(negative_weights(rows, rows, ids, gallery_ids, 0.07), seeded())
    labels = torch.cat([torch.ones(3, dtype=torch.int64), torch.where(exist, 0, UNLABELLED)])
    assert labels.tolist() == [1, 1, 1, -100, 0, -100]
    logits = torch.randn(6, 2, generator=seeded())
    counted = [0, 1, 2, 4]
    torch.testing.assert_close(matching_loss(logits, labels), F.cross_entropy(logits[counted], labels[counted]))


def test_half_precision_logits_are_summed_in_float32():
    for dtype in [torch.float16, torch.bfloat16]:
        logits, labels = torch.randn(64, 2, generator=seeded()).to(dtype), torch.arange(64) % 2
        loss = matching_loss(logits, labels)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, matching_loss(logits.float(), labels), rtol=0, atol=0)
