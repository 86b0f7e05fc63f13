import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from sdr_lightning.functional.ndcg import ndcg
from sdr_lightning.functional.ranking import (
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    rank_embeddings,
    rank_scores,
    recall_at_k,
    tie_rate,
)
from sdr_lightning.functional.search import similarity
from tests.reference.ranking import is_tied, rank_of_best_positive

# Three queries, six items; the ids of the gallery are neither sorted nor balanced.
SCORES = torch.tensor(
    [
        [0.9, 0.8, 0.1, 0.2, 0.3, 0.7],  # positives 1 and 4: only item 0 is ahead of 0.8
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5],  # positives 2 and 3: items 0 and 1 tie and come earlier
        [0.1, 0.6, 0.6, 0.2, 0.9, 0.6],  # positives 0 and 5: 4 is ahead; 1 and 2 tie with 5 and come earlier
    ]
)
QUERY_IDS = torch.tensor([7, 3, 11])
GALLERY_IDS = torch.tensor([11, 7, 3, 3, 7, 11])


@st.composite
def ranking_problems(draw):
    """Scores with many ties, any number of positives from one up."""
    queries, gallery = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    gallery_ids = draw(st.lists(st.integers(-2, 3), min_size=gallery, max_size=gallery))
    query_ids = draw(st.lists(st.sampled_from(gallery_ids), min_size=queries, max_size=queries))
    row = st.lists(st.integers(-2, 2), min_size=gallery, max_size=gallery)
    scores = draw(st.lists(row, min_size=queries, max_size=queries))
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(query_ids), torch.tensor(gallery_ids)


def random_problem(images=40, dimensions=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    captions = torch.randint(1, 7, (images,), generator=generator)
    text_ids = torch.arange(images).repeat_interleave(captions)
    text_ids = text_ids[torch.randperm(len(text_ids), generator=generator)]
    image = torch.randn(images, dimensions, generator=generator)
    text = image[text_ids] + torch.randn(len(text_ids), dimensions, generator=generator)
    return image, text, torch.arange(images), text_ids


def test_ranks_by_hand():
    result = rank_scores(SCORES, QUERY_IDS, GALLERY_IDS)
    assert result.ranks.tolist() == [1, 2, 3]
    assert result.tied.tolist() == [False, True, True]
    assert result.ranks.dtype == torch.int64


def test_pessimistic_ranks_by_hand():
    result = rank_scores(SCORES, QUERY_IDS, GALLERY_IDS, ties="pessimistic")
    assert result.ranks.tolist() == [1, 4, 3]
    assert result.tied.tolist() == [False, True, True]


def test_other_positives_are_never_ahead():
    # The best of five captions is first, so the rank is 0 although four equal captions have lower indices.
    scores = torch.tensor([[0.4, 0.9, 0.9, 0.9, 0.9, 0.9]])
    ids = torch.tensor([0, 1, 1, 1, 1, 1])
    for ties in ("index", "pessimistic"):
        result = rank_scores(scores, torch.tensor([1]), ids, ties=ties)
        assert result.ranks.tolist() == [0]
        assert result.tied.tolist() == [False]


def test_tie_between_two_equal_positives_is_not_ahead():
    scores = torch.full((1, 3), 0.5)
    assert rank_scores(scores, torch.tensor([1]), torch.tensor([1, 0, 1])).ranks.tolist() == [0]


def test_statistics_by_hand():
    ranks = torch.tensor([0, 1, 4, 9])
    assert [recall_at_k(ranks, k) for k in (1, 2, 5, 10, 1000)] == [25.0, 50.0, 75.0, 100.0, 100.0]
    assert median_rank(ranks) == 3.5  # 1-based ranks 1, 2, 5, 10
    assert median_rank(ranks[:3]) == 2.0
    assert mean_rank(ranks) == 4.5
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 10) / 4)
    assert tie_rate(torch.tensor([True, False, False, False])) == 0.25


@settings(max_examples=150, deadline=None)
@given(ranking_problems(), st.integers(1, 4), st.sampled_from(["index", "pessimistic"]))
def test_equals_the_reference_at_any_chunk_size(problem, chunk_size, ties):
    result = rank_scores(*problem, ties=ties, chunk_size=chunk_size)
    lists = [tensor.tolist() for tensor in problem]
    assert result.ranks.tolist() == rank_of_best_positive(*lists, ties=ties)
    assert result.tied.tolist() == is_tied(*lists)


