import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics.graded import graded_retrieval, single_modal
from sdr_lightning.metrics.relevance import FactRelevance
from tests.reference.ndcg import mean_ndcg


class TableRelevance:
    """Relevances looked up in one table over the images followed by the texts."""

    fingerprint = "table"

    def __init__(self, table, num_images):
        self.table, self.num_images, self.num_texts = table, num_images, len(table) - num_images

    def rows(self, query, gallery, index):
        part = {"image": slice(0, self.num_images), "text": slice(self.num_images, None)}
        return self.table[part[query]][index][:, part[gallery]]


@pytest.fixture
def problem():
    """Embeddings on a coarse grid, so that scores tie within and across modalities."""
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randint(-1, 2, (17, 4), generator=generator).float() + torch.tensor([0.0, 0, 0, 0.5]))
    texts = normalize(torch.randint(-1, 2, (41, 4), generator=generator).float() + torch.tensor([0.0, 0, 0, 0.5]))
    table = torch.randint(0, 4, (58, 58), generator=generator) / 3  # not symmetric
    return images, texts, TableRelevance(table, 17)


def literal(images, texts, table, ks):
    """The four tasks with whole matrices and the slow NDCG."""
    everything = torch.cat((images, texts))
    n, total = len(images), len(images) + len(texts)
    scores = (everything.double() @ everything.double().T).float()
    is_image = [slice(0, n), slice(n, total), slice(0, total)]
    tasks = {"i2i": (0, 0), "t2t": (1, 1), "i2it": (0, 2), "t2it": (1, 2)}
    expected = {}
    for task, (query, gallery) in tasks.items():
        rows, columns = is_image[query], is_image[gallery]
        itself = [j - columns.start for j in range(rows.start, rows.stop)]
        for k in ks:
            value = mean_ndcg(scores[rows, columns].tolist(), table[rows, columns].tolist(), k, itself)
            expected[f"{task}_NDCG@{k}"] = 100 * value
    return expected


@pytest.mark.parametrize("chunk_size", [1, 6, 256])
def test_equals_the_literal_definition(problem, chunk_size):
    images, texts, relevance = problem
    found = graded_retrieval(images, texts, relevance, ks=(3, 10, 50), chunk_size=chunk_size)
    assert found == pytest.approx(literal(images, texts, relevance.table, (3, 10, 50)), rel=1e-9)


def test_keys(problem):
    found = graded_retrieval(*problem)
    assert list(found) == [f"{task}_NDCG@{k}" for task in ("i2i", "t2t", "i2it", "t2it") for k in (10, 20, 50)]
    assert all(0 < value < 100 for value in found.values())


def test_scores_that_order_as_relevance_are_perfect():
    # On a quarter circle with relevance 1 - angle / 90 the cosines order every gallery ideally.
    generator = torch.Generator().manual_seed(1)
    angles = torch.rand(40, generator=generator) * 90
    embeddings = torch.stack((angles.deg2rad().cos(), angles.deg2rad().sin()), dim=1)
    table = 1 - (angles[:, None] - angles).abs() / 90
    found = graded_retrieval(embeddings[:10], embeddings[10:], TableRelevance(table, 10), ks=(5, 10))
    assert list(found.values()) == pytest.approx([100.0] * 8, abs=1e-4)


def test_the_query_is_left_out_and_its_counterpart_stays():
    # Image 0 and text 0 coincide; image 1 and text 1 are opposite to them.
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    relevance = FactRelevance([[1], [0]], [[1], [0]])  # of each kind only number 0 is relevant, and to number 0
    with pytest.raises(ValueError, match="i2i: none of 2 queries"):  # but a query is not its own answer
        graded_retrieval(images, images, relevance, ks=(1,))
    relevance = FactRelevance([[2], [1]], [[2], [1]])
    found = graded_retrieval(images, images, relevance, ks=(1,))
    # In a mixed gallery the counterpart is the best answer, for both kinds of query.
    assert found == {"i2i_NDCG@1": 100.0, "t2t_NDCG@1": 100.0, "i2it_NDCG@1": 100.0, "t2it_NDCG@1": 100.0}


def test_relevance_of_other_items_is_refused(problem):
    images, texts, relevance = problem
    with pytest.raises(ValueError, match="17 images and 41 texts, not 17 and 40"):
        graded_retrieval(images, texts[:40], relevance)


@pytest.mark.parametrize("chunk_size", [5, 256])
def test_one_modality_alone_is_as_among_both(problem, chunk_size):
    images, texts, relevance = problem
    both = graded_retrieval(images, texts, relevance)
    of_images = single_modal(images, relevance, "image", chunk_size=chunk_size)
    of_texts = single_modal(texts, relevance, "text", chunk_size=chunk_size)
    assert list(of_images) == ["i2i_NDCG@10", "i2i_NDCG@20", "i2i_NDCG@50"]
    assert of_images | of_texts == {key: value for key, value in both.items() if key in of_images or key in of_texts}
    assert len(of_texts) == 3
    with pytest.raises(ValueError, match="relevance is of 41 texts, not 17"):
        single_modal(images, relevance, "text")
