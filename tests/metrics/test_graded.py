import math

import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics.graded import TASKS, graded_queries, means, sibling_table, single_modal
from sdr_lightning.metrics.relevance import FactRelevance, Relevance, RougeLRelevance
from tests.reference.ndcg import mean_ndcg


def graded_retrieval(*problem, **options):
    return means(graded_queries(*problem, **options))


class TableRelevance(Relevance):
    """Relevances looked up in one table over the images followed by the texts."""

    fingerprint = kind = "table"

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


def slowly_centred(rows):
    """Subtract the mean and normalise, number by number; rounded to fp32."""
    mean = [math.fsum(column) / len(rows) for column in zip(*rows.tolist(), strict=True)]
    moved = [[value - m for value, m in zip(row, mean, strict=True)] for row in rows.tolist()]
    return torch.tensor([[value / math.hypot(*row) for value in row] for row in moved])


def literal(images, texts, table, ks, left_out=None):
    """All tasks with whole matrices and the slow NDCG."""
    found = literal_tasks(images, texts, table, ks, left_out)
    centred = literal_tasks(slowly_centred(images), slowly_centred(texts), table, ks, left_out)
    return found | {f"centred_{key}": value for key, value in centred.items() if "2it_" in key}


def literal_tasks(images, texts, table, ks, left_out):
    everything = torch.cat((images, texts))
    n, total = len(images), len(images) + len(texts)
    scores = (everything.double() @ everything.double().T).float()
    is_image = [slice(0, n), slice(n, total), slice(0, total)]
    tasks = {"i2t": (0, 1), "t2i": (1, 0), "i2i": (0, 0), "t2t": (1, 1), "i2it": (0, 2), "t2it": (1, 2)}
    expected = {}
    for task, (query, gallery) in tasks.items():
        rows, columns = is_image[query], is_image[gallery]
        part, gains = scores[rows, columns].clone(), table[rows, columns].clone()
        for row, item in enumerate(range(rows.start, rows.stop)):
            # What lies outside the gallery, such as a caption among images, is not there to be left out.
            for other in (left_out or {}).get(item, [item]):
                if columns.start <= other < columns.stop:
                    part[row, other - columns.start], gains[row, other - columns.start] = -9, 0
        for k in ks:
            expected[f"{task}_NDCG@{k}"] = 100 * mean_ndcg(part.tolist(), gains.tolist(), k)
        expected[f"{task}_NDCG_exp@25"] = 100 * mean_ndcg(part.tolist(), (2 ** gains.double() - 1).tolist(), 25)
    return expected


def test_equals_the_literal_definition(problem):
    for chunk_size in [1, 6, 256]:
        images, texts, relevance = problem
        found = graded_retrieval(images, texts, relevance, ks=(3, 10, 50), chunk_size=chunk_size)
        assert found == pytest.approx(literal(images, texts, relevance.table, (3, 10, 50)), rel=1e-9)


def test_keys(problem):
    found = graded_retrieval(*problem)
    assert list(found) == [
        f"{task}_{name}" for task in TASKS for name in ("NDCG@10", "NDCG@20", "NDCG@50", "NDCG_exp@25")
    ]
    assert all(0 < value < 100 for value in found.values())


def test_scores_that_order_as_relevance_are_perfect():
    # On a quarter circle with relevance 1 - angle / 90 the cosines order every gallery ideally.
    generator = torch.Generator().manual_seed(1)
    angles = torch.rand(40, generator=generator) * 90
    embeddings = torch.stack((angles.deg2rad().cos(), angles.deg2rad().sin()), dim=1)
    table = 1 - (angles[:, None] - angles).abs() / 90
    found = graded_retrieval(embeddings[:10], embeddings[10:], TableRelevance(table, 10), ks=(5, 10))
    as_trained = [value for key, value in found.items() if not key.startswith("centred")]
    assert as_trained == pytest.approx([100.0] * 18, abs=1e-4)


def test_centring_removes_what_one_modality_shares():
    """Each item has one match, in the other modality, which items of its own modality are ahead of because of the gap."""
    content = normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(3)))
    gap = torch.tensor([0.0] * 6 + [4.0])
    images, texts = (normalize(torch.cat((content, torch.zeros(30, 1)), 1) + side * gap) for side in (1, -1))
    found = graded_retrieval(images, texts, TableRelevance(torch.eye(30).repeat(2, 2), 30), ks=(1,))
    for task in ("i2it", "t2it"):
        assert (found[f"{task}_NDCG@1"], found[f"centred_{task}_NDCG@1"]) == (0, 100)


def test_centring_leaves_embeddings_without_a_mean_alone(problem):
    images, texts, _ = problem
    images, texts = torch.cat((images, -images)), torch.cat((texts, -texts))
    table = torch.rand(116, 116, generator=torch.Generator().manual_seed(4))
    found = graded_retrieval(images, texts, TableRelevance(table, 34))
    for key in [key for key in found if key.startswith("centred")]:
        assert found[key] == pytest.approx(found[key.removeprefix("centred_")])