def test_embeddings_rank_as_their_scores_at_any_chunk_size():
    image, text, image_ids, text_ids = random_problem()
    expected = rank_scores(image @ text.T, image_ids, text_ids).ranks
    for chunk_size in (1, 7, 40, 1000):
        assert torch.equal(rank_embeddings(image, text, image_ids, text_ids, chunk_size=chunk_size).ranks, expected)


@pytest.mark.parametrize("collapsed", [False, True])
def test_result_is_independent_of_gallery_tiles(collapsed):
    for ties in ["index", "pessimistic"]:
        image, text, image_ids, text_ids = random_problem()
        if collapsed:  # ties everywhere, and a few that are not
            image, text = torch.ones_like(image), torch.ones_like(text)
            text[::3] *= 1.5
        expected = rank_scores(similarity(image, text), image_ids, text_ids, ties=ties)
        for tile in (1, 7, 64, 100000):
            found = rank_embeddings(image, text, image_ids, text_ids, ties=ties, gallery_tile=tile, chunk_size=9)
            assert torch.equal(found.ranks, expected.ranks)
            assert torch.equal(found.tied, expected.tied)


def test_differences_below_fp32_precision_are_ranked_exactly():
    """Single-precision products of these would be in any order; the definition sums in fp64."""
    generator = torch.Generator().manual_seed(3)
    base = normalize(torch.randn(1, 300, generator=generator))
    gallery = normalize(base + 2e-7 * torch.randn(500, 300, generator=generator))
    queries = normalize(base + 0.1 * torch.randn(50, 300, generator=generator))
    ids, wanted = torch.arange(500), torch.arange(0, 500, 10)
    exact = rank_scores(similarity(queries, gallery), wanted, ids)
    assert not torch.equal(exact.ranks, rank_scores(queries @ gallery.T, wanted, ids).ranks)
    for chunk_size, tile in ((50, 500), (7, 33), (1, 499)):
        found = rank_embeddings(queries, gallery, wanted, ids, chunk_size=chunk_size, gallery_tile=tile)
        assert torch.equal(found.ranks, exact.ranks)
        assert torch.equal(found.tied, exact.tied)


def test_scores_at_the_edge_of_the_error_bound_are_counted_once():
    """Thousands of scores lie around the best positive's, so that some differ from it by the error bound, after rounding."""
    generator = torch.Generator().manual_seed(21)
    base = torch.randn(1, 64, generator=generator)
    image = normalize(0.3 * torch.randn(1000, 64, generator=generator) + base)
    text = normalize(0.3 * torch.randn(5000, 64, generator=generator) + base)
    image_ids, text_ids = torch.arange(1000), torch.arange(5000) // 5
    expected = rank_scores(similarity(image, text), image_ids, text_ids)
    assert torch.equal(rank_embeddings(image, text, image_ids, text_ids).ranks, expected.ranks)


def test_a_lower_matmul_precision_and_autocast_change_nothing():
    image, text, image_ids, text_ids = random_problem(dimensions=64)
    plain = rank_embeddings(image, text, image_ids, text_ids).ranks
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(rank_embeddings(image, text, image_ids, text_ids).ranks, plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_permuting_the_gallery_changes_nothing_without_ties():
    image, text, image_ids, text_ids = random_problem()
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(1))
    plain = rank_embeddings(image, text, image_ids, text_ids)
    permuted = rank_embeddings(image, text[order], image_ids, text_ids[order])
    assert not plain.tied.any()
    assert torch.equal(plain.ranks, permuted.ranks)


def test_transposing_the_scores_swaps_the_directions():
    image, text, image_ids, text_ids = random_problem()
    scores = image @ text.T
    t2i = rank_scores(scores.T, text_ids, image_ids).ranks
    assert torch.equal(t2i, rank_embeddings(text, image, text_ids, image_ids).ranks)
    assert not torch.equal(t2i, rank_scores(scores, image_ids, text_ids).ranks)


def test_recall_never_falls_with_k():
    image, text, image_ids, text_ids = random_problem()
    ranks = rank_embeddings(image, text, image_ids, text_ids).ranks
    recalls = [recall_at_k(ranks, k) for k in range(1, len(text) + 1)]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[-1] == 100.0


def test_collapsed_model_is_at_chance_or_below():
    ids = torch.arange(200)
    collapsed = torch.ones(200, 16)
    result = rank_embeddings(collapsed, collapsed, ids, ids)
    assert recall_at_k(result.ranks, 1) == 0.5  # chance: 1 of 200
    assert recall_at_k(result.ranks, 10) == 5.0
    assert tie_rate(result.tied) == 1.0
    pessimistic = rank_embeddings(collapsed, collapsed, ids, ids, ties="pessimistic")
    assert recall_at_k(pessimistic.ranks, 100) == 0.0


