import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdr_lightning.functional.ndcg import mean_ndcg, merge_top_gains, ndcg, ndcg_of_top, top_gains
from tests.reference.ndcg import mean_ndcg as reference_mean
from tests.reference.ndcg import ndcg as reference


def random_problem(queries=20, gallery=130, seed=0, levels=6):
    """Scores and relevances with many equal values, across the cut-offs as well."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (queries, gallery), generator=generator) / levels
    relevance = torch.randint(0, 5, (queries, gallery), generator=generator) / 4
    return scores, relevance


def test_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.4]])
    relevance = torch.tensor([[1.0, 0.0, 0.5, 0.25]])
    # Ranking 1, 2, 3, 0 has gains 0, 1/2, 1/4, 1; the ideal is 1, 1/2, 1/4, 0.
    dcg = {2: 0.5 / math.log2(3), 4: 0.5 / math.log2(3) + 0.25 / 2 + 1 / math.log2(5)}
    ideal = {2: 1 + 0.5 / math.log2(3), 4: 1 + 0.5 / math.log2(3) + 0.25 / 2}
    values = ndcg(scores, relevance, ks=(2, 4))
    assert values.dtype == torch.float64
    assert values.tolist()[0] == pytest.approx([dcg[2] / ideal[2], dcg[4] / ideal[4]], rel=1e-12)


def test_gain_is_linear():
    # With gain 2^rel - 1 it would be 3 / 7.
    values = ndcg(torch.tensor([[2.0, 1.0]]), torch.tensor([[2.0, 3.0]]), ks=(1,))
    assert values.item() == pytest.approx(2 / 3)


def test_an_exponential_gain_does_not_overflow():
    top = top_gains(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[4998.0, 5000.0, 0.0]]), 3)
    expected = (0.25 + 1 / math.log2(3)) / (1 + 0.25 / math.log2(3))
    assert ndcg_of_top(top, (2,), "exponential").item() == pytest.approx(expected, rel=1e-12)


def test_exclusion_removes_the_item_from_ranking_and_ideal():
    scores = torch.tensor([[1.0, 0.2, 0.6]])
    relevance = torch.tensor([[1.0, 0.5, 0.25]])
    # Without item 0 the ranking is 2, 1 and the ideal 1, 2.
    expected = (0.25 + 0.5 / math.log2(3)) / (0.5 + 0.25 / math.log2(3))
    assert ndcg(scores, relevance, ks=(3,), exclude=torch.tensor([0])).item() == pytest.approx(expected)
    assert ndcg(scores, relevance, ks=(3,)).item() > expected
    assert scores[0, 0] == 1.0
    assert relevance[0, 0] == 1.0  # the arguments are left alone


def test_exclusion_works_with_negative_scores():
    # Writing 0 for the query itself would put it before everything else here.
    scores = torch.tensor([[-0.1, -0.2, -0.3]])
    relevance = torch.tensor([[0.0, 1.0, 0.5]])
    assert ndcg(scores, relevance, ks=(1, 2), exclude=torch.tensor([0])).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("gallery", [1, 9, 10, 11, 51, 130])
def test_equals_the_reference_with_ties(gallery):
    scores, relevance = random_problem(gallery=gallery, seed=0)
    exclude = torch.arange(20) % gallery if gallery > 1 else None
    values = ndcg(scores, relevance, exclude=exclude)
    for query in range(20):
        for column, k in enumerate((10, 20, 50)):
            left_out = None if exclude is None else int(exclude[query])
            expected = reference(scores[query].tolist(), relevance[query].tolist(), k, left_out)
            found = values[query, column].item()
            assert math.isnan(found) if expected is None else found == pytest.approx(expected, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_the_reference_on_drawn_cases(data):
    gallery = data.draw(st.integers(1, 15))
    k = data.draw(st.integers(1, 18))
    scores = data.draw(st.lists(st.integers(-2, 2), min_size=gallery, max_size=gallery))
    relevance = data.draw(st.lists(st.integers(0, 3), min_size=gallery, max_size=gallery))
    found = ndcg(torch.tensor([scores]), torch.tensor([relevance]), ks=(k,)).item()
    expected = reference(scores, relevance, k)
    assert math.isnan(found) if expected is None else found == pytest.approx(expected)


def test_equal_scores_are_ranked_by_index():
    # All scores equal: the order is the gallery's, whatever topk returns.
    relevance = torch.linspace(0, 1, 3000)[None]
    top = top_gains(torch.zeros(1, 3000), relevance, 50)
    assert torch.equal(top.gains, relevance[:, :50])


def test_perfect_scores_are_perfect():
    _, relevance = random_problem()
    assert mean_ndcg(ndcg(relevance, relevance)).tolist() == [1.0, 1.0, 1.0]
    assert (ndcg(-relevance, relevance) < 0.5).all()


def test_cutoff_beyond_the_gallery_uses_the_whole_gallery():
    scores, relevance = random_problem(gallery=12)
    values = ndcg(scores, relevance, ks=(10, 12, 50))
    assert torch.equal(values[:, 1], values[:, 2])
    assert not torch.equal(values[:, 0], values[:, 1])


def test_permuting_the_gallery_changes_nothing_without_ties():
    generator = torch.Generator().manual_seed(3)
    scores, relevance = torch.randn(8, 200, generator=generator), torch.rand(8, 200, generator=generator)
    order = torch.randperm(200, generator=generator)
    assert torch.equal(ndcg(scores, relevance), ndcg(scores[:, order], relevance[:, order]))


def test_top_of_a_union_is_merged_from_its_parts():
    scores, relevance = random_problem(gallery=150)
    exclude = torch.arange(20)
    whole = top_gains(scores, relevance, 50, exclude)
    for cut in (30, 70, 140):
        parts = (
            top_gains(scores[:, :cut], relevance[:, :cut], 50, exclude),
            top_gains(scores[:, cut:], relevance[:, cut:], 50),
        )
        for merged, expected in zip(merge_top_gains(*parts, 50), whole, strict=True):
            assert torch.equal(merged, expected)


def test_queries_with_nothing_relevant_are_left_out_of_the_mean():
    scores, relevance = random_problem()
    relevance[[2, 5]] = 0
    values = ndcg(scores, relevance, ks=(10,))
    assert torch.nonzero(values.isnan())[:, 0].tolist() == [2, 5]
    expected = reference_mean(scores.tolist(), relevance.tolist(), 10)
    assert mean_ndcg(values).item() == pytest.approx(expected)
    assert mean_ndcg(ndcg(scores, relevance * 0)).isnan().all()


def test_half_precision_and_top_deeper_than_asked():
    scores, relevance = random_problem(levels=8)  # eighths and quarters are exact in fp16
    assert torch.equal(ndcg(scores.half(), relevance.half()), ndcg(scores, relevance))
    assert torch.equal(ndcg_of_top(top_gains(scores, relevance, 90), (10, 20, 50)), ndcg(scores, relevance))


def test_errors():
    for scores, relevance, ks, message in [
        (
            [[1.0, torch.nan]],
            [[1.0, 0.0]],
            (1,),
            "1 scores are not finite, the first at query 0, gallery item 1",
        ),
        ([[1.0, 0.0]], [[torch.inf, 0.0]], (1,), "1 relevances are not finite"),
        ([[1.0, 0.0]], [[1.0, -0.5]], (1,), "must not be negative, found -0.5"),
        ([[1.0, 0.0]], [[1.0]], (1,), r"not \(1, 2\) and \(1, 1\)"),
        ([[1.0, 0.0]], [[1.0, 0.0]], (0,), "k must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            ndcg(torch.tensor(scores), torch.tensor(relevance), ks=ks)
