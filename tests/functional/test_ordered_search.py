"""The order of the first items of several galleries: against a stable sort of exact scores, whatever the tiles."""

import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.functional.ordered_search import centre, ordered_top_k
from sdr_lightning.functional.search import similarity
from tests.functional.test_search import galleries, reference

PROBLEMS = [(name, normalize(queries.float()), normalize(gallery.float())) for name, queries, gallery in galleries()]


@pytest.mark.parametrize(("queries", "gallery"), [part[1:] for part in PROBLEMS], ids=[part[0] for part in PROBLEMS])
@pytest.mark.parametrize("k", [1, 10, 211])
@pytest.mark.parametrize("tiles", [(256, 32768), (5, 64)])
def test_equals_a_stable_sort_of_exact_scores(queries, gallery, k, tiles):
    exclude = torch.stack([torch.arange(len(queries)) * 3, torch.full((len(queries),), len(gallery) - 1)], 1)
    parts, left_out = [gallery, gallery[::2].contiguous()], [exclude, None]
    moved = centre(queries), [centre(part) for part in parts]
    found = ordered_top_k(
        queries, parts, k, exclude=left_out, centred=moved, query_tile=tiles[0], gallery_tile=tiles[1]
    )
    spaces = ((queries, parts), (moved[0].embeddings, [part.embeddings for part in moved[1]]))
    for tops, (some_queries, some_parts) in zip(found, spaces, strict=True):
        for top, part, excluded in zip(tops, some_parts, left_out, strict=True):
            scores, items = reference(some_queries, part, k, excluded)
            there = scores > -torch.inf  # among what is left out no order is promised
            assert torch.equal(top.items[there], items[there])
            assert torch.equal(top.scores > -torch.inf, there)
            assert torch.allclose(top.scores[there], scores[there], atol=1e-5)


@pytest.mark.parametrize(("queries", "gallery"), [part[1:] for part in PROBLEMS], ids=[part[0] for part in PROBLEMS])
def test_two_galleries_can_be_merged_by_their_scores(queries, gallery):
    first, second = gallery[:100], gallery[100:]
    found = ordered_top_k(queries, [first, second], 20, exclude=[None, None]).plain
    scores = torch.cat([top.scores for top in found], 1)
    items = torch.cat((found[0].items, found[1].items + 100), 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :20]
    assert torch.equal(items.gather(1, order), reference(queries, gallery, 20)[1])


def test_only_open_pairs_are_recomputed_in_fp64():
    _, queries, gallery = PROBLEMS[0]
    (top,) = ordered_top_k(queries, [gallery], 10, exclude=[None]).plain
    exact = similarity(queries, gallery).gather(1, top.items)
    assert not torch.equal(top.scores, exact)  # fp32 scores, of which none is in doubt
    assert torch.allclose(top.scores, exact, atol=1e-6)