def test_a_perfect_model_is_perfect():
    ids = torch.arange(30)
    result = rank_embeddings(torch.eye(30), torch.eye(30), ids, ids, ties="pessimistic")
    assert recall_at_k(result.ranks, 1) == 100.0
    assert tie_rate(result.tied) == 0.0


def test_one_query_one_item():
    assert rank_scores(torch.tensor([[-3.0]]), torch.tensor([5]), torch.tensor([5])).ranks.tolist() == [0]


def test_other_precisions():
    for dtype in [torch.float16, torch.bfloat16, torch.float64, torch.int64]:
        scores = torch.tensor([[3, 1, 2], [2, 2, 1]]).to(dtype)
        result = rank_scores(scores, torch.tensor([2, 1]), torch.tensor([0, 1, 2]))
        assert result.ranks.tolist() == [1, 1]


def test_scores_of_every_type_are_compared_exactly():
    for values, dtype in [
        ((1.0 + 1e-12, 1.0), torch.float64),
        ((2**24 + 1, 2**24), torch.int32),
        ((2**32 - 1, 2**32 - 2), torch.uint32),
        ((2**63 - 1, 2**63 - 2), torch.int64),
        ((-(2**63) + 1, -(2**63)), torch.int64),
        ((2**63, 2**63 - 1), torch.uint64),
        ((2**64 - 1, 0), torch.uint64),
    ]:
        high, low = values
        scores = torch.tensor([[low, high, low], [high, high, low]], dtype=dtype)
        found = rank_scores(scores, torch.tensor([2, 1]), torch.arange(3))
        assert found.ranks.tolist() == [2, 1]
        assert found.tied.tolist() == [True, True]
        assert not rank_scores(scores[:, 1:], torch.tensor([2, 2]), torch.tensor([1, 2])).tied.any()
        assert ndcg(scores, torch.tensor([[0, 1, 0], [0, 0, 1]]), ks=(1, 3)).tolist() == [[1.0, 1.0], [0.0, 0.5]]


def test_similarity_is_fp32_whatever_the_setting():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 64, generator=generator), torch.randn(9, 64, generator=generator)
    plain = similarity(a, b)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarity(a, b), plain)
    assert torch.equal(torch.cat([similarity(row[None], b) for row in a]), plain)


def test_non_finite_scores_are_counted_and_located():
    scores = SCORES.clone()
    scores[1, 4], scores[2, 0] = torch.nan, torch.inf
    for chunk_size in (256, 1, 2):
        with pytest.raises(ValueError, match=r"2 of 18 scores are not finite, the first at query 1, gallery item 4"):
            rank_scores(scores, QUERY_IDS, GALLERY_IDS, chunk_size=chunk_size)


def test_finite_scores_whose_sum_overflows_are_fine():
    scores = torch.tensor([[3e38, 3e38, 1.0]])
    assert rank_scores(scores, torch.tensor([2]), torch.tensor([0, 1, 2])).ranks.tolist() == [2]


def test_queries_without_a_positive_are_counted_and_named():
    with pytest.raises(ValueError, match=r"2 of 3 queries have no positive .* query 1 with id 4"):
        rank_scores(SCORES, torch.tensor([7, 4, 5]), GALLERY_IDS)


def test_errors():
    for change, message in [
        ({"scores": SCORES[0]}, "scores must be"),
        ({"query_ids": QUERY_IDS[:2]}, "query_ids must be 3 integers"),
        ({"gallery_ids": GALLERY_IDS.float()}, "gallery_ids must be 6 integers"),
        ({"ties": "optimistic"}, "optimistic"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"scores": SCORES[:0], "query_ids": QUERY_IDS[:0]}, "no queries"),
    ]:
        arguments = {"scores": SCORES, "query_ids": QUERY_IDS, "gallery_ids": GALLERY_IDS} | change
        with pytest.raises(ValueError, match=message):
            rank_scores(**arguments)


def test_more_errors():
    with pytest.raises(ValueError, match="4 dimensions, the gallery 5"):
        rank_embeddings(torch.ones(2, 4), torch.ones(2, 5), torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="k must be at least 1"):
        recall_at_k(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="at least one"):
        mean_rank(torch.tensor([], dtype=torch.int64))
