import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdr_lightning.functional.ranking import Ranking, rank_embeddings
from sdr_lightning.functional.reranking import rerank
from sdr_lightning.functional.search import top_k


def reference(cosines, scores, k, query_ids, gallery_ids):
    """The list of every query, sorted, and the number of non-positives ahead of its first positive."""
    ranks, tied = [], []
    for cosine, score, query_id in zip(cosines, scores, query_ids, strict=True):
        by_cosine = sorted(range(len(gallery_ids)), key=lambda j: (-cosine[j], j))
        found, rest = by_cosine[:k], by_cosine[k:]
        ranking = sorted(found, key=lambda j: (-score[j], j)) + rest
        where = next(place for place, j in enumerate(ranking) if gallery_ids[j] == query_id)
        ranks.append(where)
        best, values, among = (ranking[where], score, found) if where < k else (ranking[where], cosine, by_cosine)
        tied.append(any(values[j] == values[best] and gallery_ids[j] != query_id for j in among))
    return ranks, tied


def run(cosines, scores, k, query_ids, gallery_ids):
    """The same by the functions: an orthonormal gallery, so that cosines are what they are said to be."""
    queries, gallery = torch.tensor(cosines, dtype=torch.float64), torch.eye(len(gallery_ids), dtype=torch.float64)
    query_ids, gallery_ids = torch.tensor(query_ids), torch.tensor(gallery_ids)
    found = top_k(queries, gallery, k).items
    ranking = rank_embeddings(queries, gallery, query_ids, gallery_ids)
    rescored = torch.tensor(scores, dtype=torch.float32).gather(1, found)
    result = rerank(ranking, found, rescored, query_ids, gallery_ids)
    return result.ranks.tolist(), result.tied.tolist()


@st.composite
def problems(draw, cosine_ties):
    """Any number of positives from one up, and scores with many ties."""
    queries, size = draw(st.integers(1, 5)), draw(st.integers(1, 10))
    gallery_ids = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    query_ids = draw(st.lists(st.sampled_from(gallery_ids), min_size=queries, max_size=queries))
    score = st.lists(st.integers(-2, 2), min_size=size, max_size=size)
    cosine = score if cosine_ties else st.permutations(range(size))
    cosines = draw(st.lists(cosine, min_size=queries, max_size=queries))
    scores = draw(st.lists(score, min_size=queries, max_size=queries))
    return cosines, scores, draw(st.integers(1, size + 2)), query_ids, gallery_ids


@settings(max_examples=200, deadline=None)
@given(problems(cosine_ties=False))
def test_reranking_equals_sorting(problem):
    assert run(*problem) == reference(*problem)


@settings(max_examples=200, deadline=None)
@given(problems(cosine_ties=True))
def test_reranking_equals_sorting_with_tied_cosines(problem):
    """The ranking by cosine puts the lower row first among equals, and so must the choice of candidates."""
    assert run(*problem) == reference(*problem)


def test_collapsed_model_has_the_first_rows_as_candidates():
    """All cosines are equal: the ranking is by row, and what is not re-scored stands behind the candidates."""
    for size in [10, 300, 3000]:
        queries, gallery = torch.ones(3, 1), torch.ones(size, 1)
        assert top_k(queries, gallery, 5).items.sort().values.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_by_hand():
    # Cosine order: 3, 0, 2, 1; the first three are re-scored, and item 1 stays last however good it is.
    cosines, scores = [[0.7, 0.1, 0.5, 0.9]], [[2.0, 9.0, 5.0, 1.0]]
    for positive, rank in ((2, 0), (0, 1), (3, 2), (1, 3)):
        ids = [0, 0, 0, 0]
        ids[positive] = 1
        assert run(cosines, scores, 3, [1], ids) == ([rank], [False])
    # Several positives: the best of those re-scored; a positive is never ahead of another.
    assert run(cosines, scores, 3, [1], [1, 1, 0, 1]) == ([1], [False])
    assert run(cosines, scores, 3, [1], [1, 0, 1, 1]) == ([0], [False])


def test_equal_scores_are_ordered_by_row_and_reported():
    cosines, scores = [[0.9, 0.8, 0.7]], [[1.0, 1.0, 0.0]]
    assert run(cosines, scores, 3, [1], [0, 1, 0]) == ([1], [True])
    assert run(cosines, scores, 3, [1], [1, 0, 0]) == ([0], [True])
    assert run(cosines, scores, 3, [1], [1, 1, 0]) == ([0], [False])
    # Cosine puts row 1 first; the rule for equal scores does not ask it.
    assert run([[0.8, 0.9, 0.7]], scores, 3, [1], [0, 1, 0]) == ([1], [True])


def test_ties_are_those_of_the_new_scores():
    cosines, scores = [[0.9, 0.9, 0.1]], [[1.0, 2.0, 3.0]]
    assert run(cosines, scores, 2, [1], [0, 1, 0]) == ([0], [False])
    # ... but it stays one where nothing positive is re-scored
    assert run([[0.9, 0.5, 0.5]], scores, 1, [1], [0, 1, 0]) == ([1], [True])


def test_candidates_and_ranking_use_the_same_scores():
    """Cosines that differ in double precision alone are equal in both; a query whose positive is no candidate stands behind."""
    generator = torch.Generator().manual_seed(1)
    base = torch.nn.functional.normalize(torch.randn(1, 64, generator=generator), dim=1)
    gallery = base + 1e-8 * torch.randn(200, 64, generator=generator)
    queries, ids = base.expand(200, -1), torch.arange(200)
    found, ranking = top_k(queries, gallery, 20).items, rank_embeddings(queries, gallery, ids, ids)
    without = ~(found == ids[:, None]).any(dim=1)
    assert (ranking.ranks[without] >= 20).all()


def test_scores_that_are_not_finite_are_counted():
    for bad in [torch.nan, torch.inf, -torch.inf]:
        ranking = Ranking(torch.tensor([0, 0]), torch.tensor([False, False]))
        scores = torch.tensor([[1.0, 2.0, bad], [bad, 0.0, 1.0]])
        with pytest.raises(ValueError, match="2 of 6 matching scores are not finite"):
            rerank(ranking, torch.tensor([[0, 1, 2]] * 2), scores, torch.tensor([0, 1]), torch.arange(3))
