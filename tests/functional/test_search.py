"""Exact top-k: against a stable sort of exact scores, whatever the tiles."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.functional import search
from sdr_lightning.functional.search import Products, descending_order, paired_similarity, similarity, top_k


def reference(queries, gallery, k, exclude=None):
    scores = similarity(queries, gallery)
    if exclude is not None:
        for query, left_out in enumerate(exclude.tolist()):
            scores[query, left_out] = -torch.inf
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), order


def galleries():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    base = normalize(draw(1, 48))
    yield "spread", normalize(draw(23, 48)), normalize(draw(211, 48))
    yield "closer than fp32 can tell", base.expand(23, -1) + 0.01 * draw(23, 48), base + 1e-8 * draw(211, 48)
    yield "collapsed", base.expand(23, -1), base.expand(211, -1)
    yield "repeated", normalize(draw(23, 48)), normalize(draw(7, 48)).repeat(31, 1)
    yield "half", normalize(draw(23, 48)).half(), normalize(draw(211, 48)).half()
    yield "double", normalize(draw(23, 48)).double(), normalize(draw(211, 48)).double()
    yield "huge", draw(23, 48) * 1e18, draw(211, 48) * 1e18
    yield "tiny", draw(23, 48) * 1e-20, draw(211, 48) * 1e-20


@pytest.mark.parametrize(
    ("queries", "gallery"), [(q, g) for _, q, g in galleries()], ids=[n for n, _, _ in galleries()]
)
def test_equals_a_stable_sort_of_exact_scores(queries, gallery, monkeypatch):
    for k in [1, 10, 196, 211, 300]:
        for screened in [True, False]:
            if (
                screened
            ):  # small galleries are searched in fp64 throughout; here they are to be treated as large ones are
                monkeypatch.setattr(search, "_EXACT_RATIO", 0)
            exclude = torch.stack([torch.arange(23), torch.arange(23) * 5, torch.full((23,), 210)], dim=1)
            for left_out in (None, exclude):
                scores, index = reference(queries, gallery, k, left_out)
                for query_tile, gallery_tile in ((256, 32768), (5, 64), (23, 200)):
                    found = top_k(
                        queries, gallery, k, exclude=left_out, query_tile=query_tile, gallery_tile=gallery_tile
                    )
                    assert torch.equal(found.scores, scores)
                    there = scores > -torch.inf  # among what is left out no order is promised
                    assert torch.equal(found.items[there], index[there])


def test_the_bound_on_the_error_holds():
    for _, queries, gallery in galleries():
        scores, bound = Products(queries, gallery).tile(slice(0, len(queries)), slice(0, len(gallery)))
        exact = queries.double() @ gallery.double().T
        if bound is None:
            assert torch.equal(scores, exact.float())
        else:
            assert ((scores.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    ("queries", "gallery"), [(q, g) for _, q, g in galleries()], ids=[n for n, _, _ in galleries()]
)
def test_chosen_pairs_score_as_in_the_matrix(queries, gallery):
    draw = np.random.default_rng(3)
    for number in (4, 3000):  # fewer and more than the queries; more than are gathered at once
        query, item = (torch.from_numpy(draw.integers(0, len(rows), number)) for rows in (queries, gallery))
        assert torch.equal(paired_similarity(queries, gallery, query, item), similarity(queries, gallery)[query, item])


def test_progress_counts_every_score_once():
    done = []
    top_k(torch.eye(10), torch.eye(10), 3, query_tile=4, gallery_tile=3, advance=done.append)
    assert sum(done) == 100


def test_errors():
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        top_k(torch.eye(2), torch.eye(2), 0)
    with pytest.raises(ValueError, match="2 dimensions, the gallery 3"):
        top_k(torch.eye(2), torch.eye(3), 1)
    with pytest.raises(ValueError, match="nothing to search: 0 queries"):
        top_k(torch.eye(2)[:0], torch.eye(2), 1)
    with pytest.raises(ValueError, match=r"2 scores are not finite, the first at query 1, gallery item 0"):
        top_k(torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.eye(2), 1)


def test_the_descending_order_is_stable_for_every_float():
    values = torch.tensor([[0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, 1e-45, -1e-45, 1.0, 3e38]])
    assert torch.equal(descending_order(values), values.sort(dim=1, descending=True, stable=True).indices)
    assert torch.equal(descending_order(values.double()), descending_order(values))