def test_the_query_is_left_out_and_its_counterpart_stays():
    # Image 0 and text 0 coincide; image 1 and text 1 are opposite to them.
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    relevance = FactRelevance([[1], [0]], [[1], [0]])  # of each kind only number 0 is relevant, and to number 0
    found = graded_retrieval(images, images, relevance, ks=(1,))
    assert {name for name, value in found.items() if math.isnan(value)} == {  # a query is not its own answer
        f"{task}_{name}" for task in ("i2i", "t2t") for name in ("NDCG@1", "NDCG_exp@25")
    }
    relevance = FactRelevance([[2], [1]], [[2], [1]])
    found = graded_retrieval(images, images, relevance, ks=(1,))
    # In a mixed gallery the counterpart is the best answer, for both kinds of query.
    assert {key: value for key, value in found.items() if "exp" not in key} == {
        f"{task}_NDCG@1": 100.0 for task in TASKS
    }


def test_relevance_of_other_items_is_refused(problem):
    images, texts, relevance = problem
    with pytest.raises(ValueError, match="17 images and 41 texts, not 17 and 40"):
        graded_retrieval(images, texts[:40], relevance)


def test_single_modal_equals_the_full_evaluation(problem):
    for chunk_size in [5, 256]:
        images, texts, relevance = problem
        both = graded_retrieval(images, texts, relevance)
        of_images = single_modal(images, relevance, "image", chunk_size=chunk_size)
        of_texts = single_modal(texts, relevance, "text", chunk_size=chunk_size)
        assert list(of_images) == ["i2i_NDCG@10", "i2i_NDCG@20", "i2i_NDCG@50", "i2i_NDCG_exp@25"]
        assert of_images | of_texts == {
            key: value for key, value in both.items() if key in of_images or key in of_texts
        }
        assert len(of_texts) == 4
        with pytest.raises(ValueError, match="relevance is of 41 texts, not 17"):
            single_modal(images, relevance, "text")


def test_siblings_can_be_left_out(problem):
    images, texts, relevance = problem
    index = torch.arange(41) % 17
    siblings = {i: [i] for i in range(17)} | {
        17 + c: (17 + torch.nonzero(index == index[c]).flatten()).tolist() for c in range(41)
    }
    found = graded_retrieval(images, texts, relevance, ks=(3, 10, 50), siblings="exclude", text_image_index=index)
    assert found == pytest.approx(literal(images, texts, relevance.table, (3, 10, 50), siblings), rel=1e-9)
    assert found != graded_retrieval(images, texts, relevance, ks=(3, 10, 50))
    with pytest.raises(ValueError, match="'exclude' with a text_image_index"):
        graded_queries(images, texts, relevance, siblings="exclude")


def test_the_sibling_table_is_ragged():
    assert sibling_table(torch.tensor([1, 0, 1, 1])).tolist() == [[0, 2, 3], [1, 1, 1], [0, 2, 3], [0, 2, 3]]


def test_shortcuts_of_caption_relevance_equal_whole_rows():
    """Gains and ideals looked up without whole rows, against the base class, which takes whole rows."""
    for siblings in [False, True]:
        for k in [1, 4, 11, 100]:
            generator = torch.Generator().manual_seed(2)
            words = ["red", "dog", "runs", "blue", "cat", "sits", "on", "a"]
            index = torch.randint(0, 9, (40,), generator=generator)
            index[:9] = torch.arange(9)
            captions = [" ".join(words[w] for w in torch.randint(0, 8, (5,), generator=generator)) for _ in range(40)]
            relevance = RougeLRelevance(captions, index, 9)
            rows = slice(3, 8)
            for query in ("image", "text"):
                for gallery in ("image", "text"):
                    size = 9 if gallery == "image" else 40
                    items = torch.randint(0, size, (5, 6), generator=generator)
                    assert torch.equal(
                        relevance.gains(query, gallery, rows, items),
                        Relevance.gains(relevance, query, gallery, rows, items),
                    )
                    for exclude in (None, (sibling_table(index)[rows] if siblings else torch.arange(40)[rows, None])):
                        if exclude is not None and query != gallery:
                            continue
                        if query == "image" and exclude is not None:
                            exclude = torch.arange(9)[rows, None]
                        found = relevance.ideal(query, gallery, rows, k, exclude)
                        assert torch.equal(found, Relevance.ideal(relevance, query, gallery, rows, k, exclude))


def test_negative_relevance_is_refused(problem):
    images, texts, relevance = problem
    relevance.table[:] = -1
    with pytest.raises(ValueError, match="finite and not negative, found -1"):
        graded_queries(images, texts, relevance)
